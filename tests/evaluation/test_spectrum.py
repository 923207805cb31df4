"""Radial power spectrum: a wave at its own place, white noise flat, holes without consequence."""

import numpy as np
import pytest

from ikddit.evaluation.spectrum import band_power, radial_spectrum, square, wavelengths_mm
from ikddit.overlay.grid import PITCH_MM, wafer_grid

GRID = wafer_grid()
FULL = np.broadcast_to(GRID.usable, (3, 64, 64))


@pytest.mark.parametrize("cycles", [3, 8, 15])
@pytest.mark.parametrize("direction", [0.0, 0.5, np.pi / 2])
def test_a_pure_cosine_peaks_at_its_frequency(cycles: int, direction: float) -> None:
    along = GRID.x_mm * np.cos(direction) + GRID.y_mm * np.sin(direction)
    wave = np.cos(2 * np.pi * cycles * along / (44 * PITCH_MM))
    power = radial_spectrum(np.broadcast_to(wave, (3, 2, 64, 64)), FULL)
    assert power.argmax() == cycles
    assert power[cycles - 2 : cycles + 3].sum() > 0.95 * power.sum()


def test_white_noise_has_its_variance_in_every_bin() -> None:
    noise = 1.5 * np.random.default_rng(0).normal(size=(200, 2, 64, 64))
    power = radial_spectrum(noise, np.broadcast_to(GRID.usable, (200, 64, 64)))
    np.testing.assert_allclose(power[2:], 1.5**2, rtol=0.06)
    assert len(power) == 23


def test_what_lies_under_invalid_marks_and_outside_the_square_does_not_matter() -> None:
    maps = np.random.default_rng(1).normal(size=(3, 2, 64, 64))
    valid = FULL & (np.random.default_rng(2).random((3, 64, 64)) < 0.97)
    spoiled = np.where(valid[:, None], maps, np.nan)
    spoiled[:, :, :10] = 1e6
    np.testing.assert_array_equal(radial_spectrum(spoiled, valid), radial_spectrum(maps, valid))
    shifted = radial_spectrum(maps + 5.0, valid)  # the mean is taken out
    np.testing.assert_allclose(shifted, radial_spectrum(maps, valid), rtol=1e-3, atol=1e-6)


def test_the_square_is_the_largest_inside_the_usable_wafer() -> None:
    cut = square()
    assert GRID.usable[cut, cut].all()
    wider = slice(cut.start - 1, cut.stop + 1)
    assert not GRID.usable[wider, wider].all()


def test_bands_take_the_bins_of_their_wavelengths() -> None:
    power = np.arange(23.0)
    assert wavelengths_mm(23)[4] == pytest.approx(44 * PITCH_MM / 4)
    assert band_power(power, (60.0, np.inf)) == 1 + 2 + 3
    assert band_power(power, (60.0, np.inf)) + band_power(power, (0.0, 60.0)) == power[1:].sum()
