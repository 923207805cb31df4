"""The simulated fab keeps its word: exact posterior, lots that can be drawn again, same seed same bytes."""

import hashlib
import json

import numpy as np
import pytest

from ikddit.errors import InputError
from ikddit.params import SimulateParams
from ikddit.simulator import hotspot
from ikddit.simulator.constants import SIMULATOR_VERSION, Fab
from ikddit.simulator.logs import FEATURE_NAMES, features
from ikddit.simulator.oracle import oracle_for, posterior, wafers_for
from ikddit.simulator.wafers import draw_lots, lot_numbers
from ikddit.simulator.writer import write_dataset

PARAMS = SimulateParams(lots=24)


@pytest.fixture(scope="module")
def fab():
    return Fab.build(0)


@pytest.fixture(scope="module")
def wafers(fab):
    return draw_lots(fab, PARAMS, [int(lot) for lot in lot_numbers(PARAMS)])


@pytest.fixture(scope="module")
def exact(fab, wafers):
    return posterior(fab, wafers)


def squared_error(exact, wafers):
    valid = np.broadcast_to(wafers.valid[:, None] > 0, wafers.map.shape)
    return np.where(valid, (wafers.map - exact.mean_map()) ** 2, 0.0), valid


def test_mean_squared_z_score_of_the_truth_is_one(exact, wafers):
    error, valid = squared_error(exact, wafers)
    variance = exact.variance_map()
    assert 0.98 < (error[valid] / variance[valid]).mean() < 1.02


def test_measured_oracle_rmse_is_within_two_percent_of_the_exact_floor(exact, wafers):
    error, valid = squared_error(exact, wafers)
    per_wafer = error.sum((1, 2, 3)) / valid.sum((1, 2, 3))
    measured, stated = np.sqrt(per_wafer.mean()), np.sqrt(exact.floor_mse.mean())
    assert abs(measured / stated - 1) < 0.02


@pytest.mark.parametrize("name", ["prev", "logs", "text", "ids"])
def test_removing_an_input_raises_the_floor(fab, wafers, exact, name):
    some = wafers.take(np.arange(0, len(wafers), 6))
    less = posterior(fab, some, frozenset({name}))
    assert less.floor_mse.mean() > posterior(fab, some).floor_mse.mean() * 1.01


def test_posterior_samples_have_the_posteriors_moments(fab, wafers):
    one = posterior(fab, wafers.take(np.array([3])))
    samples = one.sample(3000, np.random.default_rng(0))[0]
    inside = wafers.valid[3] > 0
    assert np.abs(samples.mean(0) - one.mean_map()[0])[:, inside].mean() < 0.03
    ratio = samples.var(0)[:, inside] / one.variance_map()[0][:, inside]
    assert abs(ratio.mean() - 1) < 0.02


def test_hot_spot_moments_are_those_of_drawn_spots():
    rng = np.random.default_rng(0)
    from ikddit.simulator.constants import P_HOT_SPOT

    first, second = hotspot.prior_moments()
    drawn = hotspot.draw(rng, 20_000)
    drawn_first, drawn_second = np.zeros((2, *first.shape))
    for i in range(0, 20_000, 500):  # all at once they take 1.3 GB
        shifts = hotspot.shift(*(values[i : i + 500] for values in drawn))
        drawn_first += P_HOT_SPOT * shifts.sum(0) / 20_000
        drawn_second += P_HOT_SPOT * (shifts**2).sum(0) / 20_000
    assert np.abs(drawn_first - first).max() < 0.02
    assert abs(drawn_second.sum() / second.sum() - 1) < 0.03


def test_a_lot_drawn_alone_is_the_lot_of_the_full_run(fab, wafers):
    alone = draw_lots(fab, PARAMS, [int(wafers.lot[30])])
    rows = np.flatnonzero(wafers.lot == wafers.lot[30])
    assert alone.barcode == [wafers.barcode[i] for i in rows]
    assert np.array_equal(alone.map, wafers.map[rows])
    assert np.array_equal(alone.sensors, wafers.sensors[rows])


def test_chucks_alternate_in_lots_of_25(wafers):
    first = wafers.lot == wafers.lot[0]
    assert wafers.slot[first].tolist() == list(range(1, 26))
    assert set(np.abs(np.diff(wafers.chuck[first]))) == {1}


def test_log_has_128_named_features_and_marks_what_is_missing(wafers):
    values, missing = features(wafers)
    assert len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == values.shape[1] == 128
    assert np.all(values[missing] == 0)
    assert 0 < missing.mean() < 0.5


def test_flyers_are_flagged_and_large(wafers, exact):
    exposed = exact.fab.basis.exposed
    flyers = exposed & (wafers.valid == 0)
    assert 0.002 < flyers.sum() / (exposed.sum() * len(wafers)) < 0.004
    assert np.abs(wafers.map[np.broadcast_to(flyers[:, None], wafers.map.shape)]).mean() > 10


def test_same_seed_writes_the_same_bytes_and_the_oracle_knows_the_wafers(tmp_path):
    params = SimulateParams(lots=2)
    digests = []
    for name, workers in (("a", 2), ("b", 1)):
        write_dataset(params, tmp_path / name, workers)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]
    facts = json.loads((tmp_path / "a" / "dataset.json").read_text())
    drawn = draw_lots(Fab.build(0), params, [int(lot) for lot in lot_numbers(params)])
    again = oracle_for(facts, drawn.barcode[::-1])
    assert np.array_equal(again.wafers.map, drawn.map[::-1])


def test_damaged_seeds_are_named():
    facts = {"simulator_version": SIMULATOR_VERSION, "seeds": {"fab_seed": "0"}}
    with pytest.raises(InputError, match=r"dataset\.json: seeds\.fab_seed: .*; simulate the data again"):
        wafers_for(facts, [])
