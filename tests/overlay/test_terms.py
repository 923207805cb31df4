"""Linear overlay models on masked maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikddit.errors import InputError
from ikddit.overlay.grid import wafer_grid
from ikddit.overlay.terms import (
    Basis,
    fit_terms,
    grid_basis,
    intrafield_basis,
    linear_basis,
    orthonormal,
)
from made_maps import term_maps

GRID = wafer_grid()


def masks(count: int, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((count, 64, 64)) < share) & GRID.usable


def plant(basis: Basis, count: int, seed: int = 0) -> np.ndarray:
    """Coefficients that each move the map by about 1 nm."""
    size = np.sqrt((basis.design[:, :, GRID.usable] ** 2).mean(axis=2))
    return np.random.default_rng(seed).normal(size=(count, *size.shape)) / size


@pytest.mark.parametrize(
    ("basis", "parameters"),
    [
        (linear_basis(6), 6),
        (linear_basis(10), 10),
        (linear_basis(10, reference="mark"), 10),
        (intrafield_basis(1), 6),
        (intrafield_basis(2), 12),
        (intrafield_basis(3), 20),
        (grid_basis(3), 20),
        (grid_basis(5), 42),
        (grid_basis(3) + intrafield_basis(3, translation=False), 38),
    ],
)
def test_planted_coefficients_are_recovered_under_a_mask(basis: Basis, parameters: int) -> None:
    planted = plant(basis, 5)
    valid = masks(5, 0.4)
    maps = np.where(valid[:, None], term_maps(basis, planted), np.nan)
    found = fit_terms(basis, maps, valid)
    assert planted[0].size == parameters
    np.testing.assert_allclose(found, planted, rtol=1e-6, atol=1e-9)


def test_fit_agrees_with_numpy_lstsq_on_noise() -> None:
    basis = grid_basis(3) + intrafield_basis(3, translation=False)
    maps = np.random.default_rng(1).normal(size=(2, 2, 64, 64))
    valid = masks(2, 0.7, seed=2)
    found = fit_terms(basis, maps, valid)
    for wafer in range(2):
        for axis in range(2):
            columns = basis.design[axis][:, valid[wafer]].T
            scale = np.abs(columns).max(axis=0)
            expected = np.linalg.lstsq(columns / scale, maps[wafer, axis][valid[wafer]])[0]
            np.testing.assert_allclose(found[wafer, axis] * scale, expected, rtol=1e-6, atol=1e-9)


def test_ten_parameters_match_the_textbook_formula_at_one_mark() -> None:
    tx, mx, rx, fmx, frx = 1.0, 0.02, -0.01, 0.05, 0.03
    ty, my, ry, fmy, fry = -2.0, 0.01, 0.02, -0.04, 0.06
    terms = np.array([[[tx, mx, rx, fmx, frx], [ty, my, ry, fmy, fry]]])
    row, col = 11, 50
    big_x, big_y = GRID.field_x_mm[row, col], GRID.field_y_mm[row, col]
    x, y = GRID.x_mm[row, col] - big_x, GRID.y_mm[row, col] - big_y
    dx, dy = term_maps(linear_basis(10), terms)[0, :, row, col]
    assert (abs(x), abs(y)) != (0.0, 0.0)
    assert dx == pytest.approx(tx + mx * big_x - rx * big_y + fmx * x - frx * y)
    assert dy == pytest.approx(ty + my * big_y + ry * big_x + fmy * y + fry * x)


def test_one_ppm_of_magnification_moves_a_field_100_mm_out_by_100_nm() -> None:
    terms = np.zeros((1, 2, 3))
    terms[0, 0, 1] = 1.0
    dx = term_maps(linear_basis(6), terms)[0, 0]
    field = GRID.field_x_mm == 104.0
    assert np.unique(dx[field]).tolist() == [104.0]


def test_a_mark_reference_gives_the_magnification_to_the_wafer_alone() -> None:
    stretched = np.zeros((1, 2, 64, 64))
    stretched[0, 0] = 0.01 * GRID.x_mm
    by_field = fit_terms(linear_basis(10), stretched, GRID.usable[None])[0, 0]
    by_mark = fit_terms(linear_basis(10, reference="mark"), stretched, GRID.usable[None])[0, 0]
    np.testing.assert_allclose(by_field, [0, 0.01, 0, 0.01, 0], atol=1e-9)
    np.testing.assert_allclose(by_mark, [0, 0.01, 0, 0, 0], atol=1e-9)


def test_a_pure_field_rotation_has_opposite_k5_and_k6() -> None:
    terms = np.zeros((1, 2, 5))
    terms[0, :, 4] = 0.7
    k = fit_terms(intrafield_basis(1), term_maps(linear_basis(10), terms), GRID.usable[None])[0]
    np.testing.assert_allclose(k, [[0, 0, -0.7], [0, 0, 0.7]], atol=1e-9)


def test_orthonormal_patterns_are_uncorrelated_with_unit_rms() -> None:
    basis = grid_basis(5)
    patterns, back = orthonormal(basis)
    columns = patterns[:, :, GRID.usable]
    for axis in range(2):
        gram = columns[axis] @ columns[axis].T / GRID.usable.sum()
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-8)
    rebuilt = term_maps(basis, back[:, :, 3][None])[0]
    np.testing.assert_allclose(rebuilt, patterns[:, 3], atol=1e-8)


def test_ridge_shrinks_a_well_measured_pattern_by_its_share() -> None:
    shifted = np.full((1, 2, 64, 64), 2.0)
    found = fit_terms(linear_basis(6), shifted, GRID.usable[None], ridge=0.25)[0, 0, 0]
    assert found == pytest.approx(2.0 / 1.25)


def test_ridge_determines_what_too_few_marks_do_not() -> None:
    valid = np.zeros((1, 64, 64), bool)
    valid[0, 30:32, 30:32] = True
    maps = np.ones((1, 2, 64, 64))
    with pytest.raises(InputError, match="wafer 0: valid: 4 valid marks do not determine 10 terms"):
        fit_terms(intrafield_basis(3), maps, valid)
    assert np.isfinite(fit_terms(intrafield_basis(3), maps, valid, ridge=0.01)).all()


def test_terms_shared_by_two_models_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        intrafield_basis(1) + intrafield_basis(2)
    # k1 and the grid's X00 have different names but are the same pattern.
    with pytest.raises(ValueError, match="linearly dependent"):
        orthonormal(grid_basis(1) + intrafield_basis(1))


@settings(max_examples=15, deadline=None)
@given(shift=st.floats(-10, 10), scale=st.floats(0.1, 10), seed=st.integers(0, 2**32 - 1))
def test_the_fit_is_linear_in_the_map(shift: float, scale: float, seed: int) -> None:
    valid = masks(1, 0.5, seed)
    maps = np.random.default_rng(seed).normal(size=(1, 2, 64, 64))
    basis = linear_basis(10)
    base = fit_terms(basis, maps, valid)
    moved = fit_terms(basis, scale * maps + shift, valid)
    expected = scale * base
    expected[..., 0] += shift
    np.testing.assert_allclose(moved, expected, rtol=1e-7, atol=1e-8)
