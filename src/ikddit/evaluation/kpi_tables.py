"""Overlay KPIs of every model by axis, zone, chuck and scanner; OME over tau. Long tables, one figure a column.

Errors pool all valid axis-marks of a group. M3S and the 99.7 percentile are of one wafer and axis, as a fab reads
them, and averaged over the group's. Correctable shares are of the mean square over the group's marks, for
least-squares fits over each wafer's own valid marks: the 6- and 10-parameter linear models, and `k`: wafer grid and
intra-field polynomials of third order together (38 parameters).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Shaped

from ikddit.evaluation.marks import ZONES, Marks
from ikddit.overlay.kpi import high_percentile
from ikddit.overlay.terms import Basis, Fitter, grid_basis, intrafield_basis, linear_basis

TAUS_NM = tuple(0.25 * i for i in range(1, 21))
"""Of the OME curve: 0.25 to 5 nm."""
AXES = ("x", "y")
BOTH = (0, 1)
"""Zones of the whole wafer."""
ZONE_SETS: tuple[tuple[int, ...], ...] = (BOTH, (0,), (1,))
SamplesM3S = Mapping[tuple[int, ...], Float[np.ndarray, "n m 2"]]
"""M3S of sampled maps by zones, nm."""
_FEW = 16


def correction_models() -> dict[str, Basis]:
    """The correction models of the table by the name their columns carry."""
    third = grid_basis(3) + intrafield_basis(3, translation=False)
    return {"6": linear_basis(6), "10": linear_basis(10), "k": third}


def fitters_of(valid: Shaped[np.ndarray, "n 64 64"]) -> dict[str, Fitter]:
    """The correction models for wafers with these masks."""
    return {name: Fitter.of(basis, valid) for name, basis in correction_models().items()}


@dataclass(frozen=True)
class Cell:
    """A group of the table: which wafers, axes and zones it pools."""

    group: str
    level: str
    rows: Bool[np.ndarray, " n"]
    axes: tuple[int, ...] = (0, 1)
    zones: tuple[int, ...] = (0, 1)


def cells(wafers: pa.Table) -> list[Cell]:
    """All wafers; each axis; each zone; each chuck; each scanner (wafers that do not name one are in none)."""
    every = np.ones(wafers.num_rows, bool)
    out = [Cell("all", "all", every)]
    out += [Cell("axis", name, every, axes=(i,)) for i, name in enumerate(AXES)]
    out += [Cell("zone", name, every, zones=(i,)) for i, name in enumerate(ZONES)]
    for group in ("chuck", "scanner"):
        names = wafers.column(f"{group}_id").to_pylist()
        for level in sorted({str(name) for name in names if name is not None}):
            out.append(Cell(group, level, np.array([name == level for name in names])))
    return out


@dataclass(frozen=True)
class Scored:
    """Sums of one model's maps per wafer, axis and zone, from which every cell is made."""

    error_sq: Float[np.ndarray, "n 2 2"]
    beyond: Float[np.ndarray, "n 2 2"]
    total: Float[np.ndarray, "n 2 2"]
    squares: Float[np.ndarray, "n 2 2"]
    rest: dict[str, tuple[np.ndarray, np.ndarray]]
    """Sums and squares of what each correction model leaves."""
    p997: dict[tuple[int, ...], np.ndarray]
    """Of |map|, by zones."""
    p997_error: dict[tuple[int, ...], np.ndarray]


class KpiTable:
    """Scores models on the same wafers: what depends on the masks alone is computed once.

    Args:
        measured: maps, nm.
        valid: their masks.
        wafers: columns `chuck_id`, `scanner_id` of the same wafers.
        tau_nm: of OME.
        fitters: `fitters_of` these masks, if they are built already.
    """

    def __init__(
        self,
        measured: np.ndarray,
        valid: np.ndarray,
        wafers: pa.Table,
        tau_nm: float,
        fitters: Mapping[str, Fitter] | None = None,
    ) -> None:
        self._marks, self._tau_nm = Marks.of(valid), tau_nm
        self._measured = self._marks.rows(measured)
        self._cells = cells(wafers)
        self._fits: dict[str, tuple[Fitter, np.ndarray]] = {}
        for name, fitter in (fitters or fitters_of(valid)).items():
            patterns = fitter.patterns[..., self._marks.order].astype(np.float32)
            self._fits[name] = fitter, patterns
        self._reference = self._score(measured)

    def rows(
        self, name: str, maps: np.ndarray, samples: SamplesM3S | None = None
    ) -> Iterator[dict[str, Any]]:
        """The lines of one model.

        Args:
            name: of the model.
            maps: its point forecast, nm.
            samples: if it has them, their M3S by zones: M3S is forecast by their average and compared with the
                measured one; the M3S of a mean map lacks the noise of a wafer, and its error would say so and nothing
                else.
        """
        scored = self._score(maps)
        m3s = None if samples is None else {zones: values.mean(axis=1) for zones, values in samples.items()}
        for cell in self._cells:
            yield {"model": name, **self._line(cell, scored, m3s)}

    def measured_rows(self) -> Iterator[dict[str, Any]]:
        """The lines of the measurement itself: what there is to forecast and to correct."""
        for cell in self._cells:
            line = self._line(cell, self._reference, None)
            yield {"model": "measured", **{k: v for k, v in line.items() if k not in _OF_A_FORECAST}}

    def ome_curve(self, maps: np.ndarray) -> list[float]:
        """Share of axis-marks further than tau from the measurement, for each of `TAUS_NM`."""
        error = np.abs(self._marks.rows(maps) - self._measured)
        count = 2 * self._marks.counts.sum()
        return [float(np.count_nonzero(error > tau) / count) for tau in TAUS_NM]

    def _score(self, maps: np.ndarray) -> Scored:
        marks = self._marks
        values = marks.rows(maps)
        error = np.abs(values - self._measured)
        rest = {}
        for name, (fitter, patterns) in self._fits.items():
            fit = fitter.coefficients(maps).astype(np.float32)
            fitted = np.stack([fit[:, axis] @ patterns[axis] for axis in (0, 1)], axis=1)
            left = np.where(marks.valid[:, None], values - fitted, np.float32(0))
            rest[name] = marks.sums(left), marks.sums(left**2)
        return Scored(
            error_sq=marks.sums(error**2),
            beyond=marks.sums(error > self._tau_nm),
            total=marks.sums(values),
            squares=marks.sums(values**2),
            rest=rest,
            p997={zones: self._p997(np.abs(values), zones) for zones in ZONE_SETS},
            p997_error={zones: self._p997(error, zones) for zones in ZONE_SETS},
        )

    def _p997(self, size: np.ndarray, zones: tuple[int, ...]) -> np.ndarray:
        part = slice(None) if len(zones) == 2 else self._marks.zone(ZONES[zones[0]])
        inside = self._marks.valid[:, None, part]
        return high_percentile(np.where(inside, size[..., part], np.float32(-1)), 99.7)

    def _line(
        self, cell: Cell, scored: Scored, m3s_samples: Mapping[tuple[int, ...], np.ndarray] | None
    ) -> dict[str, Any]:
        def pool(values: np.ndarray) -> float:
            return float(values[np.ix_(cell.rows, np.array(cell.axes), np.array(cell.zones))].sum())

        def mean(per_wafer: np.ndarray) -> float:
            return _mean(per_wafer[np.ix_(cell.rows, np.array(cell.axes))])

        count = np.repeat(self._marks.counts, 2, axis=1)
        marks = pool(count)
        measured = _m3s(count, self._reference.total, self._reference.squares, cell.zones)
        own = _m3s(count, scored.total, scored.squares, cell.zones)
        forecast = own if m3s_samples is None else m3s_samples[cell.zones]
        line: dict[str, Any] = {
            "group": cell.group,
            "level": cell.level,
            "n_wafers": int(cell.rows.sum()),
            "n_marks": int(marks),
            "rmse_nm": _root(_ratio(pool(scored.error_sq), marks)),
            "ome": _ratio(pool(scored.beyond), marks),
            "m3s_measured_nm": mean(measured),
            "m3s_forecast_nm": mean(forecast),
            "m3s_error_nm": None,
            "p997_nm": mean(scored.p997[cell.zones]),
            "p997_error_nm": mean(scored.p997_error[cell.zones]),
        }
        if m3s_samples is not None:
            line["m3s_error_nm"] = _root(mean((forecast - measured) ** 2))
        squares = pool(scored.squares)
        for name, (_, left) in scored.rest.items():
            line[f"correctable_{name}"] = 1 - pool(left) / squares if squares else None
        for name, (total, left) in scored.rest.items():
            line[f"nce_m3s_{name}_nm"] = mean(_m3s(count, total, left, cell.zones))
        return line


def samples_m3s_by_zones(
    samples: Shaped[np.ndarray, "n m 2 64 64"], valid: Shaped[np.ndarray, "n 64 64"]
) -> SamplesM3S:
    """M3S of each sampled map and axis over its wafer's usable marks, nm, for every zone, in one walk."""
    every = Marks.of(valid)
    found: dict[tuple[int, ...], list[np.ndarray]] = {zones: [] for zones in ZONE_SETS}
    for start in range(0, max(len(samples), 1), _FEW):
        part = samples[start : start + _FEW]
        # a sample is a wafer with the mask of its own one
        marks = replace(every, valid=np.repeat(every.valid[start : start + _FEW], part.shape[1], axis=0))
        values = marks.rows(part.reshape(-1, 2, 64, 64))
        sums = marks.counts, marks.sums(values), marks.sums(values**2)
        for zones, parts in found.items():
            parts.append(_m3s(*sums, zones).reshape(*part.shape[:2], 2))
    return {zones: np.concatenate(parts) for zones, parts in found.items()}


def _m3s(count: np.ndarray, total: np.ndarray, squares: np.ndarray, zones: Sequence[int]) -> np.ndarray:
    """M3S per wafer and axis over some zones, from sums; NaN without a mark."""
    marks, first, second = (values[..., list(zones)].sum(axis=-1) for values in (count, total, squares))
    marks = np.where(marks > 0, marks, np.nan)
    mean = first / marks
    return np.asarray(np.abs(mean) + 3 * np.sqrt(np.maximum(second / marks - mean**2, 0.0)))


_OF_A_FORECAST = ("rmse_nm", "ome", "m3s_forecast_nm", "m3s_error_nm", "p997_error_nm")


def _ratio(value: float, by: float) -> float:
    return value / by if by else float("nan")


def _root(value: float) -> float:
    return float(np.sqrt(value))


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
