"""The student's scores: what withholding an input does to the conditions, and which figures come out."""

import numpy as np
import pytest
from evaluation_fakes import small_fab
from student_fakes import made_generator

from ikddit.evaluation.student import MODALITIES, MODALITY_COLUMNS, evaluate, point_figures, without
from ikddit.params import EvaluateParams


@pytest.fixture(scope="module")
def fab():
    return small_fab(12, seed=0)


@pytest.mark.parametrize("modality", MODALITIES)
def test_without_a_modality_blanks_its_columns_and_no_others(fab, modality):
    less = without(fab, modality)
    assert less.barcode == fab.barcode
    for name in ("ids", "log_features", "line_templates", "prev_map", "prev_valid", "map", "valid"):
        if name in MODALITY_COLUMNS[modality]:
            assert not getattr(less, name).any()
            assert getattr(fab, name).any()
        else:
            assert np.array_equal(getattr(less, name), getattr(fab, name))
    assert bool(less.log_missing.all()) == (modality == "logs")


def test_every_withheld_input_and_both_intervals_are_scored(fab):
    params = EvaluateParams.model_validate({"wafers": 4, "samples": 3, "steps": 3}, strict=False)
    scored = evaluate(made_generator(), fab, params, seed=0)
    for name in MODALITIES:
        assert scored.metrics[f"without_{name}_rmse_nm"] > 0
    # logs reach this untrained student through its condition tokens: withholding them must show
    assert scored.metrics["without_logs_rmse_nm"] != scored.metrics["rmse_nm"]
    assert 0 <= scored.metrics["m3s_coverage_90"] <= 1
    assert scored.metrics["n_wafers"] == len(scored.wafers["barcode"]) == 4
    other = point_figures(made_generator(), fab, params, seed=0)
    assert other["rmse_nm"] == pytest.approx(scored.metrics["rmse_nm"], rel=1e-6)
    assert other["n"] == 4
    assert "m3s_error_nm" not in other
