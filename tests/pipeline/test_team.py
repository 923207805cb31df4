"""The team's set-up on loopback: PostgreSQL, an S3 API, MLflow and Prefect behind logins, as deploy/ starts them."""

import base64
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from checkouts import ROOT, background, free_port, git, run, wait_until
from deploy_files import DEPLOY
from team import BUCKET, S3_KEYS, postgres, s3

sys.path.insert(0, str(ROOT / "tests" / "registry"))
from made_workspace import StandIn, write_workspace

PASSWORD = "a-long-enough-one"


def status(url: str, login: str | None = None) -> int:
    headers = {} if login is None else {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
    try:
        return int(urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10).status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


pytestmark = pytest.mark.xdist_group("team")  # one worker: the fixture is minutes of work


@pytest.fixture(scope="module")
def database(clean_env: dict[str, str]) -> Iterator[str]:
    pytest.importorskip("psycopg2", reason="pip install -c constraints.txt -e '.[team]'")
    with postgres(clean_env) as address:
        yield address


@pytest.fixture(scope="module")
def object_store(clean_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3(clean_env | S3_KEYS, tmp_path_factory.mktemp("s3")) as url:
        yield url


@pytest.fixture(scope="module")
def mlflow_url(
    clean_env: dict[str, str],
    database: str,
    object_store: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    pytest.importorskip("flask_wtf", reason="pip install -c constraints.txt -e '.[team]'")
    folder, port = tmp_path_factory.mktemp("mlflow-server"), free_port()
    env = clean_env | S3_KEYS | {
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://{database}/mlflow",
        "IKDDIT_AUTH_DATABASE_URI": f"postgresql://{database}/mlflow_auth",
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_S3_ENDPOINT_URL": object_store,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "key of the test",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
        "TMPDIR": str(folder),
    }  # fmt: skip
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    with background([str(DEPLOY / "mlflow-server.sh")], env, log, folder):
        wait_until(lambda: status(f"{url}/health") == 200, 120, log)
        yield url


def test_mlflow_lets_nobody_in_without_the_password(mlflow_url: str) -> None:
    search = f"{mlflow_url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert status(search) == 401
    assert status(search, "admin:wrong") == 401
    assert status(search, f"admin:{PASSWORD}") == 200


def test_mlflow_refuses_a_foreign_host_name(mlflow_url: str) -> None:
    request = urllib.request.Request(mlflow_url + "/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", "evil.example.org")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=10)
    assert error.value.code == 403


def test_a_version_is_registered_loaded_and_named_over_postgresql_and_s3(
    mlflow_url: str, object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    import mlflow.pyfunc

    from ikddit.params import Params
    from ikddit.registry.register import register
    from ikddit.registry.show import list_versions
    from ikddit.registry.store import locate_store

    generator: Any = ModuleType("ikddit.generator")
    generator.Generator = StandIn
    monkeypatch.setitem(sys.modules, "ikddit.generator", generator)
    settings = {
        "MLFLOW_TRACKING_URI": mlflow_url,
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)  # clients need no key of the object store
    before = mlflow.get_tracking_uri()
    try:
        workspace = write_workspace(tmp_path / "workspace")
        store = locate_store()
        first = register(Params(), workspace, store)
        assert first["version"] == 1
        assert register(Params(), workspace, store)["version"] == 1  # the same result: nothing new
        (row,) = list_versions(store, "ikddit", "ikddit")
        assert row.aliases == ("challenger", "champion")
        model = mlflow.pyfunc.load_model("models:/ikddit@champion")
        example = model.input_example
        assert example is not None
        assert model.predict(example)["m3s_nm"].tolist() == [1.5] * len(example)
    finally:
        mlflow.end_run("KILLED")
        mlflow.set_tracking_uri(before)
    client = boto3.client(
        "s3", endpoint_url=object_store, aws_access_key_id="key", aws_secret_access_key="secret"
    )
    keys = [found["Key"] for found in client.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]]
    assert any(key.endswith("/MLmodel") for key in keys)
    assert any(key.endswith("model.safetensors") for key in keys)


def test_data_pushed_to_s3_are_pulled_by_a_fresh_clone(
    object_store: str, clean_env: dict[str, str], tmp_path: Path
) -> None:
    env = clean_env | S3_KEYS | {"AWS_ENDPOINT_URL_S3": object_store}
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    git(first, "init", "-q")
    run(first, env, "dvc", "init", "-q")
    wafers = {f"part-{i}.parquet": bytes([i]) * 1000 for i in range(3)}
    (first / "wafers").mkdir()
    for name, content in wafers.items():
        (first / "wafers" / name).write_bytes(content)
    run(first, env, "dvc", "add", "-q", "wafers")
    # As docs/operations.md says; the endpoint comes from the environment and stays out of git.
    run(first, env, "dvc", "remote", "add", "--default", "team", f"s3://{BUCKET}/dvc")
    run(first, env, "dvc", "push", "-q")
    git(first, "add", "--all")
    git(first, "commit", "-qm", "data")
    git(tmp_path, "clone", "-q", str(first), str(second))
    assert not (second / "wafers").exists()
    run(second, env, "dvc", "pull", "-q")
    assert {p.name: p.read_bytes() for p in (second / "wafers").iterdir()} == wafers
    assert "127.0.0.1" not in (second / ".dvc" / "config").read_text()


def test_prefect_keeps_its_runs_in_postgresql_behind_a_password(
    database: str, clean_env: dict[str, str], tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "prefect.log"
    url, login = f"http://127.0.0.1:{port}/api", "fab:secret"
    env = clean_env | {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_PORT": str(port),
    }
    with background([sys.executable, "-m", "prefect", "server", "start"], env, log):
        wait_until(
            lambda: status(f"{url}/health") == 200, 150, log
        )  # the health check of deploy/ has no password
        assert status(f"{url}/admin/version") == 401
        assert status(f"{url}/admin/version", "fab:wrong") == 401
        assert status(f"{url}/admin/version", login) == 200
        client = clean_env | {
            "PREFECT_HOME": str(tmp_path),
            "PREFECT_API_URL": url,
            "PREFECT_API_AUTH_STRING": login,
        }
        code = "from prefect import flow\n@flow\ndef tick(): return 1\nassert tick() == 1"
        done = subprocess.run([sys.executable, "-c", code], env=client, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    import psycopg2

    with psycopg2.connect(f"postgresql://{database}/prefect") as connection, connection.cursor() as cursor:
        cursor.execute("select state_name from flow_run")
        assert cursor.fetchall() == [("Completed",)]
    assert not list(tmp_path.glob("*.db"))
