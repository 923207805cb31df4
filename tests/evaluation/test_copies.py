"""Memorisation: a planted copy is found, a generator that makes new wafers is not accused."""

import numpy as np
import pytest
from evaluation_fakes import patterns

from ikddit.evaluation.copies import codes, copies, nearest_nm
from ikddit.evaluation.kpi_tables import correction_models
from ikddit.overlay.grid import wafer_grid
from ikddit.overlay.terms import Fitter

BASIS = correction_models()["k"]


def fab(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(count, 6))
    return np.einsum("nk,kaij->naij", weights, patterns(6)) + 0.3 * rng.normal(size=(count, 2, 64, 64))


def test_nearest_is_that_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    wanted, train = rng.normal(size=(7, 5)), rng.normal(size=(40, 5))
    every = np.linalg.norm(wanted[:, None] - train[None], axis=-1).min(1)
    np.testing.assert_allclose(nearest_nm(wanted, train), every, rtol=1e-6)


def test_planted_copies_are_found_under_other_masks() -> None:
    train, test, new = fab(300, 0), fab(60, 1), fab(60, 2)
    whole = np.broadcast_to(wafer_grid().usable, (300, 64, 64))
    valid = np.random.default_rng(3).random((60, 64, 64)) < 0.97
    fitter = Fitter.of(BASIS, valid)
    known, measured = codes(train, Fitter.of(BASIS, whole)), codes(test, fitter)
    honest = copies(codes(new, fitter), measured, known)
    assert honest.ratio == pytest.approx(1.0, abs=0.15)
    assert honest.share <= 0.05
    new[:15] = train[:15] + 0.05 * np.random.default_rng(4).normal(size=(15, 2, 64, 64))
    assert copies(codes(new, fitter), measured, known).share == pytest.approx(15 / 60, abs=0.05)
    all_copied = copies(codes(train[:60], fitter), measured, known)
    assert all_copied.ratio < 0.2
    assert all_copied.share == 1.0


def test_as_many_of_the_one_as_of_the_other() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        copies(np.zeros((2, 3)), np.zeros((3, 3)), np.zeros((4, 3)))
