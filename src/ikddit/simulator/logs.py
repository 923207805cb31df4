"""The equipment log of a wafer: 128 named features and the lines of a scanner's batch report."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from ikddit.simulator.constants import CHAMBER_IDS, CHUCK_IDS, LAYERS, RETICLE_IDS, SCANNER_IDS
from ikddit.simulator.sensors import GROUPS, NUISANCE, SENSOR_GROUP, SENSOR_NAMES
from ikddit.simulator.wafers import Wafers

CONTEXT_NAMES = ("days_since_pm", "lot_minutes", "dose_mj_cm2", "rf_hours")
"""Known to the manufacturing execution system: never missing."""
HAS_NAMES = tuple(f"has_{group}" for group in GROUPS)
FEATURE_NAMES = (*CONTEXT_NAMES, *HAS_NAMES, *SENSOR_NAMES, "heat_index", *NUISANCE.names)
HEAT_DECIMALS = 4
REPORT_LOST = "not received"


def features(wafers: Wafers) -> tuple[Float[np.ndarray, "n 128"], Bool[np.ndarray, "n 128"]]:
    """Build the log features and which of them are missing; missing ones hold 0."""
    values = np.column_stack(
        [
            wafers.days_since_pm,
            wafers.lot_minutes,
            wafers.dose_mj_cm2,
            wafers.rf_hours,
            wafers.received,
            wafers.sensors,
            np.round(wafers.heat, HEAT_DECIMALS),
            wafers.nuisance,
        ]
    )
    lost = ~wafers.report[:, None]
    missing = np.column_stack(
        [
            np.zeros((len(wafers), len(CONTEXT_NAMES) + len(HAS_NAMES)), bool),
            ~wafers.received[:, SENSOR_GROUP],
            lost,
            np.repeat(lost, len(NUISANCE.names), axis=1),
        ]
    )
    return np.where(missing, 0.0, values), missing


# Messages that any wafer may carry and that say nothing about overlay; each call prints its own numbers.
_CHATTER: tuple[Callable[[np.random.Generator], str], ...] = (
    lambda r: f"INFO FOUP {r.integers(1000, 9999)} docked port {r.integers(1, 5)}",
    lambda r: f"INFO laser gas refill {r.uniform(90, 100):.1f} %",
    lambda r: f"INFO track cup {r.integers(1, 9)} dispense {r.uniform(1.0, 1.4):.2f} ml",
    lambda r: f"INFO pre-aligner eccentricity {r.normal(0, 20):+.1f} {r.normal(0, 20):+.1f} um",
    lambda r: f"INFO reticle inspection particles {r.poisson(1.5)}",
    lambda r: f"INFO wafer handler queue {r.integers(0, 5)} robot cycle {r.uniform(7, 9):.2f} s",
    lambda r: f"WARN immersion hood flow dip {r.uniform(0.5, 3.0):.1f} % for {r.integers(1, 40)} ms",
    lambda r: f"WARN alignment mark {r.integers(1, 33)} residual {r.normal(0, 1.5):+.2f} nm used",
    lambda r: f"INFO track hotplate settle {r.uniform(0.5, 3.0):.1f} s",
    lambda r: f"INFO backup of machine constants done in {r.uniform(1, 9):.1f} s",
    lambda r: f"EVENT operator login console {r.integers(1, 4)}",
    lambda r: f"EVENT lamp check sensor {r.integers(1, 5)} reading {r.uniform(0.95, 1.05):.3f}",
)
_MAX_CHATTER = 7


def log_lines(wafers: Wafers, i: int, rng: np.random.Generator) -> list[str]:
    """Write the batch report of wafer `i`, 14 to 27 lines; none when the report was not received.

    Numbers printed are the very numbers the maps were made with (sensor readings are the readings).

    Args:
        wafers: the wafers.
        i: position among them.
        rng: draws the nuisance lines and nothing else.
    """
    w = wafers
    chatter = [
        _CHATTER[k](rng) for k in rng.choice(len(_CHATTER), rng.integers(0, _MAX_CHATTER + 1), replace=False)
    ]
    wiggle = rng.normal(size=8)
    cut = int(rng.integers(0, len(chatter) + 1))
    if not w.report[i]:
        return []
    s = w.sensors[i]
    has = dict(zip(GROUPS, w.received[i].tolist(), strict=True))
    lines = [
        f"BATCH REPORT machine {SCANNER_IDS[w.scanner[i]]} {CHUCK_IDS[w.chuck[i]]} slot {w.slot[i]}",
        f"JOB layer {LAYERS[w.layer[i]]} reticle {RETICLE_IDS[w.reticle[i]]}",
        f"PRIOR machine {SCANNER_IDS[w.prev_scanner[i]]} {CHUCK_IDS[w.prev_chuck[i]]}",
        f"PRIOR layer {LAYERS[w.prev_layer[i]]} reticle {RETICLE_IDS[w.prev_reticle[i]]}",
        f"PRIOR chamber {CHAMBER_IDS[w.prev_chamber[i]]}",
        *chatter[:cut],
        f"PROCESS DATA energy {w.dose_mj_cm2[i]:.2f} mJ/cm2 focus {0.01 * wiggle[0]:+.3f} um "
        f"tilt {0.3 * wiggle[1]:+.2f} {0.3 * wiggle[2]:+.2f} urad",
        f"WAFER DATA T {22.0 + 0.004 * wiggle[3]:.3f} degC P {1002.0 + 4 * wiggle[4]:.1f} mbar "
        f"lot elapsed {w.lot_minutes[i]:.2f} min",
        _linear_line("ALIGNMENT RESULTS I W", s[0:6], has["wafer_alignment"]),
        f"ALIGNMENT RESULTS II R-magn {0.02 * wiggle[5]:+.3f} ppm R-rot {0.02 * wiggle[6]:+.3f} urad "
        f"quality {98.0 + 0.5 * np.tanh(wiggle[7]):.1f} %",
        _linear_line("BASELINE MONITOR B", s[6:12], has["baseline_monitor"]),
        f"LENS HEATING index {w.heat[i]:.{HEAT_DECIMALS}f} residual "
        + (f"{s[12]:+.3f}" if has["lens_heating"] else REPORT_LOST),
        "LEVEL RESULTS "
        + (
            f"edge {s[13]:+.3f} {s[14]:+.3f} bow {s[15]:+.3f} saddle {s[16]:+.3f} nm"
            if has["levelling"]
            else REPORT_LOST
        ),
        f"MAINTENANCE last PM {w.days_since_pm[i]:.3f} days ago",
        f"PROCESS chamber {CHAMBER_IDS[w.chamber[i]]} RF {w.rf_hours[i]:.1f} h",
    ]
    if w.days_since_pm[i] < 1.0:
        lines.append("EVENT PM completed baseline reset")
    if w.rezero[i]:
        lines.append("EVENT stage re-zero completed")
    if w.hot[i]:
        lines.append(
            f"WARN levelling hot spot x={w.hot_x_mm[i]:+.1f} y={w.hot_y_mm[i]:+.1f} mm "
            f"dz={w.hot_dz_nm[i]:+.0f} nm"
        )
    return lines + chatter[cut:]


def _linear_line(title: str, v: Float[np.ndarray, "6"], received: bool) -> str:
    if not received:
        return f"{title}-model {REPORT_LOST}"
    return (
        f"{title}-translation {v[0]:+.3f} {v[1]:+.3f} nm expansion {v[2]:+.3f} {v[3]:+.3f} ppb "
        f"rotation {v[4]:+.3f} {v[5]:+.3f} nrad"
    )
