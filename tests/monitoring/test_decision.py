"""The table of decisions: what speaks for retraining, and what is not enough."""

import pytest

from ikddit.monitoring.decision import Findings, decide
from ikddit.params import RetrainParams

LIMITS = RetrainParams()
FINE = {"new_months": 1, "drift": (), "rmse_nm": 1.0, "registered_rmse_nm": 1.0, "age_days": 1.0}


@pytest.mark.parametrize(
    ("changes", "triggers"),
    [
        ({}, ()),
        ({"drift": ["LITH03 CHK1: Tx moved"]}, ("drift",)),
        ({"rmse_nm": 1.16}, ("error",)),
        ({"rmse_nm": 1.14}, ()),
        ({"rmse_nm": 0.5}, ()),
        ({"age_days": 91.0}, ("schedule",)),
        ({"age_days": 89.0}, ()),
        ({"forced": True}, ("forced",)),
        ({"rmse_nm": None}, ()),
        ({"registered_rmse_nm": None, "rmse_nm": 9.0}, ()),
        (
            {"drift": ["a"], "rmse_nm": 2.0, "age_days": 100.0, "forced": True},
            ("forced", "drift", "error", "schedule"),
        ),
        ({"new_months": 0, "age_days": 100.0}, ()),
        ({"new_months": 0, "forced": True}, ("forced",)),
    ],
)
def test_decision(changes, triggers) -> None:
    decision = decide(Findings(**(FINE | changes)), LIMITS)
    assert decision.triggers == triggers
    assert decision.retrain == bool(triggers)
    assert decision.reasons


def test_reason_names_figure_and_limit() -> None:
    (reason,) = decide(Findings(**(FINE | {"rmse_nm": 1.3})), LIMITS).reasons
    assert "1.300 nm is 1.30 times its registered 1.000 nm (limit 1.15)" in reason


def test_long_list_of_drift_is_cut_but_counted() -> None:
    found = Findings(new_months=1, drift=[f"channel {i}" for i in range(10)])
    assert decide(found, LIMITS).reasons == ("drift: channel 0; channel 1; channel 2; 7 more",)


def test_what_was_not_measured_is_not_called_fine() -> None:
    said = decide(Findings(new_months=1, registered_rmse_nm=1.0), LIMITS).reasons
    assert said == ("drift not measured", "RMSE not measured")
    assert decide(Findings(**FINE), LIMITS).reasons[0] == "no drift"


def test_without_new_wafers_it_says_so() -> None:
    assert decide(Findings(new_months=0), LIMITS).reasons == ("no new wafers",)
