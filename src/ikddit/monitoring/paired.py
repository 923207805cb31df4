"""Is the challenger better than the champion on the same wafers? A paired test whose units are lots."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from ikddit.params import ComparisonParams

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """Outcome of the paired test; gains are champion minus challenger, so above 0 the challenger is better."""

    champion_rmse_nm: float
    challenger_rmse_nm: float
    gain_nm: float
    low_nm: float
    high_nm: float
    """95 % interval of the gain in RMSE: paired bootstrap over lots, bias-corrected and accelerated."""
    p_value: float
    """One-sided paired t test of the lots' mean squared errors."""
    lots: int
    wafers: int
    better: bool
    reason: str


def compare(
    lots: Int[np.ndarray, " n"],
    champion_mse: Float[np.ndarray, " n"],
    challenger_mse: Float[np.ndarray, " n"],
    params: ComparisonParams,
    seed: int = 0,
) -> Comparison:
    """Test whether the challenger's error is smaller.

    Wafers of a lot share everything that drifts, so the test knows lots only: d = mean squared error of the
    champion minus that of the challenger, one number a lot, and H0: E d <= 0 by the one-sided t test. The
    challenger is better if p < `alpha` and there are at least `min_lots` lots; the promotion gate then looks at
    the interval.

    Args:
        lots: lot number of each wafer.
        champion_mse: mean squared error of each wafer, nm^2.
        challenger_mse: the same wafers, in the same order.
        params: thresholds.
        seed: of the bootstrap.

    Raises:
        ValueError: the wafers do not pair up, or there is none.
    """
    if not len(lots) == len(champion_mse) == len(challenger_mse) or not len(lots):
        counts = [len(lots), len(champion_mse), len(challenger_mse)]
        raise ValueError(f"wafers do not pair up: {counts} lots, champion's and challenger's errors")
    groups = np.unique(lots, return_inverse=True)[1]
    size = np.bincount(groups)
    old, new = (np.bincount(groups, weights=mse) / size for mse in (champion_mse, challenger_mse))
    count = len(size)

    def gain(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.sqrt(a.mean(axis)) - np.sqrt(b.mean(axis)))

    total = float(gain(old, new))
    low = high = total
    p_value = 1.0
    if count > 1 and np.ptp(old - new) > 0:
        p_value = float(stats.ttest_1samp(old - new, 0.0, alternative="greater").pvalue)
        interval = stats.bootstrap(
            (old, new),
            gain,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    checks = {
        f"only {count} lots, {params.min_lots} needed": count >= params.min_lots,
        f"p = {p_value:.2g}, not below {params.alpha:g}": p_value < params.alpha,
    }
    failed = [text for text, ok in checks.items() if not ok]
    figures = f"RMSE {np.sqrt(old.mean()):.3f} -> {np.sqrt(new.mean()):.3f} nm on {len(lots)} wafers of {count} lots"
    reason = f"{figures}: " + ("; ".join(failed) if failed else f"gain {total:.3f} nm, p = {p_value:.2g}")
    return Comparison(
        champion_rmse_nm=float(np.sqrt(old.mean())),
        challenger_rmse_nm=float(np.sqrt(new.mean())),
        gain_nm=total,
        low_nm=low,
        high_nm=high,
        p_value=p_value,
        lots=count,
        wafers=len(lots),
        better=not failed,
        reason=reason,
    )
