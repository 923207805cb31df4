"""The report: one HTML file that opens anywhere, offline, and says first whether the model is any good.

Figures come from the JSON files of the stages, as they are; what is missing is named, never made up.
"""

import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ikddit import atomic
from ikddit.console import log
from ikddit.evaluation.report_sources import Sources, read_sources
from ikddit.evaluation.scores import excess_nm, ome_name

MAX_WAFERS = 8
"""Wafers drawn; each adds about half a megabyte."""
BASELINES = {
    "zero": "no overlay anywhere",
    "persistence": "the previous layer's map, copied",
    "chuck_mean": "mean training map of the scanner and chuck",
    "ewma": "weighted mean of earlier lots on the scanner and chuck (run-to-run control)",
    "ridge_ids": "linear in ids",
    "ridge_logs": "linear in logs",
    "ridge_logs_ids": "linear in logs and ids",
    "ridge_all": "linear in logs, ids and the previous map",
    "gbm": "ridge_all, corrected by boosted trees",
    "oracle": "the simulator's exact conditional mean: the best possible",
}


# What is shown -------------------------------------------------------------------------------------------


def lookup(metrics: Mapping[str, Any], name: str) -> Any:
    """A metric by its dotted name, from nested or flat JSON; None if absent.

    >>> lookup({"masked": {"speedup": 1.4}}, "masked.speedup"), lookup({"a.b": 1}, "a.b"), lookup({}, "a.b")
    (1.4, 1, None)
    """
    if name in metrics:
        return metrics[name]
    head, _, rest = name.partition(".")
    part = metrics.get(head)
    return lookup(part, rest) if rest and isinstance(part, Mapping) else None


def verdict(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The answer, from metrics.json alone: student, floor, best baseline, and how they compare.

    Keys without their metric are absent. `closed` is the share of the way from the best baseline to the
    floor, in squared error, that the student has gone; it is negative when the student is worse.
    """
    out: dict[str, Any] = {}
    names = {"rmse_nm": "rmse_nm", "floor_rmse_nm": "floor_rmse_nm", "served": "served", "n_wafers": "n"}
    for name, key in names.items():
        if (value := lookup(metrics, name)) is not None:
            out[key] = value
    scores = {
        name: rmse
        for name in BASELINES
        if name != "oracle" and (rmse := lookup(metrics, f"baselines.{name}.rmse_nm")) is not None
    }
    if scores:
        out["best"] = min(scores, key=lambda name: scores[name])
        out["best_rmse_nm"] = scores[out["best"]]
    rmse, floor, best = out.get("rmse_nm"), out.get("floor_rmse_nm"), out.get("best_rmse_nm")
    if rmse is not None and floor is not None:
        out["excess_nm"] = excess_nm(rmse, floor)
    if rmse is not None and best is not None:
        out["gain_nm"] = best - rmse
        if floor is not None and best > floor:
            out["closed"] = (best**2 - rmse**2) / (best**2 - floor**2)
    return out


def comparison(sources: Sources) -> list[dict[str, Any]]:
    """Rows of the table: student, baselines, oracle, best first, with what each was scored on."""
    tau = ome_name(tau_of(sources.metrics))
    figures = ("rmse_nm", "r2", "m3s_error_nm", tau)
    rows: list[dict[str, Any]] = []
    student = {name: lookup(sources.metrics, name) for name in figures}
    unseen = lookup(sources.metrics, "test_unseen.rmse_nm")
    rows.append({"name": "student", "about": "this model", **student, "unseen_rmse_nm": unseen})
    for name, about in BASELINES.items():
        found = lookup(sources.baselines, f"test.{name}")
        if found:
            unseen = lookup(sources.baselines, f"test_unseen.{name}.rmse_nm")
            rows.append(
                {"name": name, "about": about, **{f: found.get(f) for f in figures}, "unseen_rmse_nm": unseen}
            )
    for row in rows:
        row["ome"] = row.pop(tau)
    return sorted(rows, key=lambda row: math.inf if row["rmse_nm"] is None else row["rmse_nm"])


def by_machine(wafers: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """RMSE (pooled over wafers) and wafers of each scanner and chuck."""
    if not {"scanner_id", "chuck_id", "rmse_nm"} <= set(wafers):
        return []
    groups: dict[tuple[str, str], list[float]] = {}
    for scanner, chuck, rmse in zip(wafers["scanner_id"], wafers["chuck_id"], wafers["rmse_nm"], strict=True):
        if rmse is not None and math.isfinite(rmse):
            groups.setdefault((str(scanner), str(chuck)), []).append(rmse)
    return [
        {"scanner": s, "chuck": c, "wafers": len(v), "rmse_nm": math.sqrt(sum(x * x for x in v) / len(v))}
        for (s, c), v in sorted(groups.items())
    ]


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested JSON as (dotted name, scalar); lists become text.

    >>> flat({"a": {"b": 1}, "c": [1, 2]})
    [('a.b', 1), ('c', '1, 2')]
    """
    out: list[tuple[str, Any]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            out += flat(item, f"{prefix}{name}.")
        elif isinstance(item, list):
            out.append((prefix + name, ", ".join(str(part) for part in item) or "none"))
        else:
            out.append((prefix + name, item))
    return out


def matrix(
    value: Mapping[str, Any] | None,
) -> tuple[list[str], list[tuple[str, list[Any]]], list[tuple[str, Any]]]:
    """Split JSON into a table (rows: the entries that are objects, columns: their keys) and plain facts.

    >>> matrix({"device": "cpu", "full": {"ms": 5}, "masked": {"ms": 4}})
    (['ms'], [('full', [5]), ('masked', [4])], [('device', 'cpu')])
    """
    value = value or {}
    parts = {name: dict(flat(item)) for name, item in value.items() if isinstance(item, Mapping) and item}
    if len(parts) < 2 or not set.intersection(*(set(part) for part in parts.values())):
        return [], [], flat(value)
    columns = list(dict.fromkeys(name for part in parts.values() for name in part))
    rows = [(name, [part.get(column) for column in columns]) for name, part in parts.items()]
    return columns, rows, flat({name: item for name, item in value.items() if name not in parts})


def number(value: Any, digits: int = 3) -> str:
    """A figure as text: integers whole, floats to `digits` decimals (small ones to as many significant).

    >>> number(0.86123), number(12000), number(0.000123), number(None), number(True)
    ('0.861', '12,000', '0.000123', '–', 'yes')
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "–"
        small = 0 < abs(value) < 10 ** (1 - digits)
        return f"{value:.{digits}g}" if small else f"{value:,.{digits}f}"
    return str(value)


def short(value: Any) -> str:
    """Any JSON scalar as text, for facts of unknown kind: four significant digits, times as dates.

    >>> short(0.712345), short(1725), short("2024-11-07T21:21:20+00:00")
    ('0.7123', '1,725', '2024-11-07')
    """
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d.*", value):
        return value[:10]
    return number(value)


def tau_of(metrics: Mapping[str, Any]) -> float:
    """The tau in nm of the OME in metrics.json, read from its name.

    >>> tau_of({"ome_1p5": 0.1}), tau_of({})
    (1.5, 1.5)
    """
    for name in metrics:
        if match := re.fullmatch(r"ome_(\d+(?:p\d+)?)", name):
            return float(match[1].replace("p", "."))
    return 1.5


def percent(value: float | None) -> str:
    """A share as text.

    >>> percent(0.0987)
    '9.9 %'
    """
    return "–" if value is None else f"{100 * value:.1f} %"


# The page ------------------------------------------------------------------------------------------------


def build_report(sources: Sources, commit: str | None = None) -> str:
    """The page as one string: no network, no file beside it, the same for the same sources.

    Args:
        sources: from `read_sources`.
        commit: version of the code, or None when it is not known.
    """
    from jinja2 import Environment, StrictUndefined

    text = (resources.files("ikddit.evaluation") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent, "short": short}
    rows = comparison(sources)
    return environment.from_string(text).render(
        s=sources,
        verdict=verdict(sources.metrics),
        get=lambda name: lookup(sources.metrics, name),
        rows=rows,
        widest=max((row["rmse_nm"] or 0.0 for row in rows), default=0.0) or 1.0,
        tau=tau_of(sources.metrics),
        ome=ome_name(tau_of(sources.metrics)),
        machines=by_machine(sources.wafers),
        wafers=_wafers(sources),
        m3s=_m3s(sources),
        curves=_curves(sources),
        matrix=matrix,
        flat=flat,
        commit=commit,
    )


def write_report(root: Path | str = ".", commit: str | None = None) -> Path:
    """Read the sources under `root` and write reports/index.html there, atomically.

    Raises:
        InputError: see `read_sources`.
    """
    page = build_report(read_sources(root), commit)
    target = Path(root) / "reports" / "index.html"
    atomic.write_text(target, page)
    log.info("report: %s, %.1f MB", target, len(page.encode()) / 1e6)
    return target


def _wafers(sources: Sources) -> list[dict[str, Any]]:
    from ikddit.evaluation.figures import common_limits, inline_svg, wafer_panels

    show = sources.showcase
    if not show:
        return []
    count = min(len(show["barcodes"]), MAX_WAFERS)
    valid, measured, mean = show["valid"][:count], show["measured"][:count], show["mean"][:count]
    inside = np.broadcast_to(valid[:, None] != 0, measured.shape)
    samples = [show[name][:count] for name in ("sample0", "sample1") if name in show]
    limits = common_limits([measured[inside]], (mean - measured)[inside], show["sigma"][:count][inside])
    place = {str(code): i for i, code in enumerate(sources.wafers.get("barcode", []))}
    out = []
    for i in range(count):
        barcode = str(show["barcodes"][i])
        figure = wafer_panels(
            measured[i], valid[i], mean[i], show["sigma"][i], [s[i] for s in samples], limits
        )
        row = place.get(barcode)
        facts = {} if row is None else {name: column[row] for name, column in sources.wafers.items()}
        alt = (
            f"Wafer {barcode}: dx, dy and vector maps of the predicted mean, the measurement, two samples, "
            f"the error and sigma; maps to +-{limits.map_nm:g} nm, error to +-{limits.error_nm:g} nm."
        )
        svg = inline_svg(figure, f"w{i}", alt)
        lines = sources.log_lines.get(barcode)
        out.append({"barcode": barcode, "svg": svg, "facts": facts, "lines": lines})
    return out


def _m3s(sources: Sources) -> str | None:
    from ikddit.evaluation.figures import inline_svg, m3s_figure

    names = [("m3s_x_nm", "m3s_y_nm"), ("pred_m3s_x_nm", "pred_m3s_y_nm")]
    if not {name for pair in names for name in pair} <= set(sources.wafers):
        return None
    measured, forecast = (np.array([sources.wafers[n] for n in pair], float).T for pair in names)
    alt = "M3S forecast against M3S measured, one dot per wafer, for x and y, with the line of equality."
    return inline_svg(m3s_figure(measured, forecast), "m3s", alt)


def _curves(sources: Sources) -> str | None:
    from ikddit.evaluation.figures import curves_figure, inline_svg

    names = [name for name in sources.curves if name != "step"]
    if "step" not in sources.curves or not names:
        return None
    alt = f"Training curves over steps: {', '.join(names)}."
    return inline_svg(curves_figure(sources.curves), "curves", alt)
