"""The acceptance gate: masked inference is served only where nothing speaks against it."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from ikddit.evaluation.gate import (
    NOISE_SDS,
    ModeFigures,
    decide,
    serving_metrics,
    serving_report,
    without_nan,
)

FULL = ModeFigures(
    frechet=(2.0, 2.1, 1.9), rmse_nm=(0.90, 0.91, 0.92), ome=(0.050, 0.052, 0.054), seconds=(2.0, 2.2, 2.1)
)
GOOD = replace(FULL, seconds=(1.0, 1.1, 1.0))


def scaled(values, factor):
    return tuple(v * factor for v in values)


def test_as_good_and_faster_is_served_masked_with_every_figure():
    decision = decide(FULL, GOOD)
    assert decision.served == "masked"
    assert decision.fid_ratio == 1.0
    assert decision.speedup == pytest.approx(2.0)
    assert [c.name for c in decision.checks] == ["seeds", "frechet_ratio", "rmse_nm", "ome", "speedup"]
    assert serving_metrics(decision) == {"masked": {"fid_ratio": 1.0, "speedup": 2.0}, "served": "masked"}


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"frechet": scaled(FULL.frechet, 1.021)}, "frechet_ratio"),
        ({"rmse_nm": tuple(v + 1.01 * NOISE_SDS * 0.01 for v in FULL.rmse_nm)}, "rmse_nm"),
        ({"ome": tuple(v + 1.01 * NOISE_SDS * 0.002 for v in FULL.ome)}, "ome"),
        ({"seconds": FULL.seconds}, "speedup"),
        ({"seconds": scaled(FULL.seconds, 1.5)}, "speedup"),
        ({"frechet": (float("nan"),) * 3}, "frechet_ratio"),
        ({"rmse_nm": (float("inf"),) * 3}, "rmse_nm"),
    ],
)
def test_one_failed_check_means_full_and_is_the_first_reason(change, failed):
    decision = decide(FULL, replace(GOOD, **change))
    assert decision.served == "full"
    assert [c.name for c in decision.checks if not c.passed] == [failed]
    assert decision.reasons[0] == next(c.reason for c in decision.checks if c.name == failed)


@pytest.mark.parametrize(
    "change",
    [
        {"frechet": scaled(FULL.frechet, 1.019)},
        {"frechet": scaled(FULL.frechet, 0.5)},
        {"rmse_nm": tuple(v + 0.99 * NOISE_SDS * 0.01 for v in FULL.rmse_nm)},
        {"rmse_nm": scaled(FULL.rmse_nm, 0.5), "ome": scaled(FULL.ome, 0.5)},
    ],
)
def test_within_the_limits_or_better_is_served_masked(change):
    assert decide(FULL, replace(GOOD, **change)).served == "masked"


def test_two_seeds_are_not_enough():
    two = [ModeFigures(*(v[:2] for v in vars(m).values())) for m in (FULL, GOOD)]
    decision = decide(*two)
    assert decision.served == "full"
    assert decision.reasons[0] == "2 seeds, at least 3 needed"


def test_speedup_is_the_median_of_pairs_so_one_disturbed_run_decides_nothing():
    disturbed = replace(FULL, seconds=(2.0, 2.2, 200.0))
    assert decide(disturbed, GOOD).speedup == pytest.approx(2.0)


def test_modes_with_different_seeds_are_refused():
    with pytest.raises(ValueError, match="same seeds"):
        decide(FULL, replace(GOOD, seconds=(1.0, 1.0)))


def test_figures_go_to_json_with_mean_and_sample_deviation():
    out = json.loads(json.dumps(FULL.as_json()))
    assert out["rmse_nm"] == [0.90, 0.91, 0.92]
    assert out["rmse_nm_mean"] == pytest.approx(0.91)
    assert out["rmse_nm_sd"] == pytest.approx(np.std([0.90, 0.91, 0.92], ddof=1))


def test_figures_that_are_not_finite_come_through_json_as_null_and_fail():
    broken = replace(GOOD, frechet=(float("nan"), 2.0, 2.0), rmse_nm=(float("inf"),) * 3)
    written = json.dumps(without_nan({"full": asdict(FULL), "masked": asdict(broken)}), allow_nan=False)
    decision, report = serving_report(json.loads(written))
    assert decision.served == "full"
    found = json.loads(json.dumps(report, allow_nan=False))
    assert found["masked"]["frechet"] == [None, 2.0, 2.0]
    assert found["masked"]["frechet_mean"] is None
    assert found["fid_ratio"] is None
    failed = {check["name"]: check["value"] for check in found["checks"] if not check["passed"]}
    assert failed == {"frechet_ratio": None, "rmse_nm": None}


def test_absent_means_not_computed():
    decision = decide(replace(FULL, frechet=(0.0, 0.0, 0.0)), GOOD)
    assert serving_metrics(decision)["masked"] == {"speedup": pytest.approx(2.0)}
    assert decision.served == "full"
