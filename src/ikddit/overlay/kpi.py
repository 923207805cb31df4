"""What an overlay engineer reads off a map: mean, 3 sigma, |mean| + 3 sigma, 99.7 %, misregistration.

Maps are nm, shape (n, 2, 64, 64) with channel 0 = dx and channel 1 = dy; masks are (n, 64, 64), non-zero
where the mark is valid. What lies under an invalid mark (NaN, 0, a flyer) never enters a number. Sums are
taken in float64, a few hundred wafers at a time, so that float16 or float32 maps of any number stay cheap.
A wafer without a valid mark has NaN for its own figures and no weight in pooled ones.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped

Maps = Shaped[np.ndarray, "n 2 64 64"]
"""nm, any float type."""
Mask = Shaped[np.ndarray, "n 64 64"]
"""Bool or integer; non-zero is valid."""
PerAxis = Float[np.ndarray, "n 2"]
PerWafer = Float[np.ndarray, " n"]

_CHUNK = 256
_LEAST = 1e-9
"""nm or one: what is nearer to 0 has no logarithm or quotient worth the name."""
_FEW = 16
"""Wafers of an ensemble at a time."""


def _by_chunk(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """Apply a per-wafer function to slices of the first axis, so that float64 temporaries stay small."""
    count = len(arrays[0])
    if any(len(a) != count for a in arrays):
        raise ValueError(f"wafer counts differ: {[len(a) for a in arrays]}")
    starts = range(0, max(count, 1), _CHUNK)
    return np.concatenate([function(*(a[i : i + _CHUNK] for a in arrays)) for i in starts])


def _masked(maps: np.ndarray, valid: np.ndarray, fill: float = 0.0) -> np.ndarray:
    return np.where(valid[:, None] != 0, maps, fill).astype(np.float64)


def _count(valid: np.ndarray) -> np.ndarray:
    """Valid marks per wafer, (n, 1), NaN where there are none: a sum of nothing has no mean."""
    count = np.count_nonzero(valid, axis=(1, 2)).astype(np.float64)[:, None]
    return np.where(count > 0, count, np.nan)


def mean_nm(maps: Maps, valid: Mask) -> PerAxis:
    """Mean of each wafer and axis over its valid marks, nm."""

    def one(m: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.asarray(_masked(m, v).sum(axis=(2, 3)) / _count(v))

    return _by_chunk(one, maps, valid)


def sigma_nm(maps: Maps, valid: Mask) -> PerAxis:
    """Standard deviation (divisor: number of marks) of each wafer and axis over its valid marks, nm."""

    def one(m: np.ndarray, v: np.ndarray) -> np.ndarray:
        mean = _masked(m, v).sum(axis=(2, 3)) / _count(v)
        centred = np.where(v[:, None] != 0, np.asarray(m, np.float64) - mean[:, :, None, None], 0.0)
        return np.asarray(np.sqrt((centred**2).sum(axis=(2, 3)) / _count(v)))

    return _by_chunk(one, maps, valid)


def m3s_nm(maps: Maps, valid: Mask) -> PerAxis:
    """M3S = |mean| + 3 sigma of each wafer and axis, nm: the figure a lot is released or reworked on.

    >>> checker = np.indices((64, 64)).sum(axis=0) % 2 * 2.0 - 1.0
    >>> wafer = np.stack([checker + 0.5, 2 * checker])[None]
    >>> m3s_nm(wafer, np.ones((1, 64, 64))).tolist()
    [[3.5, 6.0]]
    """
    return np.asarray(np.abs(mean_nm(maps, valid)) + 3.0 * sigma_nm(maps, valid))


def samples_m3s_nm(samples: Shaped[np.ndarray, "n m 2 64 64"], valid: Mask) -> Float[np.ndarray, "n m 2"]:
    """M3S of each sampled map and axis over its wafer's valid marks, nm.

    For a wafer that is not measured yet, `valid` is where a map is generated.
    """
    pixels = np.flatnonzero(valid.any(axis=0))

    def one(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inside = (mask.reshape(len(mask), -1)[:, pixels] != 0)[:, None, None]
        marks = np.where(
            inside, maps.reshape(*maps.shape[:3], -1)[..., pixels].astype(np.float32), np.float32(0)
        )
        count = np.where(inside.any(-1), inside.sum(-1), np.nan)
        mean = marks.sum(axis=-1, dtype=np.float64) / count
        square = np.einsum("nmap,nmap->nma", marks, marks, dtype=np.float64) / count
        return np.asarray(np.abs(mean) + 3.0 * np.sqrt(np.maximum(square - mean**2, 0.0)))

    starts = range(0, max(len(samples), 1), _FEW)
    return np.concatenate([one(samples[i : i + _FEW], valid[i : i + _FEW]) for i in starts])


def high_percentile(values: Float[np.ndarray, "n 2 p"], percent: float) -> PerAxis:
    """Percentile (linear interpolation, as numpy's) of the values that are not negative, along the last axis.

    Only the few largest values are sorted, which is what makes it cheap near 100 %.
    """
    count = (values >= 0).sum(axis=-1)
    above = (count - 1) * (1 - percent / 100)  # places below the largest
    size = min(int(np.ceil(max(above.max(initial=0), 0))) + 2, values.shape[-1])
    top = np.sort(np.partition(values, values.shape[-1] - size, axis=-1)[..., -size:], axis=-1)[..., ::-1]
    place = np.clip(above, 0, size - 1)
    low = np.minimum(np.floor(place).astype(np.int64), size - 2)
    a, b = (np.take_along_axis(top, i[..., None], axis=-1)[..., 0] for i in (low, low + 1))
    found = a + (b - a) * (place - low)
    return np.where(count > 0, np.where(count > 1, found, top[..., 0]), np.nan)


# Prediction against measurement --------------------------------------------------------------------------


def _pooled(per_wafer: np.ndarray, valid: np.ndarray) -> float:
    """Mean over all axis-marks of the sums in `per_wafer` (n,); NaN without a valid mark."""
    marks = 2 * int(np.count_nonzero(valid))
    return float(per_wafer.sum() / marks) if marks else float("nan")


def _squares(predicted: np.ndarray, measured: np.ndarray, valid: np.ndarray) -> np.ndarray:
    error = np.asarray(predicted, np.float64) - np.asarray(measured, np.float64)
    return np.asarray((_masked(error, valid) ** 2).sum(axis=(1, 2, 3)))


def squared_error(predicted: Maps, measured: Maps, valid: Mask) -> PerWafer:
    """Sum of squared errors of each wafer over its valid marks and both axes, nm^2."""
    return _by_chunk(_squares, predicted, measured, valid)


def rmse_nm(predicted: Maps, measured: Maps, valid: Mask) -> float:
    """Root mean squared error over all valid marks of all wafers and both axes, nm."""
    return float(np.sqrt(_pooled(squared_error(predicted, measured, valid), valid)))


def rmse_per_wafer_nm(predicted: Maps, measured: Maps, valid: Mask) -> PerWafer:
    """RMSE of each wafer over its valid marks and both axes, nm."""
    return np.asarray(np.sqrt(squared_error(predicted, measured, valid) / (2 * _count(valid)[:, 0])))


def ome(predicted: Maps, measured: Maps, valid: Mask, tau_nm: float) -> float:
    """Overlay misregistration error OME(tau): share of axis-marks with |predicted - measured| > tau.

    Every valid mark counts twice, once for dx and once for dy ("on an axis"). A mark counted as wrong when
    either axis is wrong would score nearly twice as much; the paper's own definition is not public, so its
    figures are not comparable with this one. `tau_nm` always belongs beside the number.

    >>> predicted, measured = np.zeros((1, 2, 64, 64)), np.zeros((1, 2, 64, 64))
    >>> measured[0, 0] = 2.0
    >>> ome(predicted, measured, np.ones((1, 64, 64)), tau_nm=1.5)
    0.5
    """

    def one(p: np.ndarray, m: np.ndarray, v: np.ndarray) -> np.ndarray:
        error = np.asarray(p, np.float64) - np.asarray(m, np.float64)
        return np.asarray((np.abs(_masked(error, v)) > tau_nm).sum(axis=(1, 2, 3)), dtype=np.float64)

    return _pooled(_by_chunk(one, predicted, measured, valid), valid)


def m3s_error_nm(forecast: PerAxis, measured: PerAxis) -> float:
    """RMS over wafers and axes of M3S forecast minus M3S measured, nm.

    The forecast of a single map is `m3s_nm(map, valid)`, which is biased low for a mean map (it lacks the
    noise of a wafer); the forecast of a sampler is the mean of `m3s_nm` over its samples. Both take the
    measured wafer's own mask. Wafers without a valid mark (NaN) are left out.
    """
    return float(np.sqrt(np.nanmean((np.asarray(forecast) - np.asarray(measured)) ** 2)))


def m3s_interval_nm(samples: Float[np.ndarray, "n members 2"], level: float = 0.9) -> tuple[PerAxis, PerAxis]:
    """Central prediction interval of the measured M3S from the M3S of sampled maps, nm.

    M3S is positive and skewed, so the interval is Student's in its logarithm: mean +- t(m - 1) x sd x sqrt(1 +
    1/m), which covers `level` at any number of members m where order statistics of a few members cannot. One
    member has no spread: both ends are that member.

    >>> low, high = m3s_interval_nm(np.array([[[4.0, 4.0], [4.0, 9.0]]]))
    >>> bool(low[0, 0] == high[0, 0] == 4.0), bool(low[0, 1] < 6.0 < high[0, 1])
    (True, True)
    """
    from scipy.stats import t

    centre, scale, freedom = _log_law(samples)
    half = float(t.ppf(0.5 + level / 2, freedom)) * scale if freedom else scale
    return np.exp(centre - half), np.exp(centre + half)


def out_of_spec_probability(samples: Float[np.ndarray, "n members 2"], limit_nm: float) -> PerWafer:
    """Probability that the larger of the two axes' measured M3S exceeds a limit above 0 nm, from sampled maps' M3S.

    Student's law in the logarithm, as in `m3s_interval_nm`: a few members give more than members + 1 different
    probabilities. One member is all or nothing.

    >>> out_of_spec_probability(np.array([[[4.0, 16.0], [4.0, 4.0]], [[2.0, 1.0], [3.0, 5.0]]]), 8.0).round(3).tolist()
    [0.5, 0.225]
    """
    from scipy.stats import t

    centre, scale, freedom = _log_law(samples.max(axis=-1))
    above = centre - np.log(limit_nm)
    if not freedom:
        return np.where(np.isnan(above), np.nan, above > 0)
    return np.asarray(t.cdf(above / np.maximum(scale, _LEAST), freedom))


def _log_law(samples: Float[np.ndarray, "n members ..."]) -> tuple[np.ndarray, np.ndarray, int]:
    """Student's law of the next member's logarithm: centre, scale, degrees of freedom (0: no spread is known)."""
    size = samples.shape[1]
    log = np.log(np.maximum(samples, _LEAST))
    spread = log.std(axis=1, ddof=1) if size > 1 else np.zeros_like(log[:, 0])
    return log.mean(axis=1), np.sqrt(1 + 1 / size) * spread, size - 1
