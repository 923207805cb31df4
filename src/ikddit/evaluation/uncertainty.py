"""Is a forecast as uncertain as it should be: coverage, spread and skill, ranks, sharpness, joint scores.

One walk over an ensemble gives all figures of single marks; the energy score looks at a wafer's smooth terms
together, and the M3S coverage at the figure a lot is released on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from ikddit.evaluation.marks import ZONES, Marks, Zone
from ikddit.overlay import kpi
from ikddit.overlay.terms import Fitter

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Nominal coverages that are checked."""


@dataclass(frozen=True)
class EnsembleScores:
    """What one walk over the valid axis-marks of an ensemble of m samples found."""

    members: int
    crps_nm: float
    """Continuous ranked probability score, nm: mean absolute error for a distribution; lower is better. The fair
    estimator (probability-weighted moments; Zamo and Naveau 2018): unbiased for a finite number of samples, so that
    ensembles of different sizes compare."""
    covered: dict[float, float]
    """Observed share inside the central prediction interval of each level; see `ensemble_scores`."""
    ranks: Int[np.ndarray, " ranks"]
    """How often the measurement lies above 0, 1, ... m of the samples."""
    count: Float[np.ndarray, " zones"]
    """Axis-marks by zone (`ZONES`)."""
    variance: Float[np.ndarray, " zones"]
    """Sum of the ensemble's variances (divisor m - 1), nm^2."""
    error: Float[np.ndarray, " zones"]
    """Sum of the squared errors of the ensemble mean, nm^2."""

    def spread_skill(self, zone: Zone | None = None) -> float:
        """Spread / skill: sqrt((m + 1)/m x mean ensemble variance) / RMSE of the ensemble mean.

        1 for a calibrated ensemble of any size (Fortin et al. 2014); below 1 it is too sure of itself.
        """
        error = _over(self.error, zone)
        factor = (self.members + 1) / self.members
        return float(np.sqrt(factor * _over(self.variance, zone) / error)) if error else float("nan")

    def sigma_nm(self, zone: Zone | None = None) -> float:
        """Root mean ensemble variance, nm: unbiased for the variance at any number of samples."""
        return _root_mean(self.variance, self.count, zone)

    def rmse_nm(self, zone: Zone | None = None) -> float:
        """RMSE of the ensemble mean, nm."""
        return _root_mean(self.error, self.count, zone)


def _over(values: np.ndarray, zone: Zone | None) -> float:
    return float(values.sum() if zone is None else values[ZONES.index(zone)])


def _root_mean(values: np.ndarray, counts: np.ndarray, zone: Zone | None) -> float:
    count = _over(counts, zone)
    return float(np.sqrt(_over(values, zone) / count)) if count else float("nan")


def ensemble_scores(
    samples: Shaped[np.ndarray, "n m 2 64 64"],
    measured: Shaped[np.ndarray, "n 2 64 64"],
    valid: Shaped[np.ndarray, "n 64 64"],
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
) -> EnsembleScores:
    """Score an ensemble on the valid usable marks, wafer by wafer.

    A prediction interval is Student's: mean +- t(m - 1) x sd x sqrt(1 + 1/m). For samples and truth drawn from
    one normal law it covers exactly its level at any m, where order statistics of 15 samples span 14/16 at the
    most. Ranks of a measurement equal to samples (maps are stored in float16) are drawn among the equal ones.

    Args:
        samples: nm, two or more per wafer.
        measured: nm; what lies under invalid marks is ignored.
        valid: non-zero where the mark counts.
        levels: of the intervals, each between 0 and 1.
        seed: of the draws among equal ranks.

    Raises:
        ValueError: fewer than two samples, or numbers of wafers that differ.
    """
    import scoringrules
    from scipy.stats import t

    if not len(samples) == len(measured) == len(valid):
        raise ValueError(f"wafer counts differ: {[len(samples), len(measured), len(valid)]}")
    size = samples.shape[1]
    if size < 2:
        raise ValueError(f"an ensemble needs two samples or more per wafer, found {size}")
    marks, rng = Marks.of(valid), np.random.default_rng(seed)
    edges = t.ppf(0.5 + np.asarray(levels) / 2, size - 1)
    order = np.argsort(edges)
    crps, inside, ranks = 0.0, np.zeros(len(edges) + 1, np.int64), np.zeros(size + 1, np.int64)
    count, variance, error = np.zeros(2), np.zeros(2), np.zeros(2)
    for wafer in range(len(samples)):
        mask = marks.valid[wafer]
        pixels = marks.pixels[mask]
        centre = int(mask[: marks.split].sum())
        # (2, p, m) sorted along the last axis
        members = samples[wafer].reshape(size, 2, -1)[..., pixels].astype(np.float32)
        members = np.sort(np.ascontiguousarray(np.moveaxis(members, 0, -1)), axis=-1)
        truth = measured[wafer].reshape(2, -1)[:, pixels].astype(np.float32)
        crps += float(
            scoringrules.crps_ensemble(
                truth, members, estimator="pwm", sorted_ensemble=True, backend="numpy"
            ).sum(dtype=np.float64)
        )
        mean = members.mean(axis=-1)
        spread = members.var(axis=-1, ddof=1)
        off = truth - mean
        for zone, part in enumerate((slice(0, centre), slice(centre, None))):
            count[zone] += off[:, part].size
            variance[zone] += spread[:, part].sum(dtype=np.float64)
            error[zone] += (off[:, part] ** 2).sum(dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(off) / np.sqrt(spread * np.float32(1 + 1 / size))
        found = np.searchsorted(edges[order], np.nan_to_num(distance, nan=0.0, posinf=np.inf).reshape(-1))
        inside += np.bincount(found, minlength=len(edges) + 1)
        below = (members < truth[..., None]).sum(axis=-1)
        equal = (members == truth[..., None]).sum(axis=-1)
        drawn = below + (rng.random(below.shape) * (equal + 1)).astype(np.int64)
        ranks += np.bincount(drawn.reshape(-1), minlength=size + 1)
    total = count.sum()
    shares = np.cumsum(inside[:-1]) / total if total else np.full(len(edges), np.nan)
    covered = {levels[place]: float(share) for place, share in zip(order, shares, strict=True)}
    return EnsembleScores(
        members=size,
        crps_nm=crps / total if total else float("nan"),
        covered=covered,
        ranks=ranks,
        count=count,
        variance=variance,
        error=error,
    )


def m3s_coverage(
    m3s_samples: Float[np.ndarray, "n m 2"], measured: Float[np.ndarray, "n 2"], level: float
) -> float:
    """Share of wafers and axes whose measured M3S lies in the interval of `kpi.m3s_interval_nm`."""
    low, high = kpi.m3s_interval_nm(m3s_samples, level)
    return float(((measured >= low) & (measured <= high)).mean())


def energy_score_nm(
    samples: Shaped[np.ndarray, "n m 2 64 64"],
    measured: Shaped[np.ndarray, "n 2 64 64"],
    fitter: Fitter,
) -> float:
    """Mean fair energy score of a wafer's smooth terms, nm: the CRPS of all of them together.

    The terms are the least-squares coefficients of a model in its orthonormal form, both axes in one vector: each
    is in nm and counts as much as it moves the wafer. Whole maps would mostly compare white noise with white noise;
    here a wrong correlation between terms costs, which CRPS cannot see (Gneiting and Raftery 2007, eq. 22).
    """
    import scoringrules

    truth = fitter.coefficients(measured).reshape(len(measured), -1)
    members = np.stack(
        [fitter.coefficients(samples[:, i]).reshape(truth.shape) for i in range(samples.shape[1])], axis=1
    )
    scores = [
        scoringrules.es_ensemble(truth[i : i + 100], members[i : i + 100], estimator="fair", backend="numpy")
        for i in range(0, len(truth), 100)
    ]
    return float(np.concatenate(scores).mean())


def exact_sigma_nm(
    sd_maps: Shaped[np.ndarray, "n 2 64 64"], valid: Shaped[np.ndarray, "n 64 64"]
) -> dict[Zone | None, float]:
    """Root mean exact posterior variance over the valid marks of each zone, and of all (None), nm."""
    marks = Marks.of(valid)
    sums = marks.sums(marks.rows(sd_maps) ** 2).sum(axis=(0, 1))
    counts = 2 * marks.counts.sum(axis=(0, 1))
    zones: list[Zone | None] = [None, *ZONES]
    return {zone: _root_mean(sums, counts, zone) for zone in zones}
