"""Binning marks to pixels agrees with a loop over marks; interpolation fills gaps between them and says so."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikddit.mpom.raster import bin_marks, interpolate
from ikddit.overlay.grid import wafer_grid

COORDINATE = st.floats(-150, 150)
MARKS = st.lists(st.tuples(COORDINATE, COORDINATE, st.floats(-60, 60), st.floats(-60, 60)), max_size=40)


def columns(marks):
    x, y, dx, dy = np.array(marks, float).reshape(-1, 4).T
    return x, y, np.stack([dx, dy])


@given(MARKS)
def test_binning_agrees_with_a_loop_over_marks(marks):
    raster = bin_marks(*columns(marks))
    pixels: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for x, y, dx, dy in marks:
        col = min(63, math.floor((x + 150.0) / 4.6875))
        row = min(63, math.floor((150.0 - y) / 4.6875))
        pixels.setdefault((row, col), []).append((dx, dy))
    assert int(raster.count.sum()) == len(marks)
    assert set(zip(*np.nonzero(raster.valid), strict=True)) == set(pixels)
    assert np.isnan(raster.map_nm[:, raster.valid == 0]).all()
    for (row, col), values in pixels.items():
        assert raster.count[row, col] == len(values)
        for axis in range(2):
            here = [value[axis] for value in values]
            mean = sum(here) / len(here)
            assert raster.map_nm[axis, row, col] == pytest.approx(mean, abs=1e-4)
            if len(here) < 2:
                assert np.isnan(raster.spread_nm[axis, row, col])
            else:
                spread = math.sqrt(sum((value - mean) ** 2 for value in here) / (len(here) - 1))
                assert raster.spread_nm[axis, row, col] == pytest.approx(spread, abs=1e-4)


@given(st.integers(0, 2**32 - 1))
def test_one_mark_in_each_pixel_is_the_map(seed):
    grid = wafer_grid()
    truth = np.random.default_rng(seed).normal(size=(2, 64, 64)).astype(np.float32)
    use = grid.usable
    raster = bin_marks(grid.x_mm[use], grid.y_mm[use], truth[:, use].astype(float))
    np.testing.assert_array_equal(raster.map_nm[:, use], truth[:, use])
    assert np.array_equal(raster.valid == 1, use)


def test_spread_survives_a_large_mean():
    offset = 1e6
    raster = bin_marks(np.zeros(2), np.zeros(2), np.array([[offset, offset + 0.5], [0.0, 0.0]]))
    assert np.nanmax(raster.spread_nm[0]) == pytest.approx(0.5 / 2**0.5)


def test_the_top_left_of_the_wafer_is_the_top_left_of_the_map():
    raster = bin_marks(np.array([-100.0]), np.array([100.0]), np.ones((2, 1)))
    (row,), (col,) = np.nonzero(raster.valid)
    assert row < 32
    assert col < 32


def test_interpolation_is_exact_on_a_plane_and_is_marked():
    grid = wafer_grid()
    some = np.zeros((64, 64), bool)
    some[4:60:5, 4:60:5] = True
    some &= grid.usable
    plane = np.stack([0.01 * grid.x_mm + 1, -0.02 * grid.y_mm])
    raster = bin_marks(grid.x_mm[some], grid.y_mm[some], plane[:, some])
    filled = interpolate(raster)
    new = (filled.valid == 1) & (raster.valid == 0)
    assert new.sum() > 1000
    assert (filled.count[new] == 0).all()
    np.testing.assert_allclose(filled.map_nm[:, filled.valid == 1], plane[:, filled.valid == 1], atol=1e-5)
    np.testing.assert_array_equal(filled.map_nm[:, some], raster.map_nm[:, some])
    assert not (filled.valid[~grid.usable]).any()


def test_nothing_is_extrapolated():
    raster = bin_marks(np.array([0.0, 40.0, 0.0]), np.array([0.0, 0.0, 40.0]), np.ones((2, 3)))
    filled = interpolate(raster)
    grid = wafer_grid()
    outside = (grid.x_mm < -5) | (grid.y_mm < -5) | (grid.x_mm + grid.y_mm > 50)
    assert not filled.valid[outside].any()
    assert filled.valid.sum() > 3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_marks_on_a_line_cannot_be_interpolated(n):
    x = np.arange(n) * 20.0
    with pytest.raises(ValueError, match="do not span an area"):
        interpolate(bin_marks(x, np.zeros(n), np.ones((2, n))))
