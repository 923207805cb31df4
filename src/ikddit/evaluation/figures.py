"""Figures of the report as inline SVG that takes the page's colours: wafer panels, curves, M3S scatter."""

import re
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ikddit.overlay.plots import Limits, Panel, figure_svg, flagged_marks, nice_limit, panel_figure

INK = "#010203"
"""Drawn by no other artist: becomes `currentColor`, black on a light page and white on a dark one."""
LINE = "#3f7fbf"
"""Readable on white and on black."""


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
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('xlink:href="#', f'href="#{prefix}-')
    svg = svg.replace("xlink:href=", "href=").replace(INK, "currentColor")
    # Thousandths of a point are enough for the eye; base64 holds no full stop.
    svg = re.sub(r"(\d\.\d{3})\d+", r"\1", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt, quote=True)}"', 1)


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
    panels = [
        Panel("predicted mean", mean, vectors=True),
        Panel("measured", measured, shown=valid, vectors=True, flagged=flagged_marks(valid)),
        *drawn,
        Panel("error", mean - measured, shown=valid, kind="error", vectors=True),
        Panel("sigma", sigma, shown=sigma.max(axis=0) > 0, kind="sigma"),
    ]
    return panel_figure(panels, limits, ink=INK)


def curves_figure(columns: Mapping[str, Sequence[float]], columns_per_row: int = 4) -> Figure:
    """Training curves as small multiples: one for each column beside `step`; gaps where a value is absent."""
    step = np.asarray(columns["step"], float)
    names = [name for name in columns if name != "step"]
    rows = -(-len(names) // columns_per_row)
    figure = Figure(figsize=(2.9 * min(columns_per_row, len(names)), 2.0 * rows), layout="constrained")
    for i, name in enumerate(names):
        ax = figure.add_subplot(rows, min(columns_per_row, len(names)), i + 1)
        values = np.asarray(columns[name], float)
        known = np.isfinite(values)
        ax.plot(step[known], values[known], color=LINE, linewidth=1.2)
        ax.set_title(name, color=INK, fontsize=9)
        plain_axes(ax)
    return figure


def m3s_figure(
    measured: Float[np.ndarray, "n 2"], forecast: Float[np.ndarray, "n 2"], limit_nm: float | None = None
) -> Figure:
    """M3S forecast against M3S measured, one dot per wafer, x and y side by side, with the line of equality.

    Args:
        measured: nm.
        forecast: nm.
        limit_nm: specification limit, drawn on both axes when known.
    """
    figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    both = np.concatenate([measured, forecast])
    low, high = 0.0, 1.05 * float(np.nanmax(both)) if np.isfinite(both).any() else 1.0
    for axis, ax in enumerate(figure.subplots(1, 2)):
        ax.plot([low, high], [low, high], color=INK, linewidth=0.8, alpha=0.6)
        ax.plot(
            measured[:, axis],
            forecast[:, axis],
            linestyle="none",
            marker=".",
            color=LINE,
            alpha=0.5,
            markersize=4,
        )
        if limit_nm is not None:
            for line in (ax.axhline, ax.axvline):
                line(limit_nm, color=INK, linewidth=0.6, linestyle=":")
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        ax.set_aspect("equal")
        ax.set_xlabel(f"measured M3S {'xy'[axis]}, nm", color=INK, fontsize=9)
        ax.set_ylabel(f"forecast M3S {'xy'[axis]}, nm", color=INK, fontsize=9)
        plain_axes(ax)
    return figure


def plain_axes(ax: Axes) -> None:
    """Ticks and the left and bottom spine in the page's text colour; no box."""
    ax.tick_params(colors=INK, labelsize=8)
    for name, spine in ax.spines.items():
        spine.set_color(INK)
        spine.set_linewidth(0.6)
        spine.set_visible(name in ("left", "bottom"))
