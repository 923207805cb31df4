"""Figures of the report: wafer panels, curves, scatter, bars; inline SVG for the page, PNG beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ikddit.overlay.plots import Limits, Panel, figure_svg, flagged_marks, nice_limit, panel_figure

INK = "#010203"
"""Drawn by no other artist: becomes `currentColor` on a page."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#8C6D31")
"""Okabe and Ito's, told apart by colour-blind eyes, then a grey and a brown; the student is the first."""


def inline_svg(figure: Figure, prefix: str, alt: str) -> str:
    """An `<svg>` element for an HTML page.

    Its ids carry `prefix`, so that many can stand in one page; text and lines drawn in `INK` follow the
    page's text colour; it has a text alternative, fills its container's width, and names no URL.
    """
    svg = figure_svg(figure)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would style the whole page
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(<g id="Quiver_\d+">)(.*?)(</g>)', _one_path, svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('xlink:href="#', f'href="#{prefix}-')
    svg = svg.replace("xlink:href=", "href=").replace(INK, "currentColor")
    # Hundredths of a point are enough for the eye; base64 holds no full stop; text between tags stays.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d{2})\d+", r"\1", tag[0]), svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt, quote=True)}"', 1)


def _one_path(group: re.Match[str]) -> str:
    """Hundreds of arrows of one style as a single path, a fifth of the size."""
    paths = re.findall(r"<path\b[^>]*/>", group[2])
    outlines = [
        " ".join(re.sub(r'.*\bd="([^"]*)".*', r"\1", path, flags=re.DOTALL).split()) for path in paths
    ]
    if not paths:
        return group[0]
    return group[1] + re.sub(r'\bd="[^"]*"', f'd="{" ".join(outlines)}"', paths[0]) + group[3]


def common_limits(
    maps: Sequence[np.ndarray], error: Shaped[np.ndarray, "..."], sigma: Shaped[np.ndarray, "..."]
) -> Limits:
    """Round limits that fit all wafers shown, so that they compare at a glance."""
    largest = max(nice_limit(part) for part in maps)
    return Limits(map_nm=largest, error_nm=nice_limit(error), sigma_nm=nice_limit(sigma))


def wafer_panels(
    measured: Float[np.ndarray, "2 64 64"],
    valid: Shaped[np.ndarray, "64 64"],
    mean: Float[np.ndarray, "2 64 64"],
    sigma: Float[np.ndarray, "2 64 64"],
    samples: Sequence[Float[np.ndarray, "2 64 64"]],
    limits: Limits,
) -> Figure:
    """Predicted, measured, samples, error and sigma of one wafer, nm."""
    drawn = [Panel(f"sample {i + 1}", sample, vectors=True) for i, sample in enumerate(samples)]
    if len(drawn) == 1:
        drawn = [Panel("one sample", samples[0], vectors=True)]
    panels = [
        Panel("predicted mean", mean, vectors=True),
        Panel("measured", measured, shown=valid, vectors=True, flagged=flagged_marks(valid)),
        *drawn,
        Panel("error", mean - measured, shown=valid, kind="error", vectors=True),
        Panel("sigma", sigma, shown=sigma.max(axis=0) > 0, kind="sigma"),
    ]
    return panel_figure(panels, limits, ink=INK)


@dataclass(frozen=True)
class Line:
    """One line of a chart; NaN is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = COLOURS[0]
    dash: str = "-"
    wide: float = 1.4


@dataclass(frozen=True)
class Chart:
    """Lines in one pair of axes, with straight lines to compare with."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    level: float | None = None
    """A horizontal line here."""
    diagonal: bool = False
    scale: Literal["linear", "log", "loglog"] = "linear"
    legend: Literal["best", "lower right", "upper left"] = "best"


def charts_figure(charts: Sequence[Chart], columns: int = 3, height: float = 2.7) -> Figure:
    """Charts side by side, as many a row as given."""
    columns = max(1, min(columns, len(charts)))
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(3.7 * columns, height * rows), layout="constrained")
    for i, chart in enumerate(charts):
        _chart(figure.add_subplot(rows, columns, i + 1), chart)
    return _laid_out(figure)


def _chart(ax: Axes, chart: Chart) -> None:
    if chart.scale != "linear":
        ax.set_yscale("log")
    if chart.scale == "loglog":
        ax.set_xscale("log")
    for line in chart.lines:
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        known = np.isfinite(x) & np.isfinite(y)
        ax.plot(
            x[known], y[known], color=line.colour, linestyle=line.dash, linewidth=line.wide,
            label=line.label,
        )  # fmt: skip
    if chart.level is not None:
        ax.axhline(chart.level, color=INK, linewidth=0.8, linestyle=":")
    if chart.diagonal:
        ax.axline((0, 0), slope=1, color=INK, linewidth=0.8, linestyle=":")
    ax.set_title(chart.title, color=INK, fontsize=9)
    ax.set_xlabel(chart.x, color=INK, fontsize=8.5)
    ax.set_ylabel(chart.y, color=INK, fontsize=8.5)
    if len(chart.lines) > 1:
        ax.legend(fontsize=7.5, frameon=False, labelcolor=INK, loc=chart.legend)
    plain_axes(ax)


@dataclass(frozen=True)
class Bars:
    """Labelled values with their ranges, drawn as dots on a common scale."""

    title: str
    labels: Sequence[str]
    values: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    points: Sequence[Sequence[float]] = field(default_factory=list)
    """Single values behind each, drawn small."""
    scale: Literal["linear", "log"] = "linear"


def dots_figure(parts: Sequence[Bars], columns: int = 4) -> Figure:
    """Dots with ranges, one panel per figure, the same rows in each; labels stand at the first of a row
    and where they change."""
    columns = max(1, min(columns, len(parts)))
    rows = -(-len(parts) // columns)
    count = max(len(part.labels) for part in parts)
    new = sum(i == 0 or list(p.labels) != list(parts[i - 1].labels) for i, p in enumerate(parts[:columns]))
    width = 2.55 * columns + 0.065 * new * max(len(text) for part in parts for text in part.labels)
    figure = Figure(figsize=(width, rows * (0.9 + 0.24 * count)), layout="constrained")
    for i, part in enumerate(parts):
        ax = figure.add_subplot(rows, columns, i + 1)
        places = np.arange(len(part.labels))[::-1]
        values = np.asarray(part.values, float)
        spread = np.stack([values - np.asarray(part.low, float), np.asarray(part.high, float) - values])
        ax.errorbar(
            values, places, xerr=np.maximum(np.nan_to_num(spread), 0), fmt="o", color=COLOURS[0],
            markersize=5, elinewidth=1.4, capsize=2.5,
        )  # fmt: skip
        for place, singles in zip(places, part.points, strict=False):
            ax.plot(singles, np.full(len(singles), place + 0.22), ".", color=COLOURS[1], markersize=4)
        ax.set_xscale(part.scale)
        if part.scale == "linear":
            ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_ylim(-0.6, len(part.labels) - 0.4)
        named = i % columns == 0 or list(part.labels) != list(parts[i - 1].labels)
        ax.set_yticks(places, part.labels if named else [""] * len(places))
        ax.set_title(part.title, color=INK, fontsize=9)
        ax.grid(axis="x", linewidth=0.4, alpha=0.5)
        plain_axes(ax)
    return _laid_out(figure)


def histogram_figure(
    titles: Sequence[str], counts: Sequence[Sequence[float]], levels: Sequence[float | None], x: str
) -> Figure:
    """Bars of relative frequency, one panel for each series, with the level of a flat histogram."""
    figure = Figure(figsize=(3.7 * len(titles), 2.5), layout="constrained")
    for i, (title, values, level) in enumerate(zip(titles, counts, levels, strict=True)):
        ax = figure.add_subplot(1, len(titles), i + 1)
        ax.bar(np.arange(len(values)), values, width=0.85, color=COLOURS[0])
        if level is not None:
            ax.axhline(level, color=INK, linewidth=0.9, linestyle=":")
        ax.set_title(title, color=INK, fontsize=9)
        ax.set_xlabel(x, color=INK, fontsize=8.5)
        ax.set_ylabel("share", color=INK, fontsize=8.5)
        plain_axes(ax)
    return _laid_out(figure)


def m3s_figure(measured: Float[np.ndarray, "n 2"], forecast: Float[np.ndarray, "n 2"]) -> Figure:
    """M3S forecast against M3S measured, nm, one dot per wafer, x and y side by side, with the line of equality."""
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    both = np.concatenate([measured, forecast])
    low, high = 0.0, 1.05 * float(np.nanmax(both)) if np.isfinite(both).any() else 1.0
    for axis, ax in enumerate(figure.subplots(1, 2)):
        ax.plot([low, high], [low, high], color=INK, linewidth=0.8, alpha=0.6)
        ax.plot(
            measured[:, axis], forecast[:, axis], linestyle="none", marker=".", color=COLOURS[0],
            alpha=0.5, markersize=4,
        )  # fmt: skip
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        ax.set_aspect("equal")
        ax.set_xlabel(f"measured M3S {'xy'[axis]}, nm", color=INK, fontsize=9)
        ax.set_ylabel(f"forecast M3S {'xy'[axis]}, nm", color=INK, fontsize=9)
        plain_axes(ax)
    return _laid_out(figure)


def _laid_out(figure: Figure) -> Figure:
    """The figure with its layout computed once and kept: saving it computes a constrained layout anew each time."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    return figure


def plain_axes(ax: Axes) -> None:
    """Ticks and the left and bottom spine in the page's text colour; no box."""
    ax.tick_params(colors=INK, which="both", labelsize=8)
    for name, spine in ax.spines.items():
        spine.set_color(INK)
        spine.set_linewidth(0.6)
        spine.set_visible(name in ("left", "bottom"))
