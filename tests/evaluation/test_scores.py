"""Scores, against closed forms and other libraries."""

import numpy as np
import pytest

from ikddit.evaluation import scores
from ikddit.vision import make_torchvision_importable

RNG = np.random.default_rng


def test_r2_is_zero_for_the_training_mean_and_one_for_the_truth() -> None:
    measured = RNG(0).normal(size=(3, 2, 64, 64))
    mean_map = RNG(1).normal(size=(2, 64, 64))
    valid = np.ones((3, 64, 64))
    assert scores.r2(np.repeat(mean_map[None], 3, 0), measured, valid, mean_map) == pytest.approx(0.0)
    assert scores.r2(measured, measured, valid, mean_map) == 1.0


def test_r2_is_negative_for_a_forecast_worse_than_the_mean() -> None:
    measured = RNG(0).normal(size=(1, 2, 64, 64))
    valid = np.ones((1, 64, 64))
    assert scores.r2(-measured, measured, valid, np.zeros((2, 64, 64))) == pytest.approx(-3.0)


@pytest.mark.parametrize(("total", "wafers"), [(2000, 1000), (1801, 1000), (1000, 1000), (10_000, 7)])
def test_subset_takes_one_wafer_from_each_stretch_of_time(total: int, wafers: int) -> None:
    rows = scores.evaluation_subset(range(total), wafers)
    assert len(rows) == wafers
    assert (np.diff(rows) > 0).all()
    assert rows[0] >= 0
    assert rows[-1] < total
    assert np.abs(rows - np.arange(wafers) * total / wafers).max() <= total / wafers + 1


def test_subset_is_the_same_each_time_and_does_not_alias_with_the_chucks() -> None:
    rows = scores.evaluation_subset(range(2000), 1000)
    np.testing.assert_array_equal(rows, scores.evaluation_subset(range(2000), 1000))
    assert (scores.evaluation_subset(range(2000), 1000, seed=1) != rows).any()
    assert 0.45 < (rows % 2).mean() < 0.55


def test_out_of_spec_shares_are_those_counted_by_hand() -> None:
    probability = np.array([0.9, 0.4, 0.6, 0.1, 0.2])
    bad = np.array([True, True, False, False, False])
    found = scores.out_of_spec_scores(probability, bad)
    # pairs (bad, good) ranked rightly: 0.9 beats all 3, 0.4 beats 2 of 3.
    assert found == pytest.approx({"auc": 5 / 6, "false_pass": 1 / 2, "false_rework": 1 / 3})


def test_out_of_spec_figures_without_a_case_are_absent() -> None:
    assert scores.out_of_spec_scores(np.array([0.1, 0.7]), np.array([False, False])) == {"false_rework": 0.5}


def test_frechet_of_diagonal_gaussians_has_a_closed_form() -> None:
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 9.0])
    shift = np.array([1.0, -2.0, 0.0])
    expected = (shift**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = scores.frechet_from_moments(np.zeros(3), np.diag(a), shift, np.diag(b))
    assert found == pytest.approx(expected)


def test_frechet_agrees_with_pytorch_fid() -> None:
    make_torchvision_importable()
    from pytorch_fid import fid_score

    rng = RNG(0)
    a = rng.normal(size=(500, 24)) @ rng.normal(size=(24, 24))
    b = rng.normal(size=(400, 24)) @ rng.normal(size=(24, 24)) + 0.5
    expected = fid_score.calculate_frechet_distance(*scores.gaussian_of(a), *scores.gaussian_of(b))
    assert scores.frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_of_a_set_with_itself_is_zero_even_when_singular() -> None:
    few = RNG(0).normal(size=(5, 16))
    assert scores.frechet_distance(few, few) == pytest.approx(0.0, abs=1e-6)
