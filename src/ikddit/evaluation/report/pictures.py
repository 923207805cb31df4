"""The report's pictures by name, from the sources; the same ones stand in the page and in reports/figures/."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ikddit.evaluation.report.figures import (
    COLOURS,
    Bars,
    Chart,
    Line,
    charts_figure,
    common_limits,
    dots_figure,
    inline_svg,
    m3s_figure,
    wafer_panels,
)
from ikddit.evaluation.report.scored import scored_figures
from ikddit.evaluation.report.sources import Exposure, Sources
from ikddit.evaluation.report.summary import ABLATED, PLOTTED, Ablation, ablation, modes

MAX_WAFERS = 16
"""Wafers drawn; each adds about a third of a megabyte."""
LOSSES = ("loss", "dsm", "mae", "generator", "discriminator")
ALIGNMENT = {
    "alignment_cosine": "cosine of student and teacher tokens",
    "alignment_cka": "CKA of student and teacher",
}


@dataclass(frozen=True)
class Picture:
    """A figure with the text that stands for it."""

    name: str
    """Letters, digits and hyphens: file name and prefix of ids."""
    figure: Figure
    alt: str

    @property
    def svg(self) -> str:
        """As an element of the page."""
        return inline_svg(self.figure, self.name, self.alt)


@dataclass(frozen=True)
class DrawnWafer:
    """One entry of the wafer picker."""

    barcode: str
    role: str
    """Its place among the scored wafers by RMSE, in words; empty where no RMSE is known."""
    rank: int | None
    """0 is the best."""
    picture: Picture
    facts: dict[str, Any]
    """Its row of the per-wafer table."""
    exposure: Exposure | None


def drawn_wafers(sources: Sources) -> list[DrawnWafer]:
    """Every wafer of the showcase on common scales."""
    show = sources.showcase
    if not show:
        return []
    count = min(len(show["barcodes"]), MAX_WAFERS)
    valid, measured, mean = show["valid"][:count], show["measured"][:count], show["mean"][:count]
    inside = np.broadcast_to(valid[:, None] != 0, measured.shape)
    samples = [show["sample0"][:count]] if "sample0" in show else []
    limits = common_limits([measured[inside]], (mean - measured)[inside], show["sigma"][:count][inside])
    place = {str(code): i for i, code in enumerate(sources.wafers.get("barcode", []))}
    ranks = _ranks(sources.wafers.get("rmse_nm", []))
    out = []
    for i in range(count):
        barcode = str(show["barcodes"][i])
        figure = wafer_panels(
            measured[i], valid[i], mean[i], show["sigma"][i], [s[i] for s in samples], limits
        )
        row = place.get(barcode)
        facts = {} if row is None else {name: column[row] for name, column in sources.wafers.items()}
        rank = None if row is None else ranks.get(row)
        alt = (
            f"Wafer {barcode}: dx, dy and vector maps of the predicted mean, the measurement, one sample, "
            f"the error and sigma; maps to +-{limits.map_nm:g} nm, error to +-{limits.error_nm:g} nm."
        )
        role = "" if rank is None else role_of(rank, len(ranks))
        picture = Picture(f"wafer-{i + 1:02d}", figure, alt)
        out.append(DrawnWafer(barcode, role, rank, picture, facts, sources.exposures.get(barcode)))
    return out


def _ranks(rmse: list[Any]) -> dict[int, int]:
    known = [i for i, value in enumerate(rmse) if value is not None and math.isfinite(value)]
    return {row: rank for rank, row in enumerate(sorted(known, key=lambda i: rmse[i]))}


def role_of(rank: int, count: int) -> str:
    """A wafer's place by RMSE, in words.

    >>> role_of(0, 500), role_of(249, 500), role_of(499, 500), role_of(30, 500)
    ('best of 500', 'median of 500', 'worst of 500', '31st of 500')
    """
    for place, word in ((0, "best"), (count - 1, "worst"), ((count - 1) // 2, "median")):
        if rank == place:
            return f"{word} of {count}"
    number = rank + 1
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending} of {count}"


def pictures(sources: Sources) -> dict[str, Picture]:
    """Every plot that can be drawn from what is there, by name."""
    found = [_m3s(sources), _losses(sources), _alignment(sources), _speed(sources)]
    found += [_ablation(ablation(name, rows)) for name, rows in sources.ablations.items()]
    found += [Picture(name, figure, alt) for name, (figure, alt) in scored_figures(sources).items()]
    return {picture.name: picture for picture in found if picture is not None}


def _m3s(sources: Sources) -> Picture | None:
    names = [("m3s_x_nm", "m3s_y_nm"), ("pred_m3s_x_nm", "pred_m3s_y_nm")]
    if not {name for pair in names for name in pair} <= set(sources.wafers):
        return None
    measured, forecast = (np.array([sources.wafers[n] for n in pair], float).T for pair in names)
    alt = "M3S forecast against M3S measured, one dot per wafer, for x and y, with the line of equality."
    return Picture("m3s", m3s_figure(measured, forecast), alt)


def _losses(sources: Sources) -> Picture | None:
    curves = sources.curves
    names = [name for name in LOSSES if name in curves]
    if "step" not in curves or not names:
        return None
    charts = [Chart(name, "step", "", [Line(name, curves["step"], curves[name])]) for name in names]
    if "discriminator_accuracy" in curves:
        line = Line("accuracy", curves["step"], curves["discriminator_accuracy"])
        charts.append(Chart("discriminator accuracy (dotted: chance)", "step", "", [line], level=0.5))
    alt = f"Training curves over steps: {', '.join(names)}."
    return Picture("losses", charts_figure(charts, height=2.0), alt)


def _alignment(sources: Sources) -> Picture | None:
    curves = sources.curves
    names = [name for name in ALIGNMENT if name in curves]
    if "step" not in curves or not names:
        return None
    lines = [
        Line(ALIGNMENT[name], curves["step"], curves[name], COLOURS[i], "-" if i == 0 else "--")
        for i, name in enumerate(names)
    ]
    chart = Chart("Alignment of student and teacher", "step", "", lines, level=1.0)
    charts = [chart]
    if gates := [name for name in ("gate", "gate_max") if name in curves]:
        both = [
            Line(n.replace("gate_max", "largest").replace("gate", "mean"), curves["step"], curves[n], c)
            for n, c in zip(gates, COLOURS, strict=False)
        ]
        charts.append(Chart("Gates of the cross-attention, |tanh|", "step", "", both))
    alt = "Alignment of student and teacher over the steps of training: " + ", ".join(
        ALIGNMENT[name] for name in names
    )
    return Picture("alignment", charts_figure(charts, 2), alt)


def _speed(sources: Sources) -> Picture | None:
    found = modes(sources.timing or {})
    if not found:
        return None
    nan = math.nan
    batch = [m for m in found if m.batch_s is not None and m.samples_per_s is not None]
    single = [m for m in found if m.latency_s is not None]
    parts = []
    if batch:
        size = [(m.samples_per_s or nan) * (m.batch_s or nan) for m in batch]
        parts.append(
            Bars(
                "samples per second",
                [m.label for m in batch],
                [m.samples_per_s or nan for m in batch],
                [n / m.batch_q[1] if m.batch_q else nan for n, m in zip(size, batch, strict=True)],
                [n / m.batch_q[0] if m.batch_q else nan for n, m in zip(size, batch, strict=True)],
            )
        )
    if single:
        parts.append(
            Bars(
                "latency of one sample of one wafer, s",
                [m.label for m in single],
                [m.latency_s or nan for m in single],
                [m.latency_q[0] if m.latency_q else nan for m in single],
                [m.latency_q[1] if m.latency_q else nan for m in single],
                scale="log",
            )
        )
    alt = (
        "Samples per second in batches, and latency of one sample, by way of sampling; median and quartiles."
    )
    return Picture("speed", dots_figure(parts, 2), alt)


def _ablation(table: Ablation) -> Picture | None:
    parts = []
    for name in PLOTTED:
        if name in table.metrics and all(name in group.figures for group in table.groups):
            spreads = [group.figures[name] for group in table.groups]
            parts.append(
                Bars(
                    ABLATED[name],
                    [group.label for group in table.groups],
                    [s.mean for s in spreads],
                    [s.low for s in spreads],
                    [s.high for s in spreads],
                    [s.values if len(s.values) > 1 else [] for s in spreads],
                )
            )
    if not parts or not table.groups:
        return None
    alt = f"Ablation {table.name}: mean and standard deviation over seeds of " + ", ".join(
        part.title for part in parts
    )
    return Picture(f"ablation-{table.slug}", dots_figure(parts), alt)
