"""Pictures and tables of what stage evaluate scored: OME curve, ROC, coverage, ranks, spectrum, KPIs by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ikddit.evaluation.report.figures import COLOURS, INK, Chart, Line, charts_figure, histogram_figure
from ikddit.evaluation.report.sources import Row, Sources

STYLES: dict[str, tuple[str, str, float]] = {
    "student": (COLOURS[0], "-", 2.2),
    "student_ensemble": (COLOURS[0], "--", 2.2),
    "oracle": (INK, "--", 1.2),
    "gbm": (COLOURS[1], "-", 1.3),
    "ridge_all": (COLOURS[2], "-", 1.3),
    "ewma": (COLOURS[3], "-.", 1.3),
    "persistence": (COLOURS[4], "-.", 1.3),
    "zero": (COLOURS[6], ":", 1.5),
}
"""Colour, dash and width of the models drawn in curves; the tables hold all of them."""
NAMES = {
    "student": "student, point forecast",
    "student_ensemble": "student, mean of samples",
    "measured": "the measurement itself",
}
KPIS = {
    "rmse_nm": "RMSE nm",
    "ome": "OME",
    "m3s_forecast_nm": "M3S nm, forecast",
    "m3s_error_nm": "M3S error nm",
    "p997_nm": "99.7 % nm",
    "p997_error_nm": "99.7 % of error nm",
    "correctable_6": "correctable, 6 par.",
    "correctable_10": "10 par.",
    "correctable_k": "k par.",
    "nce_m3s_6_nm": "M3S nm left, 6 par.",
    "nce_m3s_10_nm": "10 par.",
    "nce_m3s_k_nm": "k par.",
}
SHARES = frozenset(name for name in KPIS if name == "ome" or name.startswith("correctable"))
GROUPS = ("axis", "zone", "chuck", "scanner")


@dataclass(frozen=True)
class Pivot:
    """One KPI of every model, by level of a group: the table an engineer looks a machine up in."""

    kpi: str
    heading: str
    share: bool
    levels: list[tuple[str, str]]
    """(group, level), `all` first."""
    rows: list[tuple[str, list[float | None]]]
    """Model and its values, best first."""
    wafers: list[int | None]
    """Behind each level."""


def model_name(model: str) -> str:
    """A model as a heading.

    >>> model_name("student"), model_name("gbm")
    ('student, point forecast', 'gbm')
    """
    return NAMES.get(model, model)


def overall(kpis: Sequence[Row]) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """The KPIs that some model has, and each model's over all scored marks, best first."""
    rows = [row for row in kpis if row.get("group") == "all"]
    columns = [name for name in KPIS if any(row.get(name) is not None for row in rows)]
    return columns, [(str(row["model"]), [row.get(c) for c in columns]) for row in sorted(rows, key=_by_rmse)]


def pivot(kpis: Sequence[Row], kpi: str) -> Pivot | None:
    """A KPI by model and level; None where no model has it."""
    wanted = [row for row in kpis if row.get(kpi) is not None and row.get("group") in ("all", *GROUPS)]
    if not wanted:
        return None
    order = ("all", *GROUPS)
    keys = dict.fromkeys((str(row["group"]), str(row["level"])) for row in wanted)
    levels = sorted(keys, key=lambda key: order.index(key[0]))
    values = {(row["model"], str(row["group"]), str(row["level"])): row for row in wanted}
    whole = sorted((row for row in wanted if row["group"] == "all"), key=_by_rmse)
    models = dict.fromkeys([row["model"] for row in whole] + [row["model"] for row in wanted])
    rows = [(str(m), [values.get((m, *level), {}).get(kpi) for level in levels]) for m in models]
    counts = {(str(row["group"]), str(row["level"])): row.get("n_wafers") for row in wanted}
    return Pivot(kpi, KPIS[kpi], kpi in SHARES, levels, rows, [counts[level] for level in levels])


def _by_rmse(row: Row) -> float:
    value = row.get("rmse_nm")
    return float(value) if isinstance(value, int | float) else float("inf")


def scored_figures(sources: Sources) -> dict[str, tuple[Figure, str]]:
    """Figure and text of every curve that has its CSV file."""
    found = {
        "ome-curve": _ome(sources.tables.get("ome_curve", [])),
        "out-of-spec": _roc(sources.tables.get("out_of_spec", [])),
        "coverage": _coverage(sources.tables.get("coverage", [])),
        "ranks": _ranks(sources.tables.get("rank_histogram", [])),
        "spectrum": _spectrum(sources.tables.get("spectrum", [])),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(v) if isinstance(v := row.get(name), int | float) else float("nan") for row in rows]


def _line(model: str, x: list[float], y: list[float]) -> Line:
    colour, dash, wide = STYLES[model]
    return Line(model_name(model), x, y, colour, dash, wide)


def _ome(rows: Sequence[Row]) -> tuple[Figure, str] | None:
    models = [model for model in STYLES if rows and rows[0].get(model) is not None]
    if not models:
        return None
    tau = _column(rows, "tau_nm")
    lines = [_line(model, tau, [v or float("nan") for v in _column(rows, model)]) for model in models]
    chart = Chart("Share of marks and axes further off than tau", "tau, nm", "OME(tau)", lines, scale="log")
    return charts_figure([chart], height=3.6), f"OME over tau for {', '.join(models)}."


def _roc(rows: Sequence[Row]) -> tuple[Figure, str] | None:
    lines = []
    for model in STYLES:
        # the point forecast's M3S is biased low by its smoothness: its curve stands in the file
        own = [row for row in rows if row.get("model") == model]
        if own:
            points = zip(_column(own, "false_positive_rate"), _column(own, "true_positive_rate"), strict=True)
            x, y = zip(*sorted(points), strict=True)
            lines.append(_line(model, list(x), list(y)))
    if not lines:
        return None
    chart = Chart(
        "Wafers out of spec, found before measurement", "false positive rate", "true positive rate", lines,
        diagonal=True, legend="lower right",
    )  # fmt: skip
    return charts_figure([chart], height=3.6), "ROC of out of spec: " + ", ".join(
        line.label for line in lines
    )


def _coverage(rows: Sequence[Row]) -> tuple[Figure, str] | None:
    if not rows:
        return None
    nominal = _column(rows, "nominal")
    kinds = [
        ("marks", "marks, student", COLOURS[0], "-", 2.0),
        ("m3s", "M3S of wafers, student", COLOURS[1], "-", 2.0),
        ("oracle_marks", "marks, exact posterior", INK, "--", 1.0),
        ("oracle_m3s", "M3S, exact posterior", COLOURS[3], "--", 1.0),
    ]
    lines = [
        Line(label, nominal, _column(rows, name), colour, dash, wide)
        for name, label, colour, dash, wide in kinds
        if any(row.get(name) is not None for row in rows)
    ]
    chart = Chart("Coverage", "nominal", "observed", lines, diagonal=True, legend="upper left")
    return charts_figure([chart], height=3.4), "Observed against nominal coverage of central intervals."


def _ranks(rows: Sequence[Row]) -> tuple[Figure, str] | None:
    if not rows:
        return None
    level = rows[0].get("uniform")
    figure = histogram_figure(
        ["Rank of the measurement among samples"],
        [_column(rows, "share")],
        [float(level) if isinstance(level, int | float) else None],
        "rank",
    )
    return figure, f"Histogram of the rank of the measured value among the samples, {len(rows)} ranks."


def _spectrum(rows: Sequence[Row]) -> tuple[Figure, str] | None:
    if not rows:
        return None
    cycles = _column(rows, "cycles")
    kinds = [
        ("measured", "measured", INK, "--", 1.4),
        ("generated", "generated samples", COLOURS[0], "-", 2.0),
        ("point", "point forecast", COLOURS[1], "-.", 1.4),
        ("oracle", "samples of the exact posterior", COLOURS[2], ":", 1.6),
    ]
    lines = [
        Line(label, cycles, _column(rows, name), colour, dash, wide)
        for name, label, colour, dash, wide in kinds
        if any(row.get(name) is not None for row in rows)
    ]
    chart = Chart(
        "Radial power spectrum", "cycles across the square (206 mm)", "nm² per bin and mark", lines,
        scale="loglog",
    )  # fmt: skip
    return charts_figure([chart], height=3.6), "Radial power spectra of measured and generated maps."
