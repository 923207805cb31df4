"""Figures of an overlay engineer, checked by hand and against plain numpy on the marked pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ikddit.overlay import kpi
from ikddit.overlay.grid import wafer_grid
from ikddit.overlay.terms import Fitter, fit_terms, linear_basis
from made_maps import term_maps

GRID = wafer_grid()
FULL = np.ones((1, 64, 64), np.uint8)


def wafers(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random maps with NaN under invalid marks."""
    rng = np.random.default_rng(seed)
    valid = ((rng.random((count, 64, 64)) < 0.8) & GRID.usable).astype(np.uint8)
    maps = rng.normal(0.5, 2.0, (count, 2, 64, 64)).astype(np.float32)
    return np.where(valid[:, None] != 0, maps, np.nan).astype(np.float32), valid


def test_figures_agree_with_numpy_on_the_valid_marks_of_300_wafers() -> None:
    maps, valid = wafers(300)
    mean, sigma, m3s = (figure(maps, valid) for figure in (kpi.mean_nm, kpi.sigma_nm, kpi.m3s_nm))
    for wafer in (0, 255, 256, 299):
        for axis in range(2):
            marks = maps[wafer, axis][valid[wafer] != 0].astype(np.float64)
            assert mean[wafer, axis] == pytest.approx(marks.mean())
            assert sigma[wafer, axis] == pytest.approx(marks.std())
            assert m3s[wafer, axis] == pytest.approx(abs(marks.mean()) + 3 * marks.std())


def test_errors_agree_with_numpy_on_the_valid_marks() -> None:
    measured, valid = wafers(3)
    predicted = measured + np.random.default_rng(1).normal(size=measured.shape).astype(np.float32)
    error = (predicted - measured)[np.broadcast_to(valid[:, None] != 0, measured.shape)].astype(np.float64)
    assert kpi.rmse_nm(predicted, measured, valid) == pytest.approx(np.sqrt((error**2).mean()))
    assert kpi.ome(predicted, measured, valid, 1.5) == pytest.approx((np.abs(error) > 1.5).mean())
    first = (predicted - measured)[0][:, valid[0] != 0].astype(np.float64)
    assert kpi.rmse_per_wafer_nm(predicted, measured, valid)[0] == pytest.approx(np.sqrt((first**2).mean()))


def test_ome_counts_each_axis_of_a_mark_on_its_own() -> None:
    measured = np.zeros((1, 2, 64, 64))
    measured[0, 0, 0, :16] = 2.0  # 16 of 8192 axis-marks, all in dx
    assert kpi.ome(np.zeros_like(measured), measured, FULL, 1.5) == 16 / 8192
    assert kpi.ome(np.zeros_like(measured), measured, FULL, 2.0) == 0.0


def test_ome_of_white_noise_is_the_tail_of_the_normal_law() -> None:
    from scipy.stats import norm

    measured = np.random.default_rng(0).normal(0, 0.739, (30, 2, 64, 64))
    found = kpi.ome(np.zeros_like(measured), measured, np.ones((30, 64, 64)), 1.5)
    assert found == pytest.approx(2 * norm.sf(1.5 / 0.739), rel=0.03)


def test_m3s_error_is_rms_over_wafers_and_axes() -> None:
    forecast = np.array([[4.0, 5.0], [6.0, 7.0]])
    measured = np.array([[4.0, 7.0], [6.0, 7.0]])
    assert kpi.m3s_error_nm(forecast, measured) == 1.0


def test_flyers_under_the_mask_change_nothing() -> None:
    measured, valid = wafers(2)
    wild = np.where(valid[:, None] != 0, measured, 1e6)
    zero = np.zeros_like(measured)
    assert kpi.rmse_nm(zero, wild, valid) == kpi.rmse_nm(zero, measured, valid)
    np.testing.assert_array_equal(kpi.m3s_nm(wild, valid), kpi.m3s_nm(measured, valid))


def test_a_wafer_without_marks_is_nan_and_has_no_weight() -> None:
    measured, valid = wafers(2)
    empty = valid.copy()
    empty[1] = 0
    zero = np.zeros_like(measured)
    assert np.isnan(kpi.m3s_nm(measured, empty)[1]).all()
    assert kpi.rmse_nm(zero, measured, empty) == kpi.rmse_nm(zero[:1], measured[:1], valid[:1])


def test_float16_maps_do_not_overflow() -> None:
    measured = np.full((1, 2, 64, 64), 40.0, np.float16)
    assert kpi.rmse_nm(np.zeros_like(measured), measured, FULL) == 40.0


def test_different_numbers_of_wafers_are_refused() -> None:
    measured, valid = wafers(2)
    with pytest.raises(ValueError, match="wafer counts differ"):
        kpi.rmse_nm(measured[:1], measured, valid)


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-20, 20), seed=st.integers(0, 2**32 - 1))
def test_translation_moves_the_mean_and_leaves_sigma(shift: float, seed: int) -> None:
    maps, valid = wafers(1, seed)
    moved = maps.astype(np.float64) + shift
    np.testing.assert_allclose(kpi.mean_nm(moved, valid), kpi.mean_nm(maps, valid) + shift, atol=1e-9)
    np.testing.assert_allclose(kpi.sigma_nm(moved, valid), kpi.sigma_nm(maps, valid), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(-5, 5), seed=st.integers(0, 2**32 - 1))
def test_figures_scale_with_the_map(scale: float, seed: int) -> None:
    maps, valid = wafers(1, seed)
    scaled = maps.astype(np.float64) * scale
    np.testing.assert_allclose(kpi.m3s_nm(scaled, valid), abs(scale) * kpi.m3s_nm(maps, valid), atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(tau=st.floats(0.1, 5), seed=st.integers(0, 2**32 - 1))
def test_ome_is_a_share_that_falls_with_tau_and_is_symmetric(tau: float, seed: int) -> None:
    measured, valid = wafers(2, seed)
    predicted = np.zeros_like(measured)
    share = kpi.ome(predicted, measured, valid, tau)
    assert 0.0 <= kpi.ome(predicted, measured, valid, tau + 0.5) <= share <= 1.0
    assert share == kpi.ome(measured, predicted, valid, tau)


@pytest.mark.parametrize("members", [3, 8, 30])
def test_m3s_interval_covers_its_level_whatever_the_ensemble_size(members):
    rng = np.random.default_rng(0)
    drawn = np.exp(rng.normal(1.5, 0.2, (20_000, members + 1, 2)))
    low, high = kpi.m3s_interval_nm(drawn[:, 1:], 0.9)
    inside = (drawn[:, 0] >= low) & (drawn[:, 0] <= high)
    assert abs(inside.mean() - 0.9) < 0.01


def test_out_of_spec_probability_is_the_tail_of_students_law_of_the_larger_axis() -> None:
    from scipy import stats

    drawn = np.exp(np.random.default_rng(0).normal(1.9, 0.2, (50, 5, 2)))
    log = np.log(drawn.max(axis=-1))
    law = stats.t(4, log.mean(axis=1), log.std(axis=1, ddof=1) * np.sqrt(1 + 1 / 5))
    found = kpi.out_of_spec_probability(drawn, 8.0)
    np.testing.assert_allclose(found, law.sf(np.log(8.0)), rtol=1e-12)
    # the interval's own ends, where both axes are one
    low, high = kpi.m3s_interval_nm(drawn[..., :1].repeat(2, -1), 0.9)
    for ends, expected in ((low, 0.95), (high, 0.05)):
        one = [
            kpi.out_of_spec_probability(d[None, :, :1], limit[0])[0]
            for d, limit in zip(drawn, ends, strict=True)
        ]
        np.testing.assert_allclose(one, expected, rtol=1e-9)


def test_out_of_spec_probability_without_spread_is_all_or_nothing() -> None:
    one = np.array([[[4.0, 9.0]], [[4.0, 7.0]]])
    assert kpi.out_of_spec_probability(one, 8.0).tolist() == [1.0, 0.0]
    alike = kpi.out_of_spec_probability(one.repeat(3, axis=1), 8.0)
    np.testing.assert_allclose(alike, [1.0, 0.0], atol=1e-12)


def test_m3s_of_samples_is_that_of_every_map_over_its_wafers_marks() -> None:
    rng = np.random.default_rng(3)
    samples = rng.normal(0.3, 2.0, (20, 3, 2, 64, 64)).astype(np.float16)
    valid = rng.random((20, 64, 64)) < 0.7
    valid[4] = False
    expected = kpi.m3s_nm(samples.reshape(60, 2, 64, 64), np.repeat(valid, 3, 0)).reshape(20, 3, 2)
    found = kpi.samples_m3s_nm(samples, valid)
    assert np.isnan(found[4]).all()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    unmeasured = np.where(valid[:, None, None], samples, np.nan)
    np.testing.assert_array_equal(kpi.samples_m3s_nm(unmeasured, valid), found)


def test_high_percentile_is_numpys_for_few_and_many_marks() -> None:
    rng = np.random.default_rng(4)
    for count in (1, 2, 5, 400, 3088):
        values = np.full((3, 2, 3088), -1.0)
        values[..., :count] = rng.exponential(size=(3, 2, count))
        found = kpi.high_percentile(rng.permuted(values, axis=-1), 99.7)
        np.testing.assert_allclose(found, np.percentile(values[..., :count], 99.7, axis=-1))


def test_maps_with_the_same_masks_share_their_normal_equations() -> None:
    maps, valid = wafers(5)
    maps = np.nan_to_num(maps)
    basis = linear_basis(10)
    fitter = Fitter.of(basis, valid)
    np.testing.assert_allclose(fitter.terms(maps), fit_terms(basis, maps, valid), rtol=1e-12)
    # an orthonormal pattern of coefficient c has a root mean square of c over the wafer
    whole = Fitter.of(basis, np.ones((5, 64, 64)))
    fitted = term_maps(basis, whole.terms(maps))[..., GRID.usable]
    np.testing.assert_allclose((fitted**2).mean(-1), (whole.coefficients(maps) ** 2).sum(-1), rtol=1e-9)
