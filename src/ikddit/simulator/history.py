"""What happened before a wafer: maintenance, chamber cleans and drift, addressable at any day.

The dates belong to the fab (its seed), the drift path to the sample. Nothing depends on the window asked
for, so next month continues this month.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from ikddit.simulator.basis import LINEAR
from ikddit.simulator.constants import (
    DRIFT,
    FAB_PM,
    FAB_RF,
    PM_INTERVAL_DAYS,
    RF_RESET_HOURS,
    SD_DRIFT,
    Fab,
    seeded,
)


def _last_event(key: tuple[int, ...], low: float, high: float, day: float) -> tuple[int, float]:
    """Find the last event at or before `day` >= 0 of a series with gaps uniform in [low, high] days.

    Returns its number and its day. The first event lies within `low` days before day 0.
    """
    blocks = int(day // (low * 64)) + 2
    times = _event_days(key, low, high, blocks)
    index = int(np.searchsorted(times, day, side="right")) - 1
    return index, float(times[index])


@lru_cache(maxsize=256)
def _event_days(key: tuple[int, ...], low: float, high: float, blocks: int) -> Float[np.ndarray, " events"]:
    # A generator drawn from front to back: more blocks prolong the series and never change its start.
    rng = seeded(*key)
    start = -rng.uniform(0.0, low)
    return start + np.concatenate([[0.0], np.cumsum(rng.uniform(low, high, blocks * 64))])


def last_maintenance(fab: Fab, scanner: int, day: float) -> tuple[int, float]:
    """Last preventive maintenance of a scanner at or before `day`: its number and its day."""
    return _last_event((fab.fab_seed, FAB_PM, scanner), *PM_INTERVAL_DAYS, day)


def last_clean(fab: Fab, chamber: int, day: float) -> float:
    """Day of the last RF-hour reset of a process chamber at or before `day`."""
    low, high = (hours / fab.rf_hours_per_day[chamber] for hours in RF_RESET_HOURS)
    return _last_event((fab.fab_seed, FAB_RF, chamber), low, high, day)[1]


def drift_variance(days_since_pm: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Variance in nm^2 of one drift term: a walk with one step a day, linear within the day.

    >>> (drift_variance(np.array([0.0, 1.0, 1.5])) / SD_DRIFT**2).round(6).tolist()
    [0.0, 1.0, 1.25]
    """
    whole = np.floor(days_since_pm)
    variance: np.ndarray = SD_DRIFT**2 * (whole + (days_since_pm - whole) ** 2)
    return variance


def drift(
    fab: Fab, sample_seed: int, scanner: int, cycle: int, days_since_pm: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n 6"]:
    """Drift in nm of the six linear grid terms on a scanner's path since maintenance number `cycle`."""
    days = int(np.ceil(PM_INTERVAL_DAYS[1])) + 2
    steps = seeded(fab.fab_seed, DRIFT, sample_seed, scanner, cycle).normal(
        0.0, SD_DRIFT, (days, LINEAR.stop - LINEAR.start)
    )
    path = np.concatenate([np.zeros((1, steps.shape[1])), np.cumsum(steps, axis=0)])
    whole = np.floor(days_since_pm).astype(int)
    part = (days_since_pm - whole)[:, None]
    now: np.ndarray = (1 - part) * path[whole] + part * path[whole + 1]
    return now
