"""Does the student repeat training wafers: distances to the nearest training map."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from ikddit.overlay.terms import Fitter

COPY_QUANTILE = 0.01
"""A map nearer to a training map than this share of measured test maps are counts as a copy."""


@dataclass(frozen=True)
class Copies:
    """Nearest training map of generated maps, against that of as many measured test maps."""

    ratio: float
    """Median distance of generated maps / median distance of measured ones: near 1 unless maps are copied (or far
    from any wafer)."""
    share: float
    """Generated maps closer to a training map than the nearest `COPY_QUANTILE` of the measured ones: that share
    itself where nothing is copied."""


def codes(maps: Shaped[np.ndarray, "n 2 64 64"], fitter: Fitter) -> Float[np.ndarray, "n d"]:
    """A wafer's smooth terms in one vector, nm: white noise and a single flyer do not hide a copy there."""
    return fitter.coefficients(maps).reshape(len(maps), -1)


def nearest_nm(wanted: Float[np.ndarray, "n d"], train: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " n"]:
    """Distance of each vector to the nearest of `train`, exactly."""
    from sklearn.neighbors import NearestNeighbors

    found, _ = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train).kneighbors(wanted)
    return np.asarray(found[:, 0])


def copies(
    generated: Float[np.ndarray, "n d"], measured: Float[np.ndarray, "n d"], train: Float[np.ndarray, "k d"]
) -> Copies:
    """Compare generated with measured maps of the same wafers, one each.

    Raises:
        ValueError: not as many of the one as of the other.
    """
    if len(generated) != len(measured):
        raise ValueError(f"{len(generated)} generated and {len(measured)} measured maps do not compare")
    ours, theirs = nearest_nm(generated, train), nearest_nm(measured, train)
    limit = np.quantile(theirs, COPY_QUANTILE)
    return Copies(float(np.median(ours) / np.median(theirs)), float((ours < limit).mean()))
