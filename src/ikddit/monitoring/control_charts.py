"""Control charts of what is measured on wafers, per scanner and chuck: limits from a reference period, EWMA.

A point is the mean of one machine's wafers in one period (a week). Wafers of a lot resemble one another, so the
spread of a point is taken from the reference points themselves, not from the wafers divided by the root of their
number. Shewhart limits and EWMA: D. C. Montgomery, Introduction to Statistical Quality Control, ch. 6 and 9.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ikddit.params import ControlParams

METRICS: dict[str, str] = {
    "valid_share": "valid marks, share of the usable ones",
    "missing_logs": "log channels not received, share",
    "mean_x_nm": "mean overlay x, nm",
    "mean_y_nm": "mean overlay y, nm",
    "m3s_nm": "measured |mean| + 3σ of the worse axis, nm",
    "rmse_nm": "error of the point forecast, RMSE nm",
    "m3s_error_nm": "error of the M3S forecast, larger of both axes, nm",
}
"""Column of the wafer table -> what it is; a column that is not there, or all NaN, has no chart."""
SHARES = ("valid_share", "missing_logs")
SIGNED = ("mean_x_nm", "mean_y_nm")
"""All others cannot be negative, and so have no limit below 0."""
MACHINE = ("scanner_id", "chuck_id")


@dataclass(frozen=True)
class Chart:
    """One metric of one machine over time; arrays have one entry per period with wafers, in order."""

    metric: str
    scanner: str
    chuck: str
    start: pd.DatetimeIndex
    """First day of each period, UTC."""
    wafers: np.ndarray
    value: Float[np.ndarray, " t"]
    reference: Bool[np.ndarray, " t"]
    """Periods the limits come from; they are not judged."""
    center: float
    sigma: float
    """Standard deviation of one period's value."""
    low: Float[np.ndarray, " t"]
    high: Float[np.ndarray, " t"]
    ewma: Float[np.ndarray, " t"]
    ewma_width: Float[np.ndarray, " t"]
    """Half width of the EWMA's limits around `center`."""
    pooled: bool
    """Whether `sigma` is that of all machines, for want of reference periods."""

    @property
    def outside(self) -> Bool[np.ndarray, " t"]:
        """Judged periods beyond the limits."""
        return ~self.reference & ((self.value < self.low) | (self.value > self.high))

    @property
    def drifting(self) -> Bool[np.ndarray, " t"]:
        """Judged periods whose EWMA is beyond its limits."""
        return ~self.reference & (np.abs(self.ewma - self.center) > self.ewma_width)


def ewma(values: Float[np.ndarray, " t"], center: float, weight: float) -> Float[np.ndarray, " t"]:
    """Exponentially weighted moving average that starts at `center`.

    >>> ewma(np.array([1.0, 1.0]), 0.0, 0.5).tolist()
    [0.5, 0.75]
    """
    out, last = np.empty(len(values)), center
    for i, value in enumerate(values):
        last = weight * value + (1 - weight) * last
        out[i] = last
    return out


def ewma_sigma(count: int, weight: float) -> Float[np.ndarray, " t"]:
    """Standard deviation of the EWMA after 1, 2, ... independent points of standard deviation 1.

    >>> ewma_sigma(2, 0.5).round(4).tolist()
    [0.5, 0.559]
    """
    steps = np.arange(1, count + 1)
    return np.asarray(np.sqrt(weight / (2 - weight) * (1 - (1 - weight) ** (2 * steps))))


def by_period(wafers: pd.DataFrame, metric: str, period_days: int) -> pd.DataFrame:
    """Mean and number of wafers of each machine and period: columns scanner_id, chuck_id, start, value, wafers.

    Periods are counted from Monday 1 January 2024, so weeks start on Mondays.
    """
    anchor = pd.Timestamp("2024-01-01", tz="UTC")
    known = wafers.loc[
        np.isfinite(wafers[metric]) & wafers["exposed_at"].notna(), [*MACHINE, "exposed_at", metric]
    ]
    length = pd.Timedelta(days=period_days)
    start = anchor + (known["exposed_at"] - anchor) // length * length
    grouped = known.assign(start=start).groupby([*MACHINE, "start"], dropna=False)[metric]
    return pd.DataFrame(grouped.agg(value="mean", wafers="size").reset_index())


def control_charts(wafers: pd.DataFrame, reference_until: pd.Timestamp, params: ControlParams) -> list[Chart]:
    """Chart every metric of every machine.

    The reference of a machine are its periods that end before `reference_until` (the training period). Where the
    metric was not measured then (forecast errors are known from the evaluation on), they are its first
    `reference_periods` ones. A machine with fewer than `reference_periods` of them gets the standard deviation
    pooled over all machines. Limits allow for the uncertainty of the reference's mean: sigma sqrt(1 + 1/n).

    Args:
        wafers: one row per wafer: exposed_at (UTC), scanner_id, chuck_id, and columns of `METRICS`.
        reference_until: end of the training period.
        params: periods, widths, weights.

    Returns:
        Charts in order of `METRICS`, scanner, chuck; machines without two reference periods have none.
    """
    charts: list[Chart] = []
    for metric in (name for name in METRICS if name in wafers):
        table = by_period(wafers, metric, params.period_days)
        groups = [
            (str(scanner), str(chuck), part.sort_values("start"))
            for (scanner, chuck), part in table.groupby(list(MACHINE), dropna=False)
        ]
        references = [_reference(part, reference_until, params) for _, _, part in groups]
        pairs = zip(groups, references, strict=True)
        residuals = [part["value"].to_numpy()[r] for (_, _, part), r in pairs if r.sum() >= 2]
        freedom = sum(len(values) - 1 for values in residuals)
        if not freedom:
            continue
        pooled = float(np.sqrt(sum(((v - v.mean()) ** 2).sum() for v in residuals) / freedom))
        for (scanner, chuck, part), reference in zip(groups, references, strict=True):
            if reference.sum() >= 2:
                charts.append(_chart(metric, scanner, chuck, part, reference, pooled, params))
    return charts


def _reference(part: pd.DataFrame, until: pd.Timestamp, params: ControlParams) -> np.ndarray:
    ends = part["start"] + pd.Timedelta(days=params.period_days)
    reference = (ends <= until).to_numpy()
    if not reference.any():
        reference = np.arange(len(part)) < params.reference_periods
    return np.asarray(reference)


def _chart(
    metric: str,
    scanner: str,
    chuck: str,
    part: pd.DataFrame,
    reference: np.ndarray,
    pooled: float,
    params: ControlParams,
) -> Chart:
    value = part["value"].to_numpy(np.float64)
    n = int(reference.sum())
    few = n < params.reference_periods or bool(np.ptp(value[reference]) == 0)
    center = float(value[reference].mean())
    sigma = pooled if few else float(value[reference].std(ddof=1))
    width = np.full(len(value), params.sigmas * sigma * np.sqrt(1 + 1 / n))
    spread = np.sqrt(ewma_sigma(len(value), params.ewma_lambda) ** 2 + 1 / n)
    return Chart(
        metric=metric,
        scanner=scanner,
        chuck=chuck,
        start=pd.DatetimeIndex(part["start"]),
        wafers=part["wafers"].to_numpy(),
        value=value,
        reference=reference,
        center=center,
        sigma=sigma,
        low=center - width if metric in SIGNED else np.maximum(center - width, 0.0),
        high=center + width,
        ewma=ewma(value, center, params.ewma_lambda),
        ewma_width=params.sigmas * sigma * spread,
        pooled=few,
    )


def maintenance_times(wafers: pd.DataFrame, gap_days: float = 2.0) -> dict[str, list[pd.Timestamp]]:
    """First exposure after each maintenance, by scanner: wafers marked within `gap_days` tell of the same one.

    Args:
        wafers: columns scanner_id, exposed_at and `maintenance` (bool: a log line of that wafer says so).
        gap_days: days.
    """
    out: dict[str, list[pd.Timestamp]] = {}
    marked = wafers.loc[wafers["maintenance"] & wafers["exposed_at"].notna(), ["scanner_id", "exposed_at"]]
    for scanner, times in marked.groupby("scanner_id")["exposed_at"]:
        ordered = times.sort_values()
        first = ordered[ordered.diff().isna() | (ordered.diff() > pd.Timedelta(days=gap_days))]
        out[str(scanner)] = list(first)
    return out
