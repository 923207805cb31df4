"""The deterministic part of a wafer's overlay: everything that follows from what is logged."""

import numpy as np
from jaxtyping import Float, Int

from ikddit.simulator.constants import COUPLING, HEAT_TAU_MIN, NOMINAL_DOSE_MJ_CM2, Fab


def heat(
    fab: Fab,
    reticle: Int[np.ndarray, " n"],
    dose_mj_cm2: Float[np.ndarray, " n"],
    lot_minutes: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Relative lens heating: light let in by the reticle, saturating with minutes in the lot."""
    saturation = 1.0 - np.exp(-lot_minutes / HEAT_TAU_MIN)
    light = dose_mj_cm2 / NOMINAL_DOSE_MJ_CM2 * fab.transmission[reticle]
    heating: np.ndarray = light * saturation
    return heating


def clean_factor(rf_hours: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How strongly a process chamber shows, by RF hours since its last clean."""
    return 0.5 + rf_hours / 200.0


def placement(
    fab: Fab, scanner: Int[np.ndarray, " n"], chuck: Int[np.ndarray, " n"], reticle: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n terms"]:
    """Fixed placement error of an exposure by machine ids, in nm."""
    error: np.ndarray = fab.scanner[scanner] + fab.chuck[scanner, chuck] + fab.reticle[reticle]
    return error


def current_minus_previous(
    own: Float[np.ndarray, "n terms"], previous: Float[np.ndarray, "n terms"]
) -> Float[np.ndarray, "n terms"]:
    """Overlay of two placement errors after wafer alignment took out its share of the previous one."""
    overlay: np.ndarray = own - COUPLING * previous
    return overlay
