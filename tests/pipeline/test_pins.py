"""Versions that install together do not always run together (constraints.txt): the failures seen, tried."""

import os
import subprocess
import sys
import urllib.request
from importlib.metadata import distributions
from pathlib import Path

from checkouts import ROOT, background, free_port, wait_until
from packaging.utils import canonicalize_name


def test_a_schedule_fires(tmp_path: Path, clean_env: dict[str, str]) -> None:
    # sqlalchemy 2.1 with prefect 3.8.8: no error anywhere, and no run either.
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    fired, log = tmp_path / "fired.txt", tmp_path / "server.log"
    env = clean_env | {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    }

    def healthy() -> bool:
        try:
            return bool(urllib.request.urlopen(f"{url}/health", timeout=2).status == 200)
        except OSError:
            return False

    server = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    server += ["--port", str(port)]
    serve = [sys.executable, str(Path(__file__).with_name("scheduled.py")), str(fired)]
    with background(server, env, log):
        wait_until(healthy, 150, log)
        with background(serve, env, tmp_path / "serve.log"):
            wait_until(fired.exists, 150, tmp_path / "serve.log")
    assert fired.read_text().startswith("fired")


def test_the_mlflow_store_opens_and_keeps_a_run(tmp_path: Path, clean_env: dict[str, str]) -> None:
    code = (
        "from ikddit.registry.store import locate_store, open_store\n"
        "client, experiment = open_store(locate_store(), 'smoke')\n"
        "run = client.create_run(experiment).info.run_id\n"
        "client.log_metric(run, 'rmse_nm', 1.5)\n"
        "print(client.get_run(run).data.metrics)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean_env, capture_output=True, text=True
    )
    assert done.stdout.strip() == "{'rmse_nm': 1.5}", done.stderr
    assert (tmp_path / "mlflow.db").is_file()


def test_pytorch_fid_and_torchvision_import_beside_this_torch(clean_env: dict[str, str]) -> None:
    code = (
        "from ikddit.vision import make_torchvision_importable as go\n"
        "go(); go()\n"
        "import torch, torchvision.ops\n"
        "from pytorch_fid.inception import InceptionV3\n"
        "from pytorch_fid.fid_score import calculate_frechet_distance\n"
        "assert InceptionV3.BLOCK_INDEX_BY_DIM[2048] == 3\n"
        "print(torch.ops.torchvision.nms.default._schema)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=clean_env, capture_output=True, text=True)
    assert "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold)" in done.stdout, done.stderr


def test_great_expectations_checks_a_frame_without_a_folder_or_a_network(
    tmp_path: Path, clean_env: dict[str, str]
) -> None:
    code = (
        "import great_expectations as gx, pandas as pd\n"
        "context = gx.get_context(mode='ephemeral')\n"
        "asset = context.data_sources.add_pandas('p').add_dataframe_asset('a')\n"
        "whole = asset.add_batch_definition_whole_dataframe('b')\n"
        "batch = whole.get_batch({'dataframe': pd.DataFrame({'x': [1.0]})})\n"
        "print(batch.validate(gx.expectations.ExpectColumnValuesToNotBeNull(column='x')).success)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean_env, capture_output=True, text=True
    )
    assert done.stdout.strip().endswith("True"), done.stderr
    assert not (tmp_path / "gx").exists()


def test_installed_versions_are_the_pinned_ones() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines)}
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}
    wrong = {
        name: (pin, installed[name])
        for name, pin in pins.items()
        if name in installed and installed[name].partition("+")[0] != pin
    }
    assert wrong == {}
    assert {"prefect", "fastapi", "sqlalchemy", "torch", "torchvision"} <= pins.keys() & installed.keys()


def test_tests_of_one_group_run_in_one_worker(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """pytest 9.2 takes no notice of pytest-xdist 3.8's groups, and costly fixtures are then made twice."""
    lines = ["import os, pytest", "pytestmark = pytest.mark.xdist_group('one')"]
    for number in range(6):
        lines.append(f"def test_{number}(): print('by', os.environ['PYTEST_XDIST_WORKER'])")
    (tmp_path / "test_grouped.py").write_text("\n".join(lines))
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-rP", "-c", os.devnull, str(tmp_path)],
        cwd=tmp_path, env=clean_env, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    workers = [line for line in said.splitlines() if line.startswith("by ")]
    assert len(workers) == 6, said
    assert len(set(workers)) == 1, said
