"""Runs, timings and gates put in rows for the report: repeated runs by what was swept, modes, suites."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ikddit.evaluation.report.sources import Row
from ikddit.params import Params

ABLATED = {
    "rmse_nm": "RMSE nm",
    "ensemble_rmse_nm": "RMSE nm, mean of samples",
    "crps_nm": "CRPS nm",
    "ome_1p5": "OME(1.5 nm)",
    "m3s_error_nm": "M3S error nm",
    "coverage_90": "coverage of 90 %",
    "frechet_embedding": "Fréchet, own embedding",
    "masked.fid_ratio": "Fréchet, masked / full",
    "masked.speedup": "speed-up, masked",
}
"""Metrics of a run that an ablation table shows, with their headings."""
PLOTTED = ("rmse_nm", "crps_nm", "frechet_embedding", "masked.speedup")
MODES = {
    "full": "student, full",
    "masked": "student, masked",
    "guided_cfg": "student, guided (classifier-free)",
    "guided_path_drop": "student, guided (path drop)",
    "teacher": "teacher's encoder",
    "ddpm1000": "DDPM, 1,000 steps",
}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) over repeated runs; `sd` is None for one run."""

    mean: float
    sd: float | None
    values: list[float] = field(default_factory=list)

    @property
    def low(self) -> float:
        """Mean less one standard deviation."""
        return self.mean - (self.sd or 0.0)

    @property
    def high(self) -> float:
        """Mean plus one standard deviation."""
        return self.mean + (self.sd or 0.0)


def spread(values: Iterable[Any]) -> Spread | None:
    """Mean and standard deviation of the numbers among `values`; None if there is none.

    >>> found = spread([1.0, 3.0, None])
    >>> found.mean, round(found.sd, 4)
    (2.0, 1.4142)
    """
    numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if not numbers:
        return None
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, numbers)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    label: str
    runs: int
    seeds: str
    figures: dict[str, Spread]
    """By the metric's name."""


@dataclass(frozen=True)
class Ablation:
    """One CSV of runs as a table: a row for each setting, a column for each metric."""

    name: str
    swept: list[str]
    """Names of params.yaml that differ between the runs, without the seed."""
    metrics: list[str]
    groups: list[Group]
    test_wafers: str
    devices: str
    """Where the runs were made, as cpu / cuda; their times compare on one device alone."""

    @property
    def slug(self) -> str:
        """The name fit for a file and an id."""
        return "".join(c if c.isalnum() else "-" for c in self.name)


def known_params() -> set[str]:
    """Dotted names of params.yaml."""
    return set(_names(Params().model_dump(by_alias=True)))


def _names(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")
        yield prefix + name


def ablation(name: str, rows: Sequence[Row]) -> Ablation:
    """Group runs by the params that were swept; settings stay in the order of the file."""
    known = known_params()
    columns = list(rows[0]) if rows else []
    params = [c for c in columns if c in known and c != "seed"]
    swept = [c for c in params if len({str(row.get(c)) for row in rows}) > 1]
    # Distances in two embeddings do not compare.
    apart = {"frechet_embedding"} if any(c.startswith("embed.") for c in swept) else set()
    metrics = [
        m for m in ABLATED if m not in apart and any(isinstance(row.get(m), int | float) for row in rows)
    ]
    settings: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(str(row.get(c)) for c in swept), []).append(row)
    groups = []
    for setting, members in settings.items():
        label = ", ".join(f"{c} {v}" for c, v in zip(swept, setting, strict=True)) or "all alike"
        found = {m: spread(row.get(m) for row in members) for m in metrics}
        seeds = ", ".join(dict.fromkeys(str(row["seed"]) for row in members if row.get("seed") is not None))
        groups.append(Group(label, len(members), seeds, {m: s for m, s in found.items() if s}))
    counts = {str(row["n_wafers"]) for row in rows if row.get("n_wafers") is not None}
    devices = {str(row["device"]) for row in rows if row.get("device")}
    return Ablation(
        name, swept, metrics, groups, " / ".join(sorted(counts, key=int)), " / ".join(sorted(devices))
    )


def repeated_runs(tables: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The runs of the table in which nothing but the seed differs, if there is one."""
    for name, rows in tables.items():
        table = ablation(name, rows)
        if not table.swept and len(table.groups) == 1 and table.groups[0].runs > 1:
            return list(rows)
    return []


@dataclass(frozen=True)
class Mode:
    """Times of one way of sampling, as timing.json has them; None where it was not measured."""

    name: str
    label: str
    batch_s: float | None
    batch_q: tuple[float, float] | None
    samples_per_s: float | None
    latency_s: float | None
    latency_q: tuple[float, float] | None
    gflops: float | None


def modes(timing: Mapping[str, Any]) -> list[Mode]:
    """The modes in timing.json, in the order of the file.

    >>> [(m.name, m.latency_s) for m in modes({"device": "cpu", "full_s": 2.0, "full_latency_s": 0.1})]
    [('full', 0.1)]
    """
    names = dict.fromkeys(key.removesuffix("_latency_s") for key in timing if key.endswith("_latency_s"))

    def quartiles(key: str) -> tuple[float, float] | None:
        low, high = timing.get(f"{key}_q25"), timing.get(f"{key}_q75")
        return None if low is None or high is None else (low, high)

    return [
        Mode(
            name,
            MODES.get(name, name.replace("_", " ")),
            timing.get(f"{name}_s"),
            quartiles(f"{name}_s"),
            timing.get(f"{name}_samples_per_s"),
            timing.get(f"{name}_latency_s"),
            quartiles(f"{name}_latency_s"),
            timing.get(f"{name}_gflops_per_sample"),
        )
        for name in names
    ]


def suites(gates: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Expectations and broken ones of each suite of the quality gate.

    >>> suites({"results": [{"suite": "lots", "success": True}, {"suite": "lots", "success": False}]})
    [{'suite': 'lots', 'expectations': 2, 'broken': 1}]
    """
    counts: dict[str, list[bool]] = {}
    for result in (gates or {}).get("results", []):
        counts.setdefault(str(result["suite"]), []).append(bool(result["success"]))
    return [{"suite": n, "expectations": len(v), "broken": v.count(False)} for n, v in counts.items()]
