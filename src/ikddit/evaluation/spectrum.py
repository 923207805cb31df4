"""Radial power spectrum of maps: how much of their variance lives at which wavelength.

The largest square of whole pixels inside the usable radius (44 x 44 pixels, 206 mm) is cut out, invalid marks and
the mean over valid ones are set to 0, and a Hann window tapers both directions. All maps of a wafer get the mask of
its measurement, so that holes act alike on all. Power is |FFT|^2 over the pixels and the window's mean square:
white noise of variance s^2 has power s^2 in every bin.
"""

import numpy as np
from jaxtyping import Float, Shaped

from ikddit.overlay.grid import PITCH_MM, wafer_grid

BANDS_MM = {"low": (60.0, np.inf), "mid": (25.0, 60.0), "high": (0.0, 25.0)}
"""Wavelengths of the ratios in metrics.json."""
_CHUNK = 64


def square() -> slice:
    """Rows (and columns) of the square.

    >>> square()
    slice(10, 54, None)
    """
    usable = wafer_grid().usable
    size = len(usable)
    edge = next(i for i in range(size // 2) if usable[i : size - i, i : size - i].all())
    return slice(edge, size - edge)


def wavelengths_mm(bins: int) -> Float[np.ndarray, " bins"]:
    """Wavelength of each bin, mm: the side of the square over its cycles, infinite for bin 0."""
    side = (square().stop - square().start) * PITCH_MM
    with np.errstate(divide="ignore"):
        return np.asarray(side / np.arange(bins))


def radial_spectrum(
    maps: Shaped[np.ndarray, "n 2 64 64"], valid: Shaped[np.ndarray, "n 64 64"]
) -> Float[np.ndarray, " bins"]:
    """Mean power per bin of whole cycles across the square, nm^2, over wafers and both axes.

    Bins go to the Nyquist frequency (22 cycles); a frequency belongs to the bin its radius rounds to.

    Raises:
        ValueError: numbers of maps and masks differ.
    """
    from scipy.fft import fft2

    if len(maps) != len(valid):
        raise ValueError(f"{len(maps)} maps and {len(valid)} masks")
    cut = square()
    size = cut.stop - cut.start
    window = np.outer(*[0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)] * 2).astype(
        np.float32
    )
    frequency = np.fft.fftfreq(size, 1 / size)
    radius = np.round(np.hypot(frequency[:, None], frequency)).astype(np.int64).reshape(-1)
    kept, bins = radius <= size // 2, size // 2 + 1
    total = np.zeros((size, size))
    for start in range(0, len(maps), _CHUNK):
        inside = valid[start : start + _CHUNK, None, cut, cut] != 0
        part = np.where(inside, maps[start : start + _CHUNK, :, cut, cut], 0).astype(np.float32)
        count = np.maximum(inside.sum(axis=(2, 3), keepdims=True), 1)
        mean = part.sum(axis=(2, 3), keepdims=True, dtype=np.float64) / count
        part = np.where(inside, part - mean.astype(np.float32), np.float32(0)) * window
        total += (np.abs(fft2(part)) ** 2).sum(axis=(0, 1), dtype=np.float64)
    power = total.reshape(-1) / (2 * max(len(maps), 1) * float((window**2).sum()))
    sums = np.bincount(radius[kept], power[kept], minlength=bins)
    return np.asarray(sums / np.bincount(radius[kept], minlength=bins))


def band_power(power: Float[np.ndarray, " bins"], band: tuple[float, float]) -> float:
    """Sum over the bins whose wavelength lies in a band (low included, high not); bin 0 is the mean and left out."""
    wavelength = wavelengths_mm(len(power))[1:]
    return float(power[1:][(wavelength >= band[0]) & (wavelength < band[1])].sum())
