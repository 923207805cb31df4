"""A forced step of one scanner: exactly there, exactly that large, and known to the oracle."""

import json

import numpy as np
import pytest

from ikddit.errors import ParamsError
from ikddit.overlay.terms import fit_terms, linear_basis
from ikddit.params import ShiftParams, SimulateParams, parse_params
from ikddit.simulator.constants import SCANNER_IDS, Fab
from ikddit.simulator.oracle import posterior, wafers_for
from ikddit.simulator.wafers import MINUTES_PER_DAY, draw_lots, lot_numbers
from ikddit.simulator.writer import write_dataset

PLAIN = SimulateParams(lots=24, days=60.0)
SHIFT = ShiftParams(scanner="LITH03", day=30.0, nm=3.0)
SHIFTED = PLAIN.model_copy(update={"shift": SHIFT})


@pytest.fixture(scope="module")
def fab() -> Fab:
    return Fab.build(0)


def test_step_is_on_that_scanner_from_that_day_and_nowhere_else(fab: Fab) -> None:
    lots = [int(lot) for lot in lot_numbers(PLAIN)]
    before, after = draw_lots(fab, PLAIN, lots), draw_lots(fab, SHIFTED, lots)
    hit = (before.scanner == SCANNER_IDS.index("LITH03")) & (before.lot / MINUTES_PER_DAY >= 30.0)
    assert 0 < hit.sum() < len(before)
    terms = fit_terms(linear_basis(6), after.map - before.map, before.valid)
    assert np.allclose(terms[hit][:, :, 0], 3.0, atol=1e-3)
    assert np.array_equal(after.map[~hit], before.map[~hit])
    assert np.array_equal(after.prev_map, before.prev_map)
    assert np.array_equal(after.sensors, before.sensors)


def test_oracle_of_a_shifted_data_set_knows_of_the_step(fab: Fab) -> None:
    lots = [int(lot) for lot in lot_numbers(SHIFTED)]
    plain, shifted = draw_lots(fab, PLAIN, lots), draw_lots(fab, SHIFTED, lots)
    known, unknown = posterior(fab, shifted), posterior(fab, plain)
    assert np.allclose(known.floor_mse, unknown.floor_mse)
    assert np.abs((shifted.map - known.mean_map()) - (plain.map - unknown.mean_map())).max() < 1e-4


def test_dataset_json_carries_the_step_and_says_nothing_where_there_is_none(tmp_path, fab: Fab) -> None:
    small = {"lots": 1, "from_day": 40.0, "days": 1.0}
    plain = write_dataset(SimulateParams(**small), tmp_path / "plain", workers=1)
    assert "shift" not in plain["seeds"]
    lot = int(lot_numbers(SimulateParams(**small))[0])
    scanner = SCANNER_IDS[int(draw_lots(fab, SimulateParams(**small), [lot]).scanner[0])]
    step = ShiftParams(scanner=scanner, day=0.0, nm=-2.0)
    write_dataset(SimulateParams(**small, shift=step), tmp_path / "shifted", workers=1)
    facts = json.loads((tmp_path / "shifted" / "dataset.json").read_text())
    _, again = wafers_for(facts, [f"F0S0L{lot:07d}W01"])
    assert again.step_nm.tolist() == [-2.0]


def test_unknown_scanner_is_refused_by_name() -> None:
    with pytest.raises(ParamsError, match=r"simulate\.shift\.scanner"):
        parse_params({"simulate": {"shift": {"scanner": "LITH09", "day": 1.0, "nm": 1.0}}})
