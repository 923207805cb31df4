"""deploy/: complete, consistent with what the code reads, and nothing in it left to chance."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deploy_files import DEPLOY, VARIABLE, compose, env_file

ROOT = DEPLOY.parent
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
EXAMPLE = env_file(DEPLOY / "team.env.example")
FILLED = {name: value or "filled" for name, value in EXAMPLE.items()}


def test_every_variable_of_the_compose_file_is_in_the_example_and_explained() -> None:
    used = {found[0] for found in VARIABLE.findall((DEPLOY / "compose.yaml").read_text())}
    assert used - set(EXAMPLE) == set()
    script = {found[0] for found in VARIABLE.findall((DEPLOY / "mlflow-server.sh").read_text())}
    assert script - {"IKDDIT_PYTHON", "MLFLOW_DISABLE_TELEMETRY"} - set(EXAMPLE) == set()
    assert [name for name in sorted(EXAMPLE | dict.fromkeys(used)) if f"`{name}`" not in OPERATIONS] == []


def test_no_secret_has_a_default() -> None:
    secret = re.compile(r"PASSWORD|SECRET|AUTH_STRING")
    assert {EXAMPLE[name] for name in EXAMPLE if secret.search(name)} == {""}
    for name, kind, _ in VARIABLE.findall((DEPLOY / "compose.yaml").read_text()):
        assert kind == "?" or not secret.search(name), name


@pytest.mark.parametrize(
    "missing", ["POSTGRES_PASSWORD", "MLFLOW_AUTH_ADMIN_PASSWORD", "PREFECT_AUTH_STRING"]
)
def test_compose_does_not_start_without_a_secret(missing: str) -> None:
    with pytest.raises(KeyError, match=missing):
        compose(FILLED | {missing: ""})


def test_compose_file_is_whole() -> None:
    found = compose(FILLED)
    services = found["services"]
    assert set(services) == {"postgres", "s3", "bucket", "mlflow", "prefect", "schedule", "proxy"}
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d+\.\d+|RELEASE\.\d{4}", tag), f"{name}: {service['image']} is not pinned"
        needs = service.get("depends_on", {})
        for needed in needs:
            assert needed in services
            if isinstance(needs, dict) and needs[needed]["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], needed
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            local = source.startswith(("./", "filled"))
            assert source in found["volumes"] or local, volume
            if source.startswith("./"):
                assert (DEPLOY / source).is_file(), source
        # Only the proxy speaks to the outside; all others listen where IKDDIT_BIND says.
        for port in service.get("ports", []):
            assert name == "proxy" or port.startswith("127.0.0.1:"), port
    assert services["mlflow"]["build"]["dockerfile"] == "deploy/Dockerfile"


def test_services_of_the_compose_file_find_one_another() -> None:
    services = compose(FILLED)["services"]
    schedule, mlflow = services["schedule"]["environment"], services["mlflow"]["environment"]
    assert schedule["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    # MLflow refuses host names it was not told of, its neighbours' included.
    assert "mlflow:5000" in mlflow["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    prefect = services["prefect"]["environment"]
    assert schedule["PREFECT_API_AUTH_STRING"] == prefect["PREFECT_SERVER_API_AUTH_STRING"]
    databases = set(re.findall(r"CREATE DATABASE (\w+)", (DEPLOY / "postgres-init.sql").read_text()))
    databases.add(services["postgres"]["environment"]["POSTGRES_DB"])
    urls = [mlflow["MLFLOW_BACKEND_STORE_URI"], mlflow["IKDDIT_AUTH_DATABASE_URI"]]
    urls.append(prefect["PREFECT_SERVER_DATABASE_CONNECTION_URL"])
    assert {url.rpartition("/")[2] for url in urls} == databases


def test_the_image_installs_the_pinned_packages_and_gets_every_file_it_copies() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-", text, re.MULTILINE)
    assert "pip install -c constraints.txt '.[team]'" in text
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, source


def test_the_server_script_refuses_to_start_without_its_settings() -> None:
    assert subprocess.run(["sh", "-n", str(DEPLOY / "mlflow-server.sh")]).returncode == 0
    bare = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([str(DEPLOY / "mlflow-server.sh")], env=bare, capture_output=True, text=True)
    assert done.returncode != 0
    assert "MLFLOW_BACKEND_STORE_URI: is not set: postgresql://" in done.stderr


def test_units_pass_systemd_s_own_check(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze here")
    assert [unit.stem for unit in UNITS] == ["ikddit-mlflow", "ikddit-prefect", "ikddit-schedule"]
    python = tmp_path / "ikddit" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "ikddit" / "deploy").mkdir()
    shutil.copy(DEPLOY / "mlflow-server.sh", tmp_path / "ikddit" / "deploy")
    shutil.copy(DEPLOY / "quiet.env", tmp_path / "ikddit" / "deploy")
    copies = []
    for unit in UNITS:
        copies.append(tmp_path / unit.name)
        copies[-1].write_text(unit.read_text().replace("/opt/ikddit", str(tmp_path / "ikddit")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, copies)], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "ikddit" in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr
    broken = tmp_path / "ikddit-broken.service"
    broken.write_text(copies[0].read_text().replace("Type=exec", "Type=exec\nRestart=whenever"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(broken)], capture_output=True, text=True
    )
    assert "whenever" in done.stderr  # the check looks


def test_units_read_the_environment_that_the_example_fills() -> None:
    for unit in UNITS:
        text = unit.read_text()
        assert "EnvironmentFile=/etc/ikddit/team.env" in text
        assert "EnvironmentFile=/opt/ikddit/deploy/quiet.env" in text
        assert not re.search(r"PASSWORD|SECRET", text)
        # A runner that is stopped ends its stage; systemd waits for that, and not for ever.
        assert re.search(r"TimeoutStopSec=\d+", text)
