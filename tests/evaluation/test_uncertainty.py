"""Uncertainty figures against closed forms, brute force, and the simulator's exact posterior."""

import tracemalloc

import numpy as np
import pytest
import scoringrules
from evaluation_fakes import ensemble
from scipy.stats import norm

from ikddit.evaluation.kpi_tables import correction_models
from ikddit.evaluation.marks import Marks
from ikddit.evaluation.uncertainty import (
    energy_score_nm,
    ensemble_scores,
    exact_sigma_nm,
    m3s_coverage,
)
from ikddit.overlay import kpi
from ikddit.overlay.grid import EDGE_ZONE_MM, wafer_grid
from ikddit.overlay.terms import linear_basis
from ikddit.params import SimulateParams
from ikddit.simulator.constants import SIMULATOR_VERSION, Fab
from ikddit.simulator.oracle import oracle_for
from ikddit.simulator.wafers import draw_lots, lot_numbers
from made_maps import term_maps

GRID = wafer_grid()
EDGE = GRID.usable & (GRID.radius_mm > EDGE_ZONE_MM)


def test_crps_is_that_of_the_plain_score_and_of_the_closed_form() -> None:
    drawn, measured, valid = ensemble()
    found = ensemble_scores(drawn, measured, valid)
    inside = np.broadcast_to(valid[:, None] != 0, measured.shape)
    members = np.moveaxis(drawn, 1, -1)[inside].astype(np.float64)
    plain = scoringrules.crps_ensemble(measured[inside].astype(np.float64), members, estimator="fair")
    assert found.crps_nm == pytest.approx(plain.mean(), rel=1e-5)
    # of N(0, 1) against N(0, s^2), s = 2: sqrt(2) sqrt(1 + s^2)/sqrt(pi) - s/sqrt(pi)
    wide = ensemble_scores(*ensemble(spread=2.0, seed=1))
    assert wide.crps_nm == pytest.approx((np.sqrt(2 * 5) - 2) / np.sqrt(np.pi), rel=0.01)


@pytest.mark.parametrize("samples", [3, 15])
def test_a_calibrated_ensemble_is_calibrated_at_any_size(samples: int) -> None:
    found = ensemble_scores(*ensemble(samples=samples))
    for level, share in found.covered.items():
        assert share == pytest.approx(level, abs=0.01)
    assert found.spread_skill() == pytest.approx(1.0, abs=0.02)
    assert found.spread_skill("edge") == pytest.approx(1.0, abs=0.03)
    assert found.sigma_nm("centre") == pytest.approx(1.0, abs=0.02)
    assert found.rmse_nm() == pytest.approx(np.sqrt(1 + 1 / samples), abs=0.02)
    share = found.ranks / found.ranks.sum()
    assert np.abs(share - 1 / (samples + 1)).max() < 0.006


def test_overconfident_ensemble_covers_too_little_and_its_outer_ranks_are_full() -> None:
    found = ensemble_scores(*ensemble(spread=0.5))
    assert found.covered[0.9] < 0.65
    assert found.spread_skill() < 0.6
    share = found.ranks / found.ranks.sum()
    assert share[0] > 2 * share[7]
    assert share[-1] > 2 * share[7]


def test_figures_are_those_of_a_plain_walk_over_the_valid_marks() -> None:
    drawn, measured, valid = ensemble(wafers=2, samples=4)
    found = ensemble_scores(drawn, measured, valid)
    inside = np.broadcast_to(valid[:, None] != 0, measured.shape)
    members, truth = np.moveaxis(drawn, 1, -1)[inside].astype(np.float64), measured[inside].astype(np.float64)
    below = (members < truth[:, None]).sum(1)
    np.testing.assert_array_equal(found.ranks, np.bincount(below, minlength=5))
    edge = np.broadcast_to((valid * EDGE)[:, None] != 0, measured.shape)
    spread = np.moveaxis(drawn, 1, -1)[edge].astype(np.float64).var(1, ddof=1)
    assert found.sigma_nm("edge") == pytest.approx(np.sqrt(spread.mean()), rel=1e-5)
    assert found.count.tolist() == [inside.sum() - edge.sum(), edge.sum()]


def test_equal_values_share_their_ranks() -> None:
    _, measured, valid = ensemble(wafers=4)
    drawn = np.repeat(np.nan_to_num(measured)[:, None], 3, axis=1)
    found = ensemble_scores(drawn, measured, valid)
    np.testing.assert_allclose(found.ranks / found.ranks.sum(), 0.25, atol=0.01)
    assert found.covered[0.5] == 1.0  # no spread and no error


def test_ensembles_that_cannot_be_scored_are_refused() -> None:
    drawn, measured, valid = ensemble(wafers=2, samples=2)
    with pytest.raises(ValueError, match="two samples"):
        ensemble_scores(drawn[:, :1], measured, valid)
    with pytest.raises(ValueError, match="wafer counts differ"):
        ensemble_scores(drawn[:1], measured, valid)


def test_memory_does_not_grow_with_the_wafers() -> None:
    drawn, measured, valid = ensemble(wafers=32)
    tracemalloc.start()
    ensemble_scores(drawn, measured, valid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_energy_score_is_that_of_every_pair() -> None:
    rng = np.random.default_rng(5)
    basis = linear_basis(6)
    valid = np.ones((3, 64, 64), np.uint8)
    truth, members = rng.normal(size=(3, 2, 3)), rng.normal(size=(3, 4, 2, 3))
    from ikddit.overlay.terms import Fitter

    fitter = Fitter.of(basis, valid)
    back = fitter.back  # terms = back @ orthonormal coefficients
    measured = term_maps(basis, np.einsum("atk,nak->nat", back, truth))
    drawn = np.stack([term_maps(basis, np.einsum("atk,nak->nat", back, members[:, i])) for i in range(4)], 1)
    expected = []
    for y, x in zip(truth.reshape(3, -1), members.reshape(3, 4, -1), strict=True):
        first = np.mean([np.linalg.norm(a - y) for a in x])
        second = sum(np.linalg.norm(a - b) for a in x for b in x) / (2 * 4 * 3)
        expected.append(first - second)
    assert energy_score_nm(drawn, measured, fitter) == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.fixture(scope="module")
def posterior():
    params = SimulateParams(lots=8, days=60.0)
    drawn = draw_lots(Fab.build(params.fab_seed), params, list(lot_numbers(params)))
    dataset = {"seeds": params.model_dump(), "simulator_version": SIMULATOR_VERSION}
    return oracle_for(dataset, list(drawn.barcode[:120])), drawn.take(np.arange(120))


def test_the_oracles_own_samples_are_as_sharp_and_as_wide_as_they_should_be(posterior) -> None:
    oracle, wafers = posterior
    samples = oracle.sample(9, np.random.default_rng(1))
    measured, valid = (
        samples[:, 8],
        wafers.valid,
    )  # one more draw is a truth that the others are exchangeable with
    found = ensemble_scores(samples[:, :8], measured, valid)
    for level, share in found.covered.items():
        assert share == pytest.approx(level, abs=0.02)
    exact = exact_sigma_nm(np.sqrt(oracle.variance_map()), valid)
    for zone in (None, "centre", "edge"):
        assert found.sigma_nm(zone) / exact[zone] == pytest.approx(1.0, abs=0.02)
    share = found.ranks / found.ranks.sum()
    assert np.abs(share - 1 / 9).max() < 0.01
    m3s = kpi.samples_m3s_nm(samples, valid)
    assert m3s_coverage(m3s[:, :8], m3s[:, 8], 0.9) == pytest.approx(0.9, abs=0.05)
    # the measured wafers themselves are draws too
    real = ensemble_scores(samples, wafers.map, valid)
    assert real.covered[0.9] == pytest.approx(0.9, abs=0.03)
    assert real.spread_skill() == pytest.approx(1.0, abs=0.06)


def test_exact_sigma_is_the_root_mean_square_over_a_zones_marks() -> None:
    valid = np.zeros((1, 64, 64), np.uint8)
    valid[0, 32, 30:34] = 1
    sd = np.ones((1, 2, 64, 64))
    sd[0, 0, 32, 30] = 3.0
    found = exact_sigma_nm(sd, valid)
    assert found["centre"] == found[None] == pytest.approx(np.sqrt((7 + 9) / 8))
    assert np.isnan(found["edge"])


def test_marks_come_zone_by_zone_and_blank_what_is_invalid() -> None:
    maps = np.full((1, 2, 64, 64), np.nan)
    valid = np.zeros((1, 64, 64))
    valid[0, 32, 32] = 1
    maps[0, :, 32, 32] = 2.0
    marks = Marks.of(valid)
    assert len(marks.pixels) == GRID.usable.sum()
    assert len(marks.pixels) - marks.split == EDGE.sum()
    assert marks.sums(marks.rows(maps)).tolist() == [[[2.0, 0.0], [2.0, 0.0]]]
    assert marks.counts.tolist() == [[[1.0, 0.0]]]


def test_normal_law_of_m3s_is_covered() -> None:
    rng = np.random.default_rng(0)
    drawn = np.exp(norm.rvs(2.0, 0.2, (4000, 9, 2), random_state=rng))
    assert m3s_coverage(drawn[:, :8], drawn[:, 8], 0.8) == pytest.approx(0.8, abs=0.015)


def test_all_correction_models_name_what_they_leave() -> None:
    assert [2 * basis.design.shape[1] for basis in correction_models().values()] == [6, 10, 38]
