"""The noise floor of a data set, summed lot by lot."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ikddit.params import SimulateParams
from ikddit.simulator.constants import SD_TMU, Fab
from ikddit.simulator.oracle import Posterior, posterior
from ikddit.simulator.wafers import Wafers

WITHHELD = ("prev", "logs", "text", "ids")
SUBSET_LOTS = 20
"""Lots, at least, on which floors with an input withheld and OME are computed, evenly spaced in time: 20 to 39 of
them (500 wafers and more), or all where there are fewer."""
TAU_NM = 1.5


@dataclass(frozen=True)
class LotFloor:
    """Sums of one lot from which the floors of the data set follow."""

    wafers: int
    marks: int
    expected_se: float
    """Sum over valid marks and both axes of the least expected squared error, nm^2."""
    measured_se: float
    """The same of the oracle's forecast against the drawn maps."""
    withheld: dict[str, float] = field(default_factory=dict)
    """`expected_se` by input withheld; empty outside the subset."""
    beyond_tau: float = 0.0


def subset_stride(params: SimulateParams) -> int:
    """Every how many lots the dear floors are computed."""
    return max(1, params.lots // SUBSET_LOTS)


def lot_floor(fab: Fab, wafers: Wafers, withheld: bool) -> LotFloor:
    """Compute the sums of one lot; `withheld` adds the floors with an input withheld."""
    full = posterior(fab, wafers)
    error = (wafers.map - full.mean_map()) * wafers.valid[:, None]
    return LotFloor(
        wafers=len(wafers),
        marks=int(wafers.valid.sum()),
        expected_se=_expected_se(full),
        measured_se=float((error**2).sum()),
        withheld={name: _expected_se(posterior(fab, wafers, frozenset({name}))) for name in WITHHELD}
        if withheld
        else {},
        beyond_tau=float((full.ome(TAU_NM) * 2 * wafers.valid.sum((1, 2))).sum()) if withheld else 0.0,
    )


def _expected_se(known: Posterior) -> float:
    return float((known.floor_mse * 2 * known.wafers.valid.sum((1, 2))).sum())


def floor_report(params: SimulateParams, floors: list[LotFloor]) -> dict[str, Any]:
    """Build the `floor` section of dataset.json from the sums of all lots, in lot order."""
    values = 2 * sum(f.marks for f in floors)
    mse = math.fsum(f.expected_se for f in floors) / values
    quantisation = (2 * params.scale_nm / 255.0) ** 2 / 12.0
    subset = [f for f in floors if f.withheld]
    subset_values = 2 * sum(f.marks for f in subset)
    exact = not params.unflagged_flyers

    def without(name: str) -> dict[str, Any]:
        se = math.fsum(f.withheld[name] for f in subset)
        return {"rmse_nm": _root(se / subset_values), "exact": exact and name != "ids"}

    report = {
        "rmse_nm": _root(mse),
        "exact": exact,
        "against": "measured map (float, TMU included), valid marks, both axes, each wafer on its own inputs",
        "wafers": sum(f.wafers for f in floors),
        "oracle_measured_rmse_nm": _root(math.fsum(f.measured_se for f in floors) / values),
        "rmse_png_nm": _root(mse + quantisation),
        "png_quantisation_rms_nm": _root(quantisation),
        "rmse_true_map_nm": _root(mse - SD_TMU**2),
        "subset": {
            "wafers": sum(f.wafers for f in subset),
            "rmse_nm": _root(math.fsum(f.expected_se for f in subset) / subset_values),
            f"ome_{str(TAU_NM).replace('.', 'p')}": round(
                math.fsum(f.beyond_tau for f in subset) / subset_values, 6
            ),
            "without": {name: without(name) for name in WITHHELD},
            "note": "without ids: best linear forecast over the fab's machines, lens heating known",
        },
    }
    if not exact:
        report["note"] = (
            "unflagged flyers: the figures assume flyers are flagged and are below the true floor"
        )
    return report


def _root(mse: float) -> float:
    return round(float(np.sqrt(mse)), 6)
