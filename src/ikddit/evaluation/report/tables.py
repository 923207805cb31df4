"""Tables of the report, from the JSON and CSV files of the stages as they are."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ikddit.evaluation.report.sources import Sources
from ikddit.evaluation.scores import excess_nm, ome_name

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
    floor, in squared error, that the student has gone; it is negative when the student is worse. `above` and
    `below` are shares of the floor and of the best baseline in RMSE.
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
        if floor > 0:
            out["above"] = rmse / floor - 1
    if rmse is not None and best is not None:
        out["gain_nm"] = best - rmse
        out["below"] = 1 - rmse / best if best > 0 else 0.0
        if floor is not None and best > floor:
            out["closed"] = (best**2 - rmse**2) / (best**2 - floor**2)
    return out


def comparison(sources: Sources) -> list[dict[str, Any]]:
    """Rows of the table: student, baselines, oracle, best first, with what each was scored on.

    `m3s_error_nm` is of samplers alone: a point forecast's M3S lacks the noise of a wafer, so its error measures that.
    """
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
            scored = {f: found.get(f) for f in figures} | {"m3s_error_nm": found.get("m3s_error_sampled_nm")}
            rows.append({"name": name, "about": about, **scored, "unseen_rmse_nm": unseen})
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


def tau_of(metrics: Mapping[str, Any]) -> float:
    """The tau in nm of the OME in metrics.json, read from its name.

    >>> tau_of({"ome_1p5": 0.1}), tau_of({})
    (1.5, 1.5)
    """
    for name in metrics:
        if match := re.fullmatch(r"ome_(\d+(?:p\d+)?)", name):
            return float(match[1].replace("p", "."))
    return 1.5
