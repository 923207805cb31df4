"""What the equipment measures and reports as numbers: informative sensor groups and nuisance channels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ikddit.overlay.grid import wafer_grid
from ikddit.simulator.constants import SENSOR_NOISE

GROUPS = ("wafer_alignment", "baseline_monitor", "lens_heating", "levelling")
"""Each is received or missing as a whole."""
_LINEAR_NAMES = (
    "translation_x_nm",
    "translation_y_nm",
    "expansion_x_ppb",
    "expansion_y_ppb",
    "rotation_x_nrad",
    "rotation_y_nrad",
)
SENSORS_BY_GROUP = (
    tuple(f"wa_{name}" for name in _LINEAR_NAMES),
    tuple(f"bm_{name}" for name in _LINEAR_NAMES),
    ("lens_heating_residual",),
    ("lev_edge_radial_nm", "lev_edge_tangential_nm", "lev_bow_nm", "lev_saddle_nm"),
)
SENSOR_NAMES = tuple(name for group in SENSORS_BY_GROUP for name in group)
SENSOR_GROUP = np.repeat(np.arange(len(GROUPS)), [len(group) for group in SENSORS_BY_GROUP])
"""Group of each of the 17 sensors."""
SENSOR_DECIMALS = 3


def _linear_readout() -> Float[np.ndarray, "6 6"]:
    """Printed units from linear coefficients: dx = Tx + Mx X - Rx Y, dy = Ty + My Y + Ry X.

    A coefficient is nm RMS over the wafer; 1 nm over the RMS of X in mm is 1 ppm.
    """
    grid = wafer_grid()
    ppb_x, ppb_y = (1e3 / np.sqrt(np.mean(axis[grid.usable] ** 2)) for axis in (grid.x_mm, grid.y_mm))
    out = np.zeros((6, 6))  # columns: 1_x, 1_y, X_x, X_y, Y_x, Y_y
    out[0, 0] = out[1, 1] = 1.0
    out[2, 2], out[3, 5] = ppb_x, ppb_y
    out[4, 4], out[5, 3] = -ppb_y, ppb_x
    return out


LINEAR_READOUT = _linear_readout()


def read_sensors(
    rng: np.random.Generator,
    alignment: Float[np.ndarray, "n 6"],
    drift: Float[np.ndarray, "n 6"],
    heat_gain: Float[np.ndarray, " n"],
    shape: Float[np.ndarray, "n 4"],
) -> Float[np.ndarray, "n 17"]:
    """Add sensor noise and print: readings in the units of `SENSOR_NAMES`, rounded to `SENSOR_DECIMALS`."""
    noise = rng.normal(size=(len(heat_gain), len(SENSOR_NAMES)))
    readings = [
        (alignment + SENSOR_NOISE["alignment"] * noise[:, 0:6]) @ LINEAR_READOUT.T,
        (drift + SENSOR_NOISE["baseline"] * noise[:, 6:12]) @ LINEAR_READOUT.T,
        heat_gain[:, None] + SENSOR_NOISE["heating"] * noise[:, 12:13],
        shape + SENSOR_NOISE["levelling"] * noise[:, 13:17],
    ]
    return np.round(np.concatenate(readings, axis=1), SENSOR_DECIMALS)


def coefficients_from(sensors: Float[np.ndarray, "n 17"]) -> Float[np.ndarray, "n 17"]:
    """Undo the printed units: readings as coefficients in nm (the heating residual stays relative)."""
    undo = np.linalg.inv(LINEAR_READOUT).T
    return np.concatenate([sensors[:, 0:6] @ undo, sensors[:, 6:12] @ undo, sensors[:, 12:]], axis=1)


@dataclass(frozen=True)
class NuisanceChannels:
    """Channels that every report holds and that say nothing about overlay."""

    names: tuple[str, ...]
    nominal: Float[np.ndarray, " k"]
    lot_sd: Float[np.ndarray, " k"]
    wafer_sd: Float[np.ndarray, " k"]
    decimals: tuple[int, ...]

    def draw(self, rng: np.random.Generator, n: int) -> Float[np.ndarray, "n k"]:
        """Draw n wafers of one lot from a generator of their own: independent of all else by construction."""
        k = len(self.names)
        values = self.nominal + self.lot_sd * rng.normal(size=k) + self.wafer_sd * rng.normal(size=(n, k))
        scale = 10.0 ** np.array(self.decimals)
        return np.round(values * scale) / scale


# name, count, nominal, lot-to-lot sd, wafer-to-wafer sd, decimals
_FAMILIES: tuple[tuple[str, int, float, float, float, int], ...] = (
    ("lens_temp_{}_degc", 10, 22.0, 0.008, 0.003, 3),
    ("immersion_water_temp_{}_degc", 4, 22.0, 0.006, 0.003, 3),
    ("immersion_water_flow_{}_l_min", 2, 1.85, 0.02, 0.01, 3),
    ("immersion_pressure_{}_mbar", 2, 14.0, 0.4, 0.2, 2),
    ("wafer_stage_temp_{}_degc", 4, 22.02, 0.006, 0.003, 3),
    ("reticle_stage_temp_{}_degc", 2, 22.05, 0.01, 0.004, 3),
    ("air_temp_{}_degc", 4, 21.9, 0.03, 0.01, 3),
    ("air_humidity_{}_pct", 2, 41.0, 1.2, 0.3, 1),
    ("ambient_pressure_mbar", 1, 1002.0, 6.0, 0.2, 1),
    ("purge_flow_{}_l_min", 6, 12.0, 0.3, 0.1, 2),
    ("lens_gas_pressure_{}_pa", 2, 101985.0, 60.0, 12.0, 0),
    ("laser_pulse_energy_mj", 1, 15.0, 0.05, 0.02, 3),
    ("laser_bandwidth_pm", 1, 0.30, 0.006, 0.003, 4),
    ("laser_wavelength_offset_fm", 1, 0.0, 6.0, 3.0, 1),
    ("laser_voltage_v", 1, 1180.0, 25.0, 4.0, 0),
    ("laser_gas_pressure_kpa", 1, 345.0, 4.0, 0.5, 1),
    ("laser_beam_pointing_{}_urad", 2, 0.0, 4.0, 2.0, 1),
    ("dose_sensor_error_{}_pct", 2, 0.0, 0.10, 0.06, 3),
    ("illuminator_ellipticity_{}_pct", 2, 0.0, 0.4, 0.1, 2),
    ("slit_uniformity_{}_pct", 4, 0.25, 0.04, 0.01, 3),
    ("focus_offset_{}_nm", 3, 0.0, 6.0, 3.0, 1),
    ("wafer_stage_ma_{}_nm", 4, 0.0, 0.25, 0.15, 3),
    ("wafer_stage_msd_{}_nm", 4, 4.2, 0.25, 0.15, 3),
    ("reticle_stage_ma_{}_nm", 2, 0.0, 0.5, 0.3, 3),
    ("reticle_stage_msd_{}_nm", 2, 8.5, 0.4, 0.3, 3),
    ("encoder_temp_{}_degc", 4, 22.1, 0.01, 0.004, 3),
    ("chuck_vacuum_{}_kpa", 4, -52.0, 0.6, 0.3, 2),
    ("wafer_load_offset_{}_um", 2, 0.0, 4.0, 6.0, 2),
    ("alignment_mark_quality_{}_pct", 8, 97.0, 0.8, 0.6, 2),
    ("track_hotplate_temp_{}_degc", 4, 110.0, 0.05, 0.02, 3),
    ("track_spin_speed_rpm", 1, 1480.0, 2.0, 1.0, 1),
    ("resist_thickness_nm", 1, 95.0, 0.3, 0.15, 2),
    ("etch_pressure_{}_mtorr", 2, 18.0, 0.15, 0.08, 3),
    ("etch_bias_v", 1, 240.0, 3.0, 1.5, 1),
    ("etch_gas_flow_{}_sccm", 4, 120.0, 0.8, 0.4, 2),
    ("etch_esc_temp_{}_degc", 2, 45.0, 0.15, 0.06, 2),
)


def _nuisance() -> NuisanceChannels:
    rows = [
        (name.format(i + 1), nominal, lot_sd, wafer_sd, decimals)
        for name, count, nominal, lot_sd, wafer_sd, decimals in _FAMILIES
        for i in range(count)
    ]
    names, nominal, lot_sd, wafer_sd, decimals = zip(*rows, strict=True)
    return NuisanceChannels(names, np.array(nominal), np.array(lot_sd), np.array(wafer_sd), decimals)


NUISANCE = _nuisance()
