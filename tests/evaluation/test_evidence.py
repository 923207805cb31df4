"""The tables of reports/evaluation/ from the files of the stages before, with and without an oracle."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_fakes import GRID, small_fab
from student_fakes import made_generator

from ikddit.dataset.arrow import PreparedSplit
from ikddit.errors import InputError
from ikddit.evaluation import evidence as tables
from ikddit.evaluation.baseline_maps import BaselineMaps, MapWriter
from ikddit.evaluation.csv_tables import write_csv
from ikddit.evaluation.generated import Generated, wafers_of
from ikddit.evaluation.generation import generate
from ikddit.evaluation.inputs import take
from ikddit.evaluation.student import Measured
from ikddit.overlay import kpi
from ikddit.params import EvaluateParams

PARAMS = EvaluateParams.model_validate(
    {"wafers": 6, "samples": 3, "steps": 2, "inference": "full", "serving": {"wafers": 2, "samples": 2}},
    strict=False,
)


@pytest.fixture(scope="module")
def fab() -> PreparedSplit:
    return small_fab(12, seed=0)


@pytest.fixture(scope="module")
def generated(fab: PreparedSplit, tmp_path_factory: pytest.TempPathFactory) -> Generated:
    folder = tmp_path_factory.mktemp("generated")
    generate(made_generator(), fab, take(fab, np.arange(0)), PARAMS, 0, folder)
    return Generated.open(folder)


@pytest.fixture(scope="module")
def measured(fab: PreparedSplit, generated: Generated) -> Measured:
    return Measured.of(wafers_of(fab, generated.wafers, "test"), np.zeros((2, 64, 64), np.float32))


def write_baselines(folder: Path, measured: Measured, oracle: bool) -> list[str]:
    """A zero map, and an oracle that knows the measurement but for noise of 0.5 nm."""
    rng = np.random.default_rng(0)
    writer = MapWriter(folder, measured.split.barcode)
    writer.put("zero", np.zeros_like(measured.maps))
    if not oracle:
        return ["zero"]
    centre = measured.maps + 0.5 * rng.normal(size=measured.maps.shape)
    for start in (0, 4):  # as they come, a few wafers at a time
        part = centre[start : start + 4]
        writer.put("oracle", part, start)
        writer.put("oracle_sd", np.full_like(part, 0.5), start)
        noise = 0.5 * rng.normal(size=(len(part), 8, 2, 64, 64))
        writer.put("oracle_samples", part[:, None] + noise, start)
    return ["zero", "oracle"]


@pytest.fixture(scope="module", params=[True, False], ids=["simulated", "real"])
def evidence(request, generated, measured, tmp_path_factory) -> tables.Evidence:
    folder = tmp_path_factory.mktemp("baselines")
    names = write_baselines(folder, measured, request.param)
    return tables.Evidence.of(generated, measured, BaselineMaps.open(folder, names, measured.split.barcode))


def write_all(evidence: tables.Evidence, folder: Path, limit_nm: float = 8.0) -> dict:
    tables.write_kpis(evidence, 1.5, folder)
    metrics = tables.write_out_of_spec(evidence, limit_nm, folder)
    metrics |= tables.write_uncertainty(evidence, folder) | tables.write_spectrum(evidence, folder)
    return metrics


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def written(evidence, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("reports")
    limit = float(np.median(evidence.measured.m3s.max(-1)))
    return folder, write_all(evidence, folder, limit)


def test_every_model_stands_in_every_table_of_models(evidence, written) -> None:
    folder, _ = written
    names = ["student", "student_ensemble", *evidence.baselines.maps]
    kpis = read(folder / "kpis.csv")
    assert list(dict.fromkeys(row["model"] for row in kpis)) == ["measured", *names]
    assert list(read(folder / "ome_curve.csv")[0]) == ["tau_nm", *names]
    assert [row["model"] for row in read(folder / "out_of_spec_rates.csv")] == names
    assert {row["model"] for row in read(folder / "out_of_spec.csv")} == set(names)


def test_the_students_lines_are_its_maps_figures(evidence, written) -> None:
    rows = {(r["model"], r["group"], r["level"]): r for r in read(written[0] / "kpis.csv")}
    measured, generated = evidence.measured, evidence.generated
    line = rows["student", "all", "all"]
    rmse = kpi.rmse_nm(generated.points["given"], measured.maps, measured.valid)
    assert float(line["rmse_nm"]) == pytest.approx(rmse, rel=1e-4)
    assert line["m3s_error_nm"] == ""  # of a mean map it is not fair
    ensemble = rows["student_ensemble", "all", "all"]
    error = kpi.m3s_error_nm(evidence.m3s_samples.mean(1), measured.m3s)
    assert float(ensemble["m3s_error_nm"]) == pytest.approx(error, rel=1e-3)
    assert rows["measured", "all", "all"]["rmse_nm"] == ""
    curve = {row["tau_nm"]: row["student"] for row in read(written[0] / "ome_curve.csv")}
    assert float(curve["1.5"]) == pytest.approx(float(line["ome"]), rel=1e-4)


def test_what_only_a_simulated_fab_knows_is_absent_for_real_data(evidence, written) -> None:
    folder, metrics = written
    simulated = "oracle" in evidence.baselines.maps
    assert ("sharpness_ratio" in metrics) == ("oracle_energy_score_nm" in metrics) == simulated
    assert ("oracle_marks" in read(folder / "coverage.csv")[0]) == simulated
    assert ("oracle" in read(folder / "spectrum.csv")[0]) == simulated
    sigma = {row["zone"]: row for row in read(folder / "sigma_by_zone.csv")}
    assert ("oracle_sd_nm" in sigma["edge"]) == simulated
    if simulated:
        assert float(sigma["all"]["oracle_sd_nm"]) == pytest.approx(0.5)
        assert float(sigma["edge"]["oracle_sharpness_ratio"]) == pytest.approx(1.0, abs=0.02)
        expected = evidence.scores.sigma_nm() / 0.5
        assert metrics["sharpness_ratio"] == pytest.approx(expected, rel=1e-4)


def test_headlines_are_finite_and_the_histogram_is_a_distribution(written) -> None:
    folder, metrics = written
    for name in ("energy_score_nm", "out_of_spec_auc", "false_pass_rate", "false_rework_rate"):
        assert np.isfinite(metrics[name])
    assert {"spectrum_ratio_low", "spectrum_ratio_mid", "spectrum_ratio_high"} <= set(metrics)
    shares = [float(row["share"]) for row in read(folder / "rank_histogram.csv")]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1.0, abs=1e-4)


def test_the_same_maps_give_the_same_bytes(evidence, written, tmp_path) -> None:
    folder, metrics = written
    assert write_all(evidence, tmp_path, metrics["limit_nm"]) == metrics
    for path in folder.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_a_limit_nobody_exceeds_leaves_headers_and_no_false_pass(evidence, tmp_path) -> None:
    metrics = tables.write_out_of_spec(evidence, 1e6, tmp_path)
    assert metrics["out_of_spec_share"] == 0.0
    assert "out_of_spec_auc" not in metrics
    assert "false_pass_rate" not in metrics
    header = (tmp_path / "out_of_spec.csv").read_text().splitlines()[0]
    assert header == "model,threshold,false_positive_rate,true_positive_rate"


def test_a_student_that_repeats_train_is_found(evidence) -> None:
    train = small_fab(60, seed=5)

    def metrics_of(maps: np.ndarray) -> dict:
        samples = maps[:, None].repeat(2, 1)
        made = Generated(samples, {}, evidence.generated.wafers, None, {}, {})
        spoiled = tables.Evidence(
            made, evidence.measured, evidence.baselines, evidence.m3s_samples, evidence.scores
        )
        return tables.copy_metrics(spoiled, train)

    honest = metrics_of(evidence.measured.maps)
    assert honest == {"nearest_train_ratio": pytest.approx(1.0), "copy_share": pytest.approx(1 / 6)}
    copied = metrics_of(train.map[:6])
    assert copied["nearest_train_ratio"] < 0.5
    assert copied["copy_share"] == 1.0


def test_maps_of_other_wafers_or_missing_ones_are_refused(measured, tmp_path) -> None:
    names = write_baselines(tmp_path, measured, oracle=True)
    with pytest.raises(InputError, match="not those that were generated"):
        BaselineMaps.open(tmp_path, names, measured.split.barcode[::-1])
    (tmp_path / "oracle_sd.npy").unlink()
    with pytest.raises(InputError, match="dvc repro baselines"):
        BaselineMaps.open(tmp_path, names, measured.split.barcode)
    opened = BaselineMaps.open(tmp_path, ["zero"], measured.split.barcode)
    assert opened.oracle_samples is None
    assert opened.maps["zero"].shape == (6, 2, 64, 64)
    assert GRID.usable.shape == opened.maps["zero"].shape[-2:]


def test_every_figure_is_of_the_marks_on_the_usable_wafer(fab) -> None:
    everywhere = replace(fab, valid=np.ones_like(fab.valid))
    assert np.array_equal(
        Measured.of(everywhere, fab.map[0]).valid != 0, np.broadcast_to(GRID.usable, fab.valid.shape)
    )
    assert np.array_equal(Measured.of(fab, fab.map[0]).valid, fab.valid)


def test_csv_leaves_cells_empty_that_have_no_number(tmp_path) -> None:
    write_csv(tmp_path / "t.csv", [{"a": 1.23456789, "b": float("nan")}, {"a": 2, "c": None}], digits=3)
    assert (tmp_path / "t.csv").read_text() == "a,b,c\n1.23,,\n2,,\n"
