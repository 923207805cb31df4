"""fid.json as a table: generated against measured maps, beside what measured maps have among themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ikddit.evaluation.report.sources import Row
from ikddit.evaluation.report.summary import Spread, spread
from ikddit.evaluation.report.tables import flat

GROUPS = ("fid15k", "fid")
"""The Frechet distances stand in one of these; the first means 15,000 maps."""
NOT_FIGURES = ("reference", "weights", "settings")
COUNTS = ("n", "wafers")
DEVIATIONS = ("_sd", "_subset_sd", "_split_sd")
"""Endings of a figure's standard deviation, which say over what it was taken."""


@dataclass(frozen=True)
class FidRow:
    """One figure."""

    name: str
    """As in fid.json, dotted."""
    value: float
    interval: tuple[float, float] | None
    sd: float | None
    halves: float | None
    """The same figure between two halves of the measured maps."""
    test: float | None
    """The same figure of the test split's measured maps against all measured maps."""
    seeds: Spread | None
    """Over runs that differ in their seed alone; None where fewer than two have the figure."""


def fid_title(fid: Mapping[str, Any]) -> str:
    """What the figures are of, in words.

    >>> fid_title({"fid": {"n": 24, "wafers": 6}, "settings": {"seed": 1, "device": "cpu"}})
    '24 generated maps of 6 wafers, seed 1, cpu'
    """
    group: Mapping[str, Any] = next((fid[name] for name in GROUPS if name in fid), {})
    settings, reference = fid.get("settings", {}), fid.get("reference", {})
    parts = []
    if "n" in group:
        wafers = f" of {group['wafers']:,} wafers" if "wafers" in group else ""
        parts.append(f"{group['n']:,} generated maps{wafers}")
    if isinstance(reference, Mapping) and "n" in reference:
        parts.append(f"{reference['n']:,} measured maps")
    parts += [f"seed {settings['seed']}"] if "seed" in settings else []
    parts += [str(settings["device"])] if "device" in settings else []
    return ", ".join(parts)


def fid_rows(fid: Mapping[str, Any], repeated: Sequence[Row] = ()) -> list[FidRow]:
    """Every figure with its interval or standard deviation (of KID over its subsets, of IS over its splits).

    Args:
        fid: what fid.json holds.
        repeated: runs that differ in their seed alone, with the same figures by dotted name.

    >>> rows = fid_rows({"fid": {"n": 4, "a": 2.0, "a_low": 1.0, "a_high": 3.0}, "kid": 0.5, "kid_subset_sd": 0.1})
    >>> [(row.name, row.value, row.interval, row.sd) for row in rows]
    [('fid.a', 2.0, (1.0, 3.0), None), ('kid', 0.5, None, 0.1)]
    """
    numbers = {
        name: value
        for name, value in flat({k: v for k, v in fid.items() if k not in NOT_FIGURES})
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    halves, test = _measured(fid, "halves"), _measured(fid, "test")
    rows = []
    for name, value in numbers.items():
        endings = ("_low", "_high", *DEVIATIONS)
        of_another = any(name.endswith(end) and name.removesuffix(end) in numbers for end in endings)
        if name.rsplit(".", 1)[-1] in COUNTS or of_another:
            continue
        low, high = numbers.get(f"{name}_low"), numbers.get(f"{name}_high")
        short = name.split(".", 1)[-1]
        seeds = spread(row.get(name) for row in repeated)
        rows.append(
            FidRow(
                name,
                float(value),
                None if low is None or high is None else (float(low), float(high)),
                next((numbers[name + end] for end in DEVIATIONS if name + end in numbers), None),
                halves.get(short),
                test.get(short),
                seeds if seeds is not None and len(seeds.values) > 1 else None,
            )
        )
    return rows


def _measured(fid: Mapping[str, Any], name: str) -> dict[str, float]:
    """Figures of measured against measured maps, by their names without a group."""
    reference = fid.get("reference")
    found = flat(reference.get(name) or {}) if isinstance(reference, Mapping) else []
    return {key: float(value) for key, value in found if isinstance(value, int | float)}
