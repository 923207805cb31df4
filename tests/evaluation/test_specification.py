"""Out of specification: ROC and rates against counts by hand."""

import numpy as np
import pytest

from ikddit.evaluation.specification import Call, call_of_map, call_of_samples, rates, roc_rows

BAD = np.array([True, True, False, False, False])
CALL = Call(np.array([0.9, 0.4, 0.6, 0.1, 0.2]), 0.5)


def test_roc_passes_through_the_points_counted_by_hand() -> None:
    points = {(row["false_positive_rate"], row["true_positive_rate"]) for row in roc_rows("made", CALL, BAD)}
    # calling at 0.9: one of two bad; at 0.6: and one of three good; at 0.4: both bad
    for score in (0.9, 0.6, 0.4, 0.1):
        called = score <= CALL.score
        point = called[~BAD].mean(), called[BAD].mean()
        on_corner = point in points
        assert on_corner or score == 0.1
    assert (0.0, 0.5) in points
    assert (1.0, 1.0) in points
    assert {row["model"] for row in roc_rows("made", CALL, BAD)} == {"made"}


def test_rates_are_shares_of_the_bad_and_of_the_good() -> None:
    found = rates("made", CALL, BAD)
    assert found["auc"] == pytest.approx(5 / 6)
    assert found["false_pass"] == pytest.approx(1 / 2)
    assert found["false_rework"] == pytest.approx(1 / 3)
    assert (found["out_of_spec"], found["wafers"]) == (2, 5)


def test_where_all_are_good_there_is_no_curve_and_no_false_pass() -> None:
    good = np.zeros(5, bool)
    assert roc_rows("made", CALL, good) == []
    found = rates("made", CALL, good)
    assert found["auc"] is None
    assert found["false_pass"] is None
    assert found["false_rework"] == pytest.approx(2 / 5)


def test_probability_of_samples_is_calibrated_in_the_tails_too() -> None:
    rng = np.random.default_rng(0)
    centre = rng.normal(2.0, 0.3, (20000, 1, 1))
    draws = np.exp(centre + 0.2 * rng.normal(size=(20000, 16, 1)))
    call = call_of_samples(draws[:, :15], limit_nm=8.0)
    above = draws[:, 15, 0] > 8.0
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        inside = (call.score >= low) & (call.score < low + 0.2)
        assert above[inside].mean() == pytest.approx(call.score[inside].mean(), abs=0.03)
    assert call.threshold == 0.5


def test_a_map_is_called_by_its_larger_axis() -> None:
    call = call_of_map(np.array([[7.0, 8.5], [7.9, 1.0]]), 8.0)
    assert (call.score >= call.threshold).tolist() == [True, False]
