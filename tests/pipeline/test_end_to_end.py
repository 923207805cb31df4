"""The real pipeline on the tiny profile: a few minutes that say the house stands."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import finished_checkout, git, run
from mlflow import MlflowClient
from mlflow.entities import Run

from ikddit.registry.store import locate_store, open_store

Env = dict[str, str]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, clean_env: Env) -> Path:
    """A checkout in which `dvc repro` has run, with its metrics committed."""
    folder, _ = finished_checkout(tmp_path_factory, clean_env)
    git(folder, "add", "--all")
    git(folder, "commit", "-qm", "first result")
    return folder


def in_store(checkout: Path) -> tuple[MlflowClient, list[Run]]:
    """The checkout's store and its runs, oldest first."""
    client, experiment = open_store(locate_store({}, checkout), "ikddit")
    return client, list(client.search_runs([experiment], order_by=["attributes.start_time"]))


def count_versions(client: MlflowClient) -> int:
    return len(client.search_model_versions("name = 'ikddit'"))


def test_metrics_and_plots_are_in_git_and_data_and_models_are_not(checkout: Path) -> None:
    tracked = git(checkout, "ls-files").splitlines()
    assert {
        "dvc.lock",
        "reports/evaluation/metrics.json",
        "reports/train/curves.csv",
        "reports/registration.json",
    } <= set(tracked)
    assert not [path for path in tracked if path.startswith(("data/", "models/", "mlruns/", "mlflow"))]
    assert (checkout / "data" / "prepared" / "train.arrow").is_file()


def test_no_committed_file_names_a_folder_of_this_machine(checkout: Path) -> None:
    written = [checkout / "dvc.lock", *(checkout / "reports").rglob("*.json")]
    assert [str(path) for path in written if str(checkout) in path.read_text()] == []


def test_registered_version_loads_in_another_folder_with_its_own_code_and_predicts(
    checkout: Path, clean_env: Env, tmp_path: Path
) -> None:
    code = (
        "import mlflow\n"
        "model = mlflow.pyfunc.load_model('models:/ikddit@champion')\n"
        "forecast = model.predict(model.input_example, params={'n': 2, 'steps': 2})\n"
        "import ikddit\n"
        "print(len(forecast), len(forecast['mean'][0]), ikddit.__file__)"
    )
    env = clean_env | {"MLFLOW_TRACKING_URI": f"sqlite:///{checkout / 'mlflow.db'}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wafers, pixels, origin = done.stdout.split()
    assert (int(wafers), int(pixels)) == (2, 2 * 64 * 64)
    assert Path(origin).is_relative_to(checkout / "mlruns")


def test_second_repro_runs_nothing_but_a_look_at_the_registry(checkout: Path, clean_env: Env) -> None:
    before = git(checkout, "status", "--porcelain")
    said = run(checkout, clean_env, "dvc", "repro")
    assert re.findall(r"Running stage '([\w@]+)'", said) == ["register"]
    assert len(in_store(checkout)[1]) == 1
    assert git(checkout, "status", "--porcelain") == before


def test_experiments_in_clones_share_the_store_and_leave_the_workspace_alone(
    checkout: Path, clean_env: Env
) -> None:
    before = git(checkout, "status", "--porcelain")
    run(checkout, clean_env, "dvc", "exp", "run", "--queue", "-n", "queued", "-S", "mask_ratio=0.7")
    run(checkout, clean_env, "dvc", "exp", "run", "--run-all", timeout_s=600)
    # Every stage of this one comes from the cache: it must be in MLflow all the same.
    run(checkout, clean_env, "dvc", "exp", "run", "--temp", "-n", "cached", "-S", "mask_ratio=0.7")
    assert git(checkout, "status", "--porcelain") == before
    client, runs = in_store(checkout)
    assert [
        (found.data.params["mask_ratio"], found.data.tags.get("dvc_exp_name"), found.info.status)
        for found in runs
    ] == [("0.5", None, "FINISHED"), ("0.7", "queued", "FINISHED"), ("0.7", "cached", "FINISHED")]
    assert count_versions(client) == 2
    shown = run(checkout, clean_env, "dvc", "exp", "show", "--csv")
    assert "queued" in shown
    assert "cached" in shown
    changes = json.loads(run(checkout, clean_env, "dvc", "metrics", "diff", "HEAD", "queued", "--json"))
    assert "rmse_nm" in changes["reports/evaluation/metrics.json"]


def test_runs_are_collected_side_by_side(checkout: Path, clean_env: Env) -> None:
    said = run(checkout, clean_env, "pipelines.collect", "masks", "HEAD", "queued", "--param", "mask_ratio")
    table = checkout / "reports" / "ablations" / "masks.csv"
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    metrics = json.loads((checkout / "reports" / "evaluation" / "metrics.json").read_text())
    assert [(row["run"], row["mask_ratio"]) for row in rows] == [("HEAD", "0.5"), ("queued", "0.7")]
    assert float(rows[0]["rmse_nm"]) == metrics["rmse_nm"]
    assert float(rows[0]["masked.speedup"]) == metrics["masked"]["speedup"]
    distances = json.loads((checkout / "reports" / "evaluation" / "fid.json").read_text())
    assert float(rows[0]["fid.embedding"]) == distances["fid"]["embedding"]
    assert "settings.seed" not in rows[0]
    mean = (float(rows[0]["crps_nm"]) + float(rows[1]["crps_nm"])) / 2
    assert f"crps_nm                {mean:.4f}" in said
    table.unlink()


SWEEP = """
profiles:
  none: {}
sweeps:
  mask:
    title: Two runs, of which one has been trained already and one cannot be
    profile: none
    axes: {train.dense_path: [true], train.codec: [none, kl]}
    x: train.codec
"""


def test_a_sweep_collects_its_runs_names_the_failed_one_and_is_not_repeated(
    checkout: Path, clean_env: Env
) -> None:
    (checkout / "pipelines" / "ablations.yaml").write_text(SWEEP)
    client, before = in_store(checkout)
    versions = count_versions(client)
    command = [sys.executable, "-m", "pipelines.ablate", "mask"]
    done = subprocess.run(command, cwd=checkout, env=clean_env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    table = checkout / "reports" / "ablations" / "mask.csv"
    with table.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["train.codec"], row["train.dense_path"]) for row in rows] == [
        ("none", "True"),
        ("kl", "True"),
    ]
    assert float(rows[0]["rmse_nm"]) > 0
    assert float(rows[0]["train.cpu_seconds"]) > 0
    assert rows[1]["failed"].startswith("TrainingError: train.codec: kl takes 256x256 maps")
    assert rows[1]["run"] in done.stderr
    for path in ("reports/ablations/mask.png", "reports/ablations/mask.svg", "docs/ablations.md"):
        assert (checkout / path).stat().st_size > 0
    # in MLflow with its sweep's name, and neither a version nor an alias came of it
    client, after = in_store(checkout)
    assert (count_versions(client), len(after)) == (versions, len(before) + 1)
    swept = [found.data.tags for found in after if found.data.tags.get("sweep") == "mask"]
    assert [tags["dvc_exp_name"] for tags in swept] == [rows[0]["run"]]
    again = run(checkout, clean_env, "pipelines.ablate", "mask", "--dry-run")
    assert "mask: 2 runs, 1 of them there" in again
    git(checkout, "checkout", "-q", "pipelines/ablations.yaml")
    shutil.rmtree(checkout / "docs")
    for path in table.parent.glob("mask.*"):
        path.unlink()


def test_unknown_parameter_is_refused(checkout: Path, clean_env: Env) -> None:
    command = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", "mask_ration=0.7"]
    done = subprocess.run(command, cwd=checkout, env=clean_env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "mask_ration" in done.stderr


def test_plots_page_needs_no_network(checkout: Path, clean_env: Env) -> None:
    run(checkout, clean_env, "pipelines.plots")
    page = checkout / "dvc_plots" / "index.html"
    assert "reports_train_curves_csv" in page.read_text()
    assert '<script src="vega.js">' in page.read_text()
    assert "vegaEmbed" in (page.parent / "vega.js").read_text()
    assert git(checkout, "status", "--porcelain", "dvc_plots") == ""
