"""A registered model under MLflow's own server, and behind the door of `ikddit serve`."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from made_workspace import write_workspace

from ikddit.params import Params
from ikddit.registry.door import LARGEST_BODY
from ikddit.registry.register import register
from ikddit.registry.serve import serve_command, serve_environment
from ikddit.registry.store import Store
from made_generator import write_generator

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("served")]  # one worker: servers start once
QUICK = {"n": 2, "steps": 2}
RECORD = {"barcode": "W1", "scanner_id": "A", "prev_map": [0.5] * 8192, "log_features": [1.0, None]}


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of an untrained model, registered by a process of its own, as the pipeline does."""
    root = tmp_path_factory.mktemp("served")
    workspace = write_workspace(root / "workspace")
    write_generator(workspace / "models" / "student")
    store = Store(root, f"sqlite:///{root / 'mlflow.db'}", (root / "mlruns").as_uri())
    register(Params(), workspace, store)
    return store


def serve(command: list[str], port: int, store: Store, log: Path) -> Iterator[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | serve_environment(store, threads=1) | {"PATH": path}
    with log.open("wb") as sink:
        server = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=sink, cwd=store.root, start_new_session=True
        )
    try:
        until = time.monotonic() + 240
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/ping").raise_for_status()
                break
            except httpx.HTTPError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def mlflow_server(registered: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/ikddit@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    yield from serve(command, port, registered, tmp_path_factory.mktemp("log") / "mlflow.log")


@pytest.fixture(scope="module")
def door(registered: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = serve_command("models:/ikddit@champion", "127.0.0.1", port)
    yield from serve(command, port, registered, tmp_path_factory.mktemp("log") / "door.log")


def post(url: str, body: Any, content_type: str = "application/json") -> httpx.Response:
    content = body if isinstance(body, str) else json.dumps(body)
    return httpx.post(url, content=content, headers={"content-type": content_type}, timeout=120)


def wafer(**changes: Any) -> dict[str, Any]:
    return {"dataframe_records": [RECORD | changes], "params": QUICK}


def test_a_wafer_is_answered_with_mean_sigma_m3s_and_risk(mlflow_server: str, door: str) -> None:
    answers = [post(url, wafer()) for url in (mlflow_server, door)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    (row,) = answers[0].json()["predictions"]
    assert row["barcode"] == "W1"
    assert (len(row["mean"]), len(row["sigma"])) == (8192, 8192)
    for axis in "xy":
        assert row[f"m3s_{axis}_low_nm"] <= row[f"m3s_{axis}_nm"] <= row[f"m3s_{axis}_high_nm"]
    assert 0 <= row["out_of_spec"] <= 1
    strict = wafer() | {"params": QUICK | {"limit_nm": 0.001}}
    assert post(mlflow_server, strict).json()["predictions"][0]["out_of_spec"] > 0.99
    unseen = post(mlflow_server, wafer(scanner_id="NEVER-SEEN"))
    unknown = post(mlflow_server, wafer(scanner_id=None))
    assert unseen.json() == unknown.json()


def test_the_example_that_lies_with_the_version_is_answered(mlflow_server: str, registered: Store) -> None:
    example = next((registered.root / "mlruns").rglob("serving_input_example.json")).read_text()
    predictions = post(mlflow_server, example).json()["predictions"]
    assert len(predictions) == 2
    assert predictions[0]["m3s_x_nm"] > 0


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"dataframe_records": [{"scanner_id": "A"}]}, "barcode"),
        (wafer(barcode=None), "barcode"),
        (wafer(prev_map=[1.0, 2.0]), "prev_map: 2 values, expected 8192"),
        (wafer(prev_map="text"), "prev_map"),
        (wafer(prev_map=["a"] * 8192), "prev_map"),
        (wafer(log_features=[1.0]), "log_features: 1 values, expected 2"),
        (wafer(log_lines="text"), "log_lines"),
        (wafer(prev_valid=[5] * 4096), "prev_valid"),
        (wafer() | {"params": {"n": 0}}, "n: 0"),
        (wafer() | {"params": {"steps": "many"}}, "steps"),
        ({"dataframe_records": [{"barcode": str(i)} for i in range(101)]}, "wafers: 101"),
        ({"dataframe_records": []}, "barcode"),
        ({"wafers": []}, "dataframe_records"),
        ("{not json", "JSON"),
        ("", "JSON"),
    ],
)
def test_a_bad_request_names_the_field_and_shows_no_stack_trace(
    mlflow_server: str, door: str, body: Any, word: str
) -> None:
    for url in (mlflow_server, door):
        answer = post(url, body)
        assert answer.status_code == 400
        assert word in answer.json()["message"]
        assert "stack_trace" not in answer.json()
        assert "Traceback" not in answer.text


def test_the_door_also_refuses_what_mlflow_ignores_or_stumbles_over(door: str) -> None:
    misspelt = post(door, wafer(prev_mapp=[]))
    assert (misspelt.status_code, "prev_mapp: unknown field" in misspelt.text) == (400, True)
    for content_type in ("text/csv", "application/vnd.apache.parquet", ""):
        answer = post(door, "barcode\nW1", content_type)
        assert answer.status_code == 415
        assert "Traceback" not in answer.text


def test_endless_body_is_cut_off_and_the_server_goes_on(door: str) -> None:
    """Over a real connection: what is not read stays in its buffers, and no more than those can be sent."""
    host, port = door.removeprefix("http://").partition("/")[0].split(":")
    head = "POST /invocations HTTP/1.1\r\nHost: door\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(f"{head}Content-Length: {2**40}\r\n\r\n".encode())
        assert client.recv(2**16).startswith(b"HTTP/1.1 413 ")
    chunk, sent = b"100000\r\n" + b" " * 2**20 + b"\r\n", 0
    with socket.create_connection((host, int(port)), timeout=60) as client, suppress(ConnectionError):
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        while sent < 4 * LARGEST_BODY:
            client.sendall(chunk)
            sent += 2**20
    assert sent < LARGEST_BODY + 32 * 2**20
    assert post(door, wafer()).status_code == 200
