"""Nobody is called: each tool's telemetry is seen to call when left on, and not to call as this project sets it."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from calls import calls, quiet_settings, watched
from checkouts import ROOT, run

MLFLOW = (
    "import mlflow, time\n"
    "mlflow.set_tracking_uri('sqlite:///quiet.db')\n"
    "mlflow.create_experiment('quiet')\n"
    "time.sleep(3)"
)
VALIDATION = (
    "import great_expectations as gx, pandas as pd\n"
    "context = gx.get_context(mode='ephemeral')\n"
    "asset = context.data_sources.add_pandas('p').add_dataframe_asset('a')\n"
    "batch = asset.add_batch_definition_whole_dataframe('b').get_batch({'dataframe': pd.DataFrame({'x': [1.0]})})\n"
    "assert batch.validate(gx.expectations.ExpectColumnValuesToNotBeNull(column='x')).success"
)


def wait_for_calls(folder: Path, seconds: float) -> list[str]:
    """Calls come from background threads and processes: give them the time."""
    deadline = time.monotonic() + seconds
    while not calls(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    return calls(folder)


@pytest.mark.parametrize("quiet", [False, True])
def test_mlflow_calls_as_it_comes_and_is_silent_with_the_project_s_variables(
    quiet: bool, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    env = watched(clean_env, tmp_path) | (quiet_settings(ROOT) if quiet else {})
    done = subprocess.run(
        [sys.executable, "-c", MLFLOW], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # Without the first case, the silence of the second could mean that nobody listened.
    assert bool(wait_for_calls(tmp_path, 1 if quiet else 30)) is not quiet


@pytest.mark.parametrize("silenced", ["nothing", "variables", "config"])
def test_dvc_reports_as_it_comes_and_not_with_the_project_s_variables_or_config(
    silenced: str, tmp_path: Path, clean_env: dict[str, str], dvc_repository: Path
) -> None:
    # It reports from a process of its own, with another Python path: looked at is whether that is started.
    env = watched(clean_env, tmp_path) | {"DVC_ANALYTICS_ENDPOINT": "http://127.0.0.1:9/"}
    shutil.copytree(dvc_repository, tmp_path, dirs_exist_ok=True)
    if silenced == "config":
        shutil.copy(ROOT / ".dvc" / "config", tmp_path / ".dvc" / "config")
    said = run(
        tmp_path, env | (quiet_settings(ROOT) if silenced == "variables" else {}), "dvc", "status", "-v"
    )
    assert ("'daemon', 'analytics'" in said) is (silenced == "nothing")


@pytest.mark.parametrize("quiet", [False, True])
def test_the_prefect_server_starts_its_telemetry_only_as_it_comes(
    quiet: bool, tmp_path: Path, clean_env: dict[str, str]
) -> None:
    # It first reports ten minutes after its start: looked at is what it would start.
    code = (
        "from prefect.server.services import telemetry\n"
        "from prefect.server.services.perpetual_services import get_enabled_perpetual_services\n"
        "from prefect._internal.analytics.enabled import is_telemetry_enabled\n"
        "started = [s.function.__name__ for s in get_enabled_perpetual_services()]\n"
        "print('send_telemetry_heartbeat' in started, is_telemetry_enabled())"
    )
    env = watched(clean_env, tmp_path) | {"PREFECT_HOME": str(tmp_path)}
    env |= quiet_settings(ROOT) if quiet else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == [str(not quiet)] * 2, done.stderr


def test_the_flow_is_silent_and_runs_without_a_variable_a_server_or_an_activated_environment(
    tmp_path: Path, clean_env: dict[str, str], toy_checkout: Path
) -> None:
    folder = toy_checkout
    env = watched(clean_env | {"PATH": "/usr/bin:/bin"}, tmp_path)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    run(folder, env, "pipelines.reproduce")  # DVC, and Prefect with a server of its own
    assert "seed: 3" in (folder / "reports" / "registration.json").read_text()
    assert (folder / ".prefect" / "prefect.db").is_file()
    store = (
        "from ikddit.registry.store import *; open_store(locate_store(), 'quiet'); import time; time.sleep(3)"
    )
    for code in (store, VALIDATION):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert wait_for_calls(tmp_path, 1) == []
    assert (folder / "mlflow.db").is_file()
    assert not (folder / "gx").exists()


def test_systemd_s_and_the_image_s_variables_are_those_of_make() -> None:
    quiet = quiet_settings(ROOT)
    lines = [line for line in (ROOT / "deploy" / "quiet.env").read_text().splitlines() if line[:1] != "#"]
    assert dict(line.split("=") for line in lines) == quiet
    image = (ROOT / "deploy" / "Dockerfile").read_text()
    assert [name for name, value in quiet.items() if f"{name}={value}" not in image] == []
