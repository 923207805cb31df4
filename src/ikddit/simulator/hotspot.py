"""Chuck hot spots: a particle under the wafer lifts it, and its slope shifts the marks around it."""

import numpy as np
from jaxtyping import Float

from ikddit.overlay.grid import MAP_SIZE, wafer_grid
from ikddit.simulator.constants import P_HOT_SPOT

SIGMA_MM = 20.0
X_RANGE_MM = (-110.0, 110.0)
Y_RANGE_MM = (-90.0, 90.0)
POSITION_STEP_MM = 0.1
"""Positions are drawn on the lattice that the log prints."""
DZ_RANGE_NM = (20, 80)
NORM = 20.0 * 12.0
"""dz of 20 nm and gain 1 shift a mark by up to 1 nm (u exp(-u^2 / 2 s^2) peaks at 12.1 mm)."""


def x_lattice() -> Float[np.ndarray, " k"]:
    """Possible x positions in mm, all equally likely."""
    return _lattice(*X_RANGE_MM)


def y_lattice() -> Float[np.ndarray, " k"]:
    """Possible y positions in mm, all equally likely."""
    return _lattice(*Y_RANGE_MM)


def _lattice(low: float, high: float) -> Float[np.ndarray, " k"]:
    return np.round(np.arange(round(low / POSITION_STEP_MM), round(high / POSITION_STEP_MM) + 1), 0) / round(
        1 / POSITION_STEP_MM
    )


def draw(
    rng: np.random.Generator, n: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Draw n hot spots: x in mm, y in mm, height dz in nm, each rounded as the log prints it."""
    x = rng.choice(x_lattice(), n)
    y = rng.choice(y_lattice(), n)
    return x, y, rng.integers(DZ_RANGE_NM[0], DZ_RANGE_NM[1] + 1, n).astype(float)


def shift(
    x_mm: Float[np.ndarray, " n"], y_mm: Float[np.ndarray, " n"], dz_nm: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 2 64 64"]:
    """Overlay in nm of hot spots at unit gain: the gradient of a Gaussian bump."""
    grid = wafer_grid()
    dx, dy = grid.x_mm[0] - x_mm[:, None], grid.y_mm[:, 0] - y_mm[:, None]
    bell_x, bell_y = np.exp(-(dx**2) / (2 * SIGMA_MM**2)), np.exp(-(dy**2) / (2 * SIGMA_MM**2))
    height = (dz_nm / NORM)[:, None, None]
    return np.stack(
        [
            height * (bell_y[:, :, None] * (dx * bell_x)[:, None, :]),
            height * ((dy * bell_y)[:, :, None] * bell_x[:, None, :]),
        ],
        axis=1,
    )


def prior_moments() -> tuple[Float[np.ndarray, "2 64 64"], Float[np.ndarray, "2 64 64"]]:
    """First and second moment (nm, nm^2) of a wafer's hot-spot map at unit gain, when the log is silent.

    Position and height are uniform on what the log can print, and the map is a product of a function of x
    and one of y, so both moments are finite sums and exact. They include the 70 % of wafers without a spot.
    """
    grid = wafer_grid()

    def averages(axis: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, ...]:
        u = axis[:, None] - lattice
        bell = np.exp(-(u**2) / (2 * SIGMA_MM**2))
        return bell.mean(1), (u * bell).mean(1), (bell**2).mean(1), (u**2 * bell**2).mean(1)

    bx, ux, bbx, uux = averages(grid.x_mm[0], x_lattice())
    by, uy, bby, uuy = averages(grid.y_mm[:, 0], y_lattice())
    height = np.arange(DZ_RANGE_NM[0], DZ_RANGE_NM[1] + 1) / NORM
    first = np.stack([np.outer(by, ux), np.outer(uy, bx)])
    second = np.stack([np.outer(bby, uux), np.outer(uuy, bbx)])
    assert first.shape == (2, MAP_SIZE, MAP_SIZE)
    return P_HOT_SPOT * height.mean() * first, P_HOT_SPOT * (height**2).mean() * second
