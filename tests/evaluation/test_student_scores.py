"""What a student is asked once, what is written of it, and the figures that come from those files alone."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_fakes import make_split, small_fab
from student_fakes import made_generator

from ikddit.errors import InputError
from ikddit.evaluation.gate import serving_report
from ikddit.evaluation.generated import Generated, wafers_of
from ikddit.evaluation.generation import generate
from ikddit.evaluation.inputs import MODALITIES, MODALITY_COLUMNS, take, without
from ikddit.evaluation.student import (
    Measured,
    ensemble_mean,
    student_metrics,
    unseen_metrics,
    wafer_table,
    withheld_metrics,
)
from ikddit.evaluation.uncertainty import ensemble_scores
from ikddit.overlay import kpi
from ikddit.params import EvaluateParams

PARAMS = EvaluateParams.model_validate(
    {"wafers": 4, "samples": 3, "steps": 3, "inference": "masked", "serving": {"wafers": 2, "samples": 2}},
    strict=False,
)


@pytest.fixture(scope="module")
def fab():
    return small_fab(12, seed=0)


@pytest.fixture(scope="module")
def folder(fab, tmp_path_factory):
    """Files of stage `generate`; the unseen wafers are those of the test split, taken whole."""
    out = tmp_path_factory.mktemp("generated")
    generate(made_generator(), fab, take(fab, np.arange(3)), PARAMS, 0, out)
    return out


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


def test_files_hold_what_the_model_says(fab, folder):
    generated, generator = Generated.open(folder), made_generator()
    part = wafers_of(fab, generated.wafers, "test")
    drawn = generator.sample(part, 3, 3, seed=0, inference=PARAMS.inference)
    assert generated.samples.dtype == np.float16
    assert np.abs(generated.samples - drawn).max() < 2e-3 * np.abs(drawn).max()
    assert np.abs(generated.points["given"] - generator.point(part, 0)).max() < 5e-3
    assert set(generated.points) == {
        "given",
        "mean_only",
        "shuffled",
        "unseen",
        *(f"without_{n}" for n in MODALITIES),
    }
    assert not np.array_equal(generated.points["given"], generated.points["shuffled"])
    assert generated.settings == {
        "samples": 3,
        "steps": 3,
        "inference": PARAMS.inference,
        "seed": 0,
        "mask_ratio": 0.5,
        "device": "cpu",
        "threads": torch.get_num_threads(),
    }
    assert len(generated.gate["masked"]["frechet"]) == 3


def test_every_withheld_input_and_both_intervals_are_scored(fab, folder):
    generated = Generated.open(folder)
    part = wafers_of(fab, generated.wafers, "test")
    measured = Measured.of(part, np.zeros((2, 64, 64), np.float32))
    m3s = kpi.samples_m3s_nm(generated.samples, part.valid)
    marks = ensemble_scores(generated.samples, measured.maps, measured.valid)
    metrics = student_metrics(
        generated, measured, m3s, marks, PARAMS.tau_nm, ensemble_mean(generated.samples)
    )
    assert metrics["crps_nm"] == marks.crps_nm
    for name in MODALITIES:
        assert metrics[f"without_{name}_rmse_nm"] > 0
    # logs reach this untrained student through its condition tokens: withholding them must show
    assert metrics["without_logs_rmse_nm"] != metrics["rmse_nm"]
    assert 0 <= metrics["m3s_coverage_90"] <= 1
    ensemble = generated.samples.astype(np.float64).mean(1)
    assert np.abs(ensemble_mean(generated.samples) - ensemble).max() < 1e-5
    assert metrics["ensemble_rmse_nm"] == pytest.approx(kpi.rmse_nm(ensemble, part.map, part.valid), rel=1e-5)
    table = wafer_table(generated, measured, m3s)
    assert table["barcode"] == part.barcode
    assert np.mean(np.square(table["rmse_nm"])) ** 0.5 == pytest.approx(metrics["rmse_nm"], rel=0.02)


def test_samples_without_an_input_are_scored_as_ensembles_of_their_own_wafers(fab, folder):
    generated = Generated.open(folder)
    assert set(generated.withheld) == set(MODALITIES)
    part = wafers_of(fab, generated.withheld_wafers, "test")
    metrics = withheld_metrics(generated, fab, np.zeros((2, 64, 64), np.float32))
    assert len(metrics) == 2 * len(MODALITIES)
    for name in MODALITIES:
        drawn = made_generator().sample(without(part, name), 3, 3, seed=0, inference=PARAMS.inference)
        assert np.abs(generated.withheld[name] - drawn).max() < 2e-3 * np.abs(drawn).max()
        maps = generated.withheld[name].astype(np.float64)
        marks = np.broadcast_to(part.valid[:, None] == 1, part.map.shape)
        spread = (maps.var(1, ddof=1)[marks].mean() * 4 / 3) ** 0.5
        error = ((maps.mean(1) - part.map)[marks] ** 2).mean() ** 0.5
        assert metrics[f"without_{name}_spread_skill"] == pytest.approx(spread / error, rel=1e-3)
        assert 0 <= metrics[f"without_{name}_m3s_coverage_90"] <= 1


def test_unseen_wafers_have_a_point_forecast_and_no_m3s(fab, folder):
    zeros = np.zeros((2, 64, 64), np.float32)
    figures = unseen_metrics(Generated.open(folder), fab, zeros, 1.5)
    assert figures["n"] == 3
    assert "m3s_error_nm" not in figures
    part = take(fab, np.arange(3))
    rmse = kpi.rmse_nm(made_generator().point(part, 0), part.map, part.valid)
    assert figures["rmse_nm"] == pytest.approx(rmse, rel=1e-3)


def test_maps_of_other_wafers_are_refused_by_name(fab, folder, tmp_path):
    with pytest.raises(InputError, match="'W0000' is not in this split"):
        wafers_of(take(fab, np.arange(1, 12)), pa.table({"barcode": ["W0000"]}), "data/generated")
    with pytest.raises(InputError, match="dvc repro generate"):
        Generated.open(tmp_path)
    for path in folder.iterdir():
        if path.name != "wafers.parquet":
            (tmp_path / path.name).symlink_to(path)
    pq.write_table(pa.table({"barcode": ["one"]}), tmp_path / "wafers.parquet")
    with pytest.raises(InputError, match="do not belong together"):
        Generated.open(tmp_path)
    for name in ("wafers.parquet", "point"):
        (tmp_path / name).unlink()
    (tmp_path / "wafers.parquet").symlink_to(folder / "wafers.parquet")
    (tmp_path / "point").mkdir()
    with pytest.raises(InputError, match=r"no point/given\.npy"):
        Generated.open(tmp_path)


def test_what_the_gate_serves_is_what_is_drawn(fab, tmp_path, monkeypatch):
    """And without unseen wafers there is no figure of them."""
    settings = PARAMS.model_copy(update={"inference": "served", "samples": 2})
    generator = made_generator()
    sample = generator.sample

    def damaged(split, n, steps, seed, inference):
        return sample(split, n, steps, seed=seed, inference=inference) + 3.0 * (inference == "masked")

    monkeypatch.setattr(generator, "sample", damaged)  # of the gate alone
    generate(generator, fab, make_split(0), settings, 0, tmp_path)
    generated = Generated.open(tmp_path)
    assert serving_report(generated.gate)[0].served == generated.settings["inference"] == "full"
    part = wafers_of(fab, generated.wafers, "test")
    full = sample(part, 2, 3, seed=0, inference="full")
    assert np.abs(generated.samples - full).max() < 2e-3 * np.abs(full).max()
    assert "unseen" not in generated.points
    assert unseen_metrics(generated, make_split(0), np.zeros((2, 64, 64), np.float32), 1.5) is None
