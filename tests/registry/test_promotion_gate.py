"""The promotion gate, case by case."""

from dataclasses import replace

import pytest

from ikddit.params import PromotionParams
from ikddit.registry.gate import Evidence, PairedDifference, promotion_gate

GOOD = Evidence(0.78, 0.90, 0.90, 0.97, True, "a.dir", 1000)
CHAMPION = replace(GOOD, rmse_nm=0.80)
BETTER = PairedDifference(-0.05, -0.08, -0.02, 200)


@pytest.mark.parametrize(
    ("challenger", "champion", "paired", "against"),
    [
        (GOOD, None, None, None),
        (replace(GOOD, rmse_nm=0.97), None, None, "best linear baseline"),
        (replace(GOOD, linear_rmse_nm=None), None, None, "one is not known"),
        (GOOD, CHAMPION, None, None),
        (replace(GOOD, rmse_nm=0.80), CHAMPION, None, "0.8000 nm against the champion's 0.8000 nm"),
        (replace(GOOD, rmse_nm=None), CHAMPION, None, "RMSE unknown"),
        (replace(GOOD, data_md5="b.dir"), CHAMPION, None, "other data"),
        (replace(GOOD, data_md5=None), replace(CHAMPION, data_md5=None), None, "other data"),
        # other wafers of the same data: an ablation of reduced cost
        (replace(GOOD, n_wafers=60), CHAMPION, None, "on 60 test wafers, the champion on 1000"),
        (replace(GOOD, n_wafers=None), replace(CHAMPION, n_wafers=None), None, "an unknown number"),
        # measured on the same wafers: what each scored on its own data does not count
        (replace(GOOD, rmse_nm=0.9, data_md5="b.dir", n_wafers=60), CHAMPION, BETTER, None),
        (GOOD, CHAMPION, replace(BETTER, high_nm=0.0), "all of it below 0 nm"),
        (GOOD, CHAMPION, replace(BETTER, high_nm=0.01), "interval -0.0800 to \\+0.0100"),
        (GOOD, CHAMPION, replace(BETTER, high_nm=float("nan")), "nan"),
        (GOOD, CHAMPION, replace(BETTER, wafers=24), "24 wafers, at least 25"),
        # what the model claims of itself must hold whoever is champion
        (replace(GOOD, validation_passed=False), CHAMPION, BETTER, "failed validation"),
        (replace(GOOD, validation_passed=None), None, None, "passed validation is not known"),
        (replace(GOOD, coverage_90=0.84), CHAMPION, BETTER, "marks covers 0.840, allowed 0.85 to 0.95"),
        (replace(GOOD, coverage_90=0.96), CHAMPION, BETTER, "marks covers 0.960"),
        (replace(GOOD, coverage_90=None), CHAMPION, BETTER, "coverage of the 90 % interval of marks is not"),
        (replace(GOOD, coverage_90=float("nan")), CHAMPION, BETTER, "marks covers nan"),
        (replace(GOOD, m3s_coverage_90=0.79), CHAMPION, BETTER, "M3S covers 0.790"),
    ],
)
def test_the_gate_promotes_only_what_is_sound_and_better(challenger, champion, paired, against) -> None:
    verdict = promotion_gate(challenger, champion, paired)
    assert verdict.promote == (against is None)
    assert len(verdict.failed) == (0 if against is None else 1)
    if against is not None:
        with pytest.raises(AssertionError, match=against):
            raise AssertionError(verdict.reasons[0])  # what speaks against it comes first


def test_limits_come_from_the_parameters() -> None:
    demanding = PromotionParams(min_gain_nm=0.03, min_paired_wafers=500)
    verdict = promotion_gate(GOOD, CHAMPION, BETTER, demanding)
    assert len(verdict.failed) == 2
    assert verdict.failed[0].endswith("all of it below -0.03 nm needed")


def test_tags_give_back_what_the_reports_said() -> None:
    metrics = {
        "rmse_nm": 0.78,
        "coverage_90": 0.9,
        "n_wafers": 1000,
        "baselines": {"ridge_ids": {"rmse_nm": 1.4}, "ridge_all": {"rmse_nm": 0.97}, "gbm": {"rmse_nm": 0.9}},
    }
    evidence = Evidence.of_reports(metrics, {"passed": True}, "a.dir")
    assert evidence == Evidence(0.78, 0.9, None, 0.97, True, "a.dir", 1000)
    assert Evidence.of_tags(evidence.as_tags()) == evidence
    assert Evidence.of_tags({}) == Evidence()
