"""The fab itself: its machines, what each does to overlay, and the sizes of everything random.

All effects are coefficients of `Basis` columns, so they are nm (RMS over the wafer). The magnitudes are
plausible for DUV immersion, not taken from any fab.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ikddit.simulator.basis import (
    HIGHER,
    INTRA,
    LINEAR,
    PARTIAL,
    PROCESS,
    SMOOTH,
    TERMS,
    Basis,
    build_basis,
)

SIMULATOR_VERSION = 2
"""Raised whenever the same seeds give other maps; the oracle refuses data of another version."""

SCANNERS, CHUCKS, CHAMBERS = 6, 2, 8
LAYERS = ("CT", "M1", "V1", "M2", "V2", "M3")
"""In process order. A lot is exposed on any but the first, on top of the layer before."""
RETICLES_PER_LAYER = 2
RETICLES = RETICLES_PER_LAYER * len(LAYERS)
SCANNER_IDS = tuple(f"LITH{i + 1:02d}" for i in range(SCANNERS))
CHUCK_IDS = tuple(f"CHK{i + 1}" for i in range(CHUCKS))
RETICLE_IDS = tuple(f"RTC{i + 1:03d}" for i in range(RETICLES))
CHAMBER_IDS = tuple(f"ETCH{i + 1:02d}" for i in range(CHAMBERS))

WAFERS_PER_LOT = 25
CHAMBERS_PER_LOT = 3
HEAT_TAU_MIN = 8.0
NOMINAL_DOSE_MJ_CM2 = 30.0
DOSE_MJ_CM2 = (20.0, 40.0)
PM_INTERVAL_DAYS = (15.0, 40.0)
RF_RESET_HOURS = (180.0, 220.0)

P_REZERO = 0.15
P_HOT_SPOT = 0.3
P_GROUP_MISSING = 0.15
P_REPORT_MISSING = 0.02
P_FLYER = 0.003
FLYER_NM = (15.0, 60.0)

# Random per wafer, 1 sigma in nm.
SD_ALIGNMENT = 0.35
SD_DRIFT = 0.055
"""Drift since maintenance: random walk, nm per square root of a day and term."""
SD_HEAT_GAIN = 0.25
"""Relative error of the lens-heating response."""
SD_SHAPE = 0.45
"""Wafer shape: the four process terms, in both layers."""
SHAPE_IN_PREVIOUS = 0.8
SD_LOCAL = 0.25
SD_TMU = 0.20
WHITE_VAR = SD_LOCAL**2 + SD_TMU**2
"""Per mark and axis: local process noise plus total measurement uncertainty."""

# Noise of the sensor groups, in nm (the heating residual is relative).
SENSOR_NOISE = {"alignment": 0.15, "baseline": 0.15, "heating": 0.10, "levelling": 0.15}


def _by_group(
    linear: float = 0.0,
    higher: float = 0.0,
    intra: float = 0.0,
    process: float = 0.0,
    partial: float = 0.0,
    smooth: float = 0.0,
) -> Float[np.ndarray, " terms"]:
    out = np.zeros(TERMS)
    groups = (LINEAR, HIGHER, INTRA, PROCESS, PARTIAL, SMOOTH)
    for group, value in zip(groups, (linear, higher, intra, process, partial, smooth), strict=True):
        out[group] = value
    return out


COUPLING = _by_group(linear=0.10, higher=0.75, intra=0.90, partial=0.75)
"""C: share of the previous layer's placement error that alignment cannot remove."""
OLDER_COUPLING = _by_group(linear=0.20, higher=0.85, intra=1.0, process=0.10, partial=0.85)
"""The same between the previous layer and the one before it, which nobody logged."""
SD_PREVIOUS = _by_group(linear=0.20, higher=0.20, intra=0.12, partial=0.10)
"""Random placement error of the previous exposure."""
SD_OLDER = _by_group(linear=0.20, higher=0.16, intra=0.12, process=0.15, partial=0.15)
"""Placement error of the layer before the previous one."""
SD_SMOOTH = _by_group(smooth=0.10)
"""Unexplained smooth field, independent in both maps."""

HEAT_TERMS = ("field10_x", "field01_y", "field30_x", "field21_y")


def seeded(*key: int) -> np.random.Generator:
    """Make an independent generator for an address such as (fab_seed, purpose, machine)."""
    return np.random.default_rng(np.random.SeedSequence(key))


# Purposes of random streams; one number each, never reused, so that no stream moves when another grows.
FAB_WAVES, FAB_EFFECTS, FAB_PM, FAB_RF, DRIFT, LOT_MINUTE, LOT = range(7)


@dataclass(frozen=True)
class Fab:
    """Constants of one fab; effects are (machines, terms) coefficients in nm."""

    fab_seed: int
    basis: Basis
    scanner: Float[np.ndarray, "6 terms"]
    """Stage and encoder grid, and what the scanner does on partial fields."""
    chuck: Float[np.ndarray, "6 2 terms"]
    reticle: Float[np.ndarray, "12 terms"]
    chamber: Float[np.ndarray, "8 terms"]
    drift_rate: Float[np.ndarray, "6 terms"]
    """Mean drift in nm per day since maintenance."""
    heat_shape: Float[np.ndarray, "6 terms"]
    rezero_step: Float[np.ndarray, "6 terms"]
    transmission: Float[np.ndarray, "12"]
    """Heat a reticle lets into the lens, relative."""
    hot_gain: Float[np.ndarray, "6 2"]
    """Overlay per slope of a chuck hot spot, relative."""
    rf_hours_per_day: Float[np.ndarray, "8"]

    @classmethod
    def build(cls, fab_seed: int) -> "Fab":
        """Build the fab of a seed: the same seed gives the same machines, to the bit."""
        basis = build_basis(seeded(fab_seed, FAB_WAVES))

        def effect(number: int, count: int, sd: Float[np.ndarray, " terms"]) -> Float[np.ndarray, "n terms"]:
            unit = seeded(fab_seed, FAB_EFFECTS, number).normal(size=(count, TERMS))
            scaled: np.ndarray = unit * sd
            return scaled

        heat = np.zeros(TERMS)
        heat[[basis.names.index(name) for name in HEAT_TERMS]] = 0.45
        return cls(
            fab_seed=fab_seed,
            basis=basis,
            scanner=effect(0, SCANNERS, _by_group(linear=0.25, higher=0.22, partial=0.40)),
            chuck=effect(1, SCANNERS * CHUCKS, _by_group(linear=0.12, higher=0.10)).reshape(
                SCANNERS, CHUCKS, TERMS
            ),
            reticle=effect(2, RETICLES, _by_group(intra=0.15)),
            chamber=effect(3, CHAMBERS, _by_group(process=0.45)),
            drift_rate=effect(4, SCANNERS, _by_group(linear=0.012, higher=0.006)),
            heat_shape=effect(5, SCANNERS, heat),
            rezero_step=effect(6, SCANNERS, _by_group(linear=0.35)),
            transmission=seeded(fab_seed, FAB_EFFECTS, 7).uniform(0.4, 1.2, RETICLES),
            hot_gain=seeded(fab_seed, FAB_EFFECTS, 8).uniform(0.6, 1.4, (SCANNERS, CHUCKS)),
            rf_hours_per_day=seeded(fab_seed, FAB_EFFECTS, 9).uniform(14.0, 20.0, CHAMBERS),
        )
