"""What the ids say about a wafer: with them, its machines' effects; without them, the fab's population."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ikddit.simulator import physics
from ikddit.simulator.basis import TERMS, TRANSLATION
from ikddit.simulator.constants import CHUCKS, COUPLING, LAYERS, P_REZERO, RETICLES_PER_LAYER, SCANNERS, Fab
from ikddit.simulator.wafers import Wafers


@dataclass(frozen=True)
class Machines:
    """Moments of the machines' part of current (c) and previous (p) coefficients."""

    mean_c: Float[np.ndarray, "n terms"]
    mean_p: Float[np.ndarray, "n terms"]
    cov_cc: Float[np.ndarray, "#n terms terms"]
    cov_cp: Float[np.ndarray, "#n terms terms"]
    cov_pp: Float[np.ndarray, "#n terms terms"]
    heat_square: Float[np.ndarray, "#n terms terms"]
    """Mean of h h' for the heat shape h."""
    rezero_p: Float[np.ndarray, " n"]
    """Probability of a re-zero step not yet in the moments."""
    rezero_step: Float[np.ndarray, "n terms"]
    hot_gain: Float[np.ndarray, "n gains"]
    """Possible hot-spot gains, equally likely."""


def with_ids(fab: Fab, w: Wafers, heat: Float[np.ndarray, " n"], text: Bool[np.ndarray, " n"]) -> Machines:
    """Give the effects of the machines named in the ids: no uncertainty but an unlogged re-zero.

    Args:
        fab: the fab.
        w: the wafers.
        heat: expected lens heating, the heating sensor taken into account.
        text: True where the event log is known.
    """
    below = physics.placement(fab, w.prev_scanner, w.prev_chuck, w.prev_reticle)
    own = (
        physics.placement(fab, w.scanner, w.chuck, w.reticle)
        + w.days_since_pm[:, None] * fab.drift_rate[w.scanner]
        + heat[:, None] * fab.heat_shape[w.scanner]
        + (w.rezero & text)[:, None] * fab.rezero_step[w.scanner]
    )
    own[:, TRANSLATION] += w.step_nm[:, None]
    chamber = physics.clean_factor(w.rf_hours)[:, None] * fab.chamber[w.chamber]
    none = np.zeros((1, TERMS, TERMS))
    shape = fab.heat_shape[w.scanner]
    return Machines(
        mean_c=physics.current_minus_previous(own, below) + chamber,
        mean_p=below + fab.chamber[w.prev_chamber],
        cov_cc=none,
        cov_cp=none,
        cov_pp=none,
        heat_square=shape[:, :, None] * shape[:, None, :],
        rezero_p=np.where(text, 0.0, P_REZERO),
        rezero_step=fab.rezero_step[w.scanner],
        hot_gain=fab.hot_gain[w.scanner, w.chuck][:, None],
    )


def without_ids(fab: Fab, w: Wafers, heat: Float[np.ndarray, " n"], text: Bool[np.ndarray, " n"]) -> Machines:
    """Give the first two moments over the machines a wafer may have met, each equally likely.

    Independent choices add up: (scanner, chuck), (reticle, reticle below), (scanner, chuck below), chamber,
    chamber below. An unlogged re-zero is in the moments. Arguments as in `with_ids`.
    """
    chucks = fab.scanner[:, None] + fab.chuck  # (6, 2, terms)
    rezero = np.where(text, w.rezero, P_REZERO)[:, None, None]
    by_scanner = (
        w.days_since_pm[:, None, None] * fab.drift_rate
        + heat[:, None, None] * fab.heat_shape
        + rezero * fab.rezero_step
    )
    own = (chucks + by_scanner[:, :, None]).reshape(len(w), SCANNERS * CHUCKS, TERMS)
    own_mean, own_cov = _moments(own)
    unlogged = np.where(text, 0.0, P_REZERO * (1 - P_REZERO))[:, None, None]
    own_cov = own_cov + unlogged * _square(fab.rezero_step)

    below = chucks.reshape(1, -1, TERMS)
    pairs = [
        (layer * RETICLES_PER_LAYER + a, (layer - 1) * RETICLES_PER_LAYER + b)
        for layer in range(1, len(LAYERS))
        for a in range(RETICLES_PER_LAYER)
        for b in range(RETICLES_PER_LAYER)
    ]
    top, under = fab.reticle[[a for a, _ in pairs]], fab.reticle[[b for _, b in pairs]]
    # Current and previous coefficients side by side, so that one covariance holds all blocks.
    static_mean, static_cov = np.zeros((1, 2 * TERMS)), np.zeros((1, 2 * TERMS, 2 * TERMS))
    for c, p in (
        (-COUPLING * below, below),
        ((top - COUPLING * under)[None], under[None]),
        (np.zeros_like(fab.chamber)[None], fab.chamber[None]),
    ):
        mean, cov = _moments(np.concatenate([c, p], axis=2))
        static_mean, static_cov = static_mean + mean, static_cov + cov
    chamber_mean, chamber_cov = _moments(fab.chamber[None])
    clean = physics.clean_factor(w.rf_hours)
    n = len(w)
    return Machines(
        mean_c=own_mean + static_mean[:, :TERMS] + clean[:, None] * chamber_mean,
        mean_p=np.tile(static_mean[:, TERMS:], (n, 1)),
        cov_cc=own_cov + static_cov[:, :TERMS, :TERMS] + (clean**2)[:, None, None] * chamber_cov,
        cov_cp=static_cov[:, :TERMS, TERMS:],
        cov_pp=static_cov[:, TERMS:, TERMS:],
        heat_square=_square(fab.heat_shape)[None],
        rezero_p=np.zeros(n),
        rezero_step=np.zeros((n, TERMS)),
        hot_gain=np.tile(fab.hot_gain.ravel(), (n, 1)),
    )


def _moments(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n, d) and covariance (n, d, d) of equally likely vectors (n, k, d)."""
    mean = vectors.mean(1)
    centred = vectors - mean[:, None]
    return mean, centred.transpose(0, 2, 1) @ centred / vectors.shape[1]


def _square(vectors: np.ndarray) -> np.ndarray:
    """Mean of v v' over the rows of (k, d)."""
    square: np.ndarray = vectors.T @ vectors / len(vectors)
    return square
