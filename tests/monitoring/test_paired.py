"""The paired test: right size on equal models, power on a planted difference, lots as its units."""

import numpy as np
import pytest
from scipy import stats

from ikddit.monitoring import paired
from ikddit.monitoring.paired import compare
from ikddit.params import ComparisonParams

LIMITS = ComparisonParams()
LOTS, WAFERS = 20, 5


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "RESAMPLES", 200)


def errors(rng: np.random.Generator, gain: float = 0.0, shifted_lots: int = 0) -> tuple[np.ndarray, ...]:
    """Squared errors of both models: a shared part, and a difference that wafers of a lot share."""
    lots = np.repeat(np.arange(LOTS), WAFERS)
    shared = 1.0 + 0.3 * rng.normal(size=LOTS)[lots] ** 2
    apart = 0.1 * rng.normal(size=LOTS)[lots] + 0.02 * rng.normal(size=len(lots))
    old = shared + apart / 2 + gain + 9.0 * (lots < shifted_lots)
    return lots, np.maximum(old, 0.01), np.maximum(shared - apart / 2, 0.01)


def test_equal_models_are_told_apart_no_more_often_than_alpha() -> None:
    rng = np.random.default_rng(0)
    found = np.mean([compare(*errors(rng), LIMITS).better for _ in range(300)])
    assert found <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)


def test_taking_wafers_for_independent_would_find_differences_that_are_not_there() -> None:
    rng = np.random.default_rng(0)
    naive = []
    for _ in range(300):
        _, old, new = errors(rng)
        naive.append(stats.ttest_1samp(old - new, 0.0, alternative="greater").pvalue < 0.05)
    assert np.mean(naive) > 0.15


def test_planted_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    assert np.mean([compare(*errors(rng, gain=0.1), LIMITS).better for _ in range(100)]) > 0.95


def test_step_on_a_fifth_of_the_lots_is_found() -> None:
    outcome = compare(*errors(np.random.default_rng(2), shifted_lots=4), LIMITS)
    assert outcome.better
    assert outcome.low_nm > 0


def test_worse_challenger_is_not_better() -> None:
    outcome = compare(*errors(np.random.default_rng(3), gain=-0.2), LIMITS)
    assert not outcome.better
    assert outcome.gain_nm < 0
    assert outcome.p_value > 0.95


def test_p_value_and_gain_are_those_of_the_lots() -> None:
    lots, old, new = errors(np.random.default_rng(4), gain=0.05)
    outcome = compare(lots, old, new, LIMITS)
    a, b = (x.reshape(LOTS, WAFERS).mean(1) for x in (old, new))
    assert outcome.p_value == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    assert outcome.gain_nm == pytest.approx(np.sqrt(a.mean()) - np.sqrt(b.mean()))
    assert outcome.low_nm < outcome.gain_nm < outcome.high_nm


def test_few_lots_never_promote() -> None:
    lots, old, new = errors(np.random.default_rng(5), gain=5.0)
    some = lots < 4
    outcome = compare(lots[some], old[some], new[some], LIMITS)
    assert not outcome.better
    assert "only 4 lots, 5 needed" in outcome.reason


def test_identical_models_tie() -> None:
    lots, old, _ = errors(np.random.default_rng(6))
    outcome = compare(lots, old, old, LIMITS)
    assert (outcome.better, outcome.gain_nm, outcome.p_value) == (False, 0.0, 1.0)


def test_wafers_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="do not pair up"):
        compare(np.arange(3), np.ones(3), np.ones(2), LIMITS)
