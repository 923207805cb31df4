"""Scores of a forecast against the measurement: point, classification, distribution; `uncertainty` has ensembles'.

Maps are nm, (n, 2, 64, 64); masks (n, 64, 64), non-zero where valid. Every score pools all valid axis-marks of all
wafers.
"""

from collections.abc import Sized

import numpy as np
from jaxtyping import Bool, Float, Int

from ikddit.overlay import kpi
from ikddit.overlay.kpi import Maps, Mask


def ome_name(tau_nm: float) -> str:
    """Name of OME(tau) in metrics files.

    >>> ome_name(1.5), ome_name(2.0)
    ('ome_1p5', 'ome_2')
    """
    return f"ome_{tau_nm:g}".replace(".", "p")


def evaluation_subset(split: Sized, wafers: int, seed: int = 0) -> Int[np.ndarray, " k"]:
    """Rows of a time-ordered split that are scored: one drawn from each of `wafers` equal stretches.

    Even in time like a fixed stride, but without its aliasing (a stride of two would see one chuck only).
    The same rows for baselines and students; keep `seed` fixed when comparing runs, whatever their own seed.

    Args:
        split: the prepared split, or anything with its length.
        wafers: how many; a split with fewer is taken whole.
        seed: of the draw.

    Returns:
        Increasing row numbers.

    >>> evaluation_subset(range(3), 1000).tolist()
    [0, 1, 2]
    """
    total = len(split)
    if total <= wafers:
        return np.arange(total)
    edges = np.ceil(np.linspace(0, total, wafers + 1)).astype(np.int64)
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


# Point forecasts -----------------------------------------------------------------------------------------


def r2(predicted: Maps, measured: Maps, valid: Mask, mean_map: Float[np.ndarray, "2 64 64"]) -> float:
    """1 - squared error / squared error of the training mean map; 0 is no better than that map."""
    left = kpi.squared_error(predicted, measured, valid).sum()
    total = kpi.squared_error(np.broadcast_to(mean_map, measured.shape), measured, valid).sum()
    return float(1.0 - left / total) if total else float("nan")


def point_scores(
    predicted: Maps,
    measured: Maps,
    valid: Mask,
    mean_map: Float[np.ndarray, "2 64 64"],
    tau_nm: float,
    m3s_forecast: Float[np.ndarray, "n 2"] | None = None,
) -> dict[str, float]:
    """The figures of one line of the table: `rmse_nm`, `r2`, `m3s_error_nm` and OME (`ome_1p5` for 1.5 nm).

    Args:
        predicted: forecast maps, nm.
        measured: measured maps, nm.
        valid: their masks.
        mean_map: mean map of train, for R2.
        tau_nm: of OME.
        m3s_forecast: M3S per wafer and axis, from samples; without it, that of the forecast map.

    Returns:
        Figures that are not finite (no valid mark) are absent.
    """
    if m3s_forecast is None:
        m3s_forecast = kpi.m3s_nm(predicted, valid)
    figures = {
        "rmse_nm": kpi.rmse_nm(predicted, measured, valid),
        "r2": r2(predicted, measured, valid, mean_map),
        "m3s_error_nm": kpi.m3s_error_nm(m3s_forecast, kpi.m3s_nm(measured, valid)),
        ome_name(tau_nm): kpi.ome(predicted, measured, valid, tau_nm),
    }
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def excess_nm(rmse_nm: float, floor_rmse_nm: float) -> float:
    """Root mean square distance from the best possible forecast, nm: sqrt(RMSE^2 - floor^2), 0 below it.

    >>> excess_nm(1.25, 0.75)
    1.0
    """
    return float(np.sqrt(max(rmse_nm**2 - floor_rmse_nm**2, 0.0)))


# Out of specification ------------------------------------------------------------------------------------


def out_of_spec_scores(
    probability: Float[np.ndarray, " n"], out_of_spec: Bool[np.ndarray, " n"], threshold: float = 0.5
) -> dict[str, float]:
    """How well wafers to be reworked are told from wafers to be passed.

    Args:
        probability: forecast that the wafer is out of specification (any monotone score does for the AUC).
        out_of_spec: what the measurement says.
        threshold: a wafer at or above it is called out of specification.

    Returns:
        `auc`; `false_pass`, the share of bad wafers called good; `false_rework`, the share of good wafers
        called bad. A figure that needs wafers of a kind that does not occur is absent.
    """
    from sklearn.metrics import roc_auc_score

    bad, called = np.asarray(out_of_spec, bool), np.asarray(probability) >= threshold
    scores: dict[str, float] = {}
    if bad.any() and not bad.all():
        scores["auc"] = float(roc_auc_score(bad, probability))
    if bad.any():
        scores["false_pass"] = float(np.mean(~called[bad]))
    if not bad.all():
        scores["false_rework"] = float(np.mean(called[~bad]))
    return scores


# Distributions -------------------------------------------------------------------------------------------


Moments = tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]
"""Mean and covariance."""


def gaussian_of(features: Float[np.ndarray, "n d"]) -> Moments:
    """Mean and covariance (divisor n - 1) of feature vectors, float64."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs two feature vectors or more, found {len(features)}")
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_from_moments(
    mean_a: Float[np.ndarray, " d"],
    cov_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " d"],
    cov_b: Float[np.ndarray, "d d"],
) -> float:
    """Frechet distance of two Gaussians: |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)).

    The trace of the root is the sum of the root eigenvalues of A^(1/2) B A^(1/2), which is symmetric:
    no complex part to throw away, and singular covariances (fewer vectors than dimensions) are fine.
    """
    return frechet_from_root(mean_a, cov_a, covariance_root(cov_a), mean_b, cov_b)


def covariance_root(cov: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Symmetric root of a covariance; singular ones are fine.

    >>> covariance_root(np.diag([4.0, 9.0])).tolist()
    [[2.0, 0.0], [0.0, 3.0]]
    """
    values, vectors = np.linalg.eigh(cov)
    root: np.ndarray = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root


def frechet_from_root(
    mean_a: Float[np.ndarray, " d"],
    cov_a: Float[np.ndarray, "d d"],
    root_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " d"],
    cov_b: Float[np.ndarray, "d d"],
) -> float:
    """As `frechet_from_moments`, with the root of one side at hand: many sets against one reference."""
    product = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2.0 * np.sqrt(np.clip(product, 0.0, None)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + trace)


def frechet_distance(features_a: Float[np.ndarray, "n d"], features_b: Float[np.ndarray, "k d"]) -> float:
    """Frechet distance of the Gaussians fitted to two sets of feature vectors.

    Biased upwards by small sets: state n beside it, and compare only at equal n.
    """
    return frechet_from_moments(*gaussian_of(features_a), *gaussian_of(features_b))
