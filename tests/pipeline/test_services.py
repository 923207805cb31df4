"""Servers, schedule and work pool of one machine, started as a person starts them, on a checkout of toy stages."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkouts import ROOT, background, free_port, git, make_toy_checkout, run, wait_until
from ruamel.yaml import YAML

from ikddit.errors import IkdditError, ParamsError
from ikddit.params import ScheduleParams, load_params

SLOW_STAGES = """stages:
  only:
    cmd: python toy_stage.py
    always_changed: true
    outs: [reports/registration.json: {cache: false}]
"""
SLOW_STAGE = """import json, time
from pathlib import Path
def note(what):
    with Path("stages.log").open("a") as log:
        print(what, time.time(), file=log)
note("start")
time.sleep(2)
Path("reports").mkdir(exist_ok=True)
Path("reports/registration.json").write_text(json.dumps({"model_name": "toy", "version": 1}))
note("end")
"""


@dataclass
class Running:
    """`python -m pipelines.services` and where it listens."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    env: dict[str, str]
    mlflow: str
    api: str
    said: Path

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.api + path, data, {"Content-Type": "application/json"} if data else {}
        )
        return json.load(urllib.request.urlopen(request, timeout=30))


pytestmark = pytest.mark.xdist_group("services")  # one worker: the fixture is minutes of work


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Iterator[Running]:
    folder = make_toy_checkout(tmp_path_factory.mktemp("services"))
    (folder / "dvc.yaml").write_text(SLOW_STAGES)
    (folder / "toy_stage.py").write_text(SLOW_STAGE)
    (folder / "stages.log").touch()
    (folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    run(folder, clean_env, "dvc", "init", "-q")
    run(folder, clean_env, "dvc", "config", "core.autostage", "false")
    ports = free_port(), free_port()
    env = clean_env | {
        "MLFLOW_PORT": str(ports[0]),
        "PREFECT_SERVER_API_PORT": str(ports[1]),
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }
    said = folder / "said.log"
    with said.open("wb") as out:
        command = [sys.executable, "-m", "pipelines.services"]
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
    client_env = env | {
        "PREFECT_API_URL": f"http://127.0.0.1:{ports[1]}/api",
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "IKDDIT_ROOT": str(folder),
        "PREFECT_HOME": str(folder / ".prefect"),
    }
    try:
        wait_until(lambda: process.poll() is not None or "Ctrl-C" in said.read_text(), 200, said)
        assert process.poll() is None, said.read_text()
        mlflow = f"http://127.0.0.1:{ports[0]}"
        yield Running(process, folder, client_env, mlflow, client_env["PREFECT_API_URL"], said)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_one_command_starts_both_servers_and_says_where(running: Running) -> None:
    assert urllib.request.urlopen(running.mlflow + "/health").status == 200
    assert urllib.request.urlopen(running.api + "/health").status == 200
    said = running.said.read_text()
    assert running.mlflow in said
    assert running.api in said
    # Everything they keep is inside the checkout.
    assert (running.folder / "mlflow.db").is_file()
    assert (running.folder / ".prefect" / "prefect.db").is_file()


def test_pages_of_other_sites_may_not_call_prefect(running: Running) -> None:
    own = running.api.removesuffix("/api")
    for origin, allowed in (("https://elsewhere.example", None), (own, own)):
        request = urllib.request.Request(running.api + "/health", headers={"Origin": origin})
        assert urllib.request.urlopen(request).headers["Access-Control-Allow-Origin"] == allowed


def test_a_schedule_fires_and_two_runners_never_work_at_once(running: Running) -> None:
    log, second = running.folder / "serve.log", running.folder / "second.log"
    stages = running.folder / "stages.log"
    serve = [sys.executable, "-m", "pipelines.serve", "reproduce", "--every", "4"]

    def done() -> bool:
        return stages.read_text().count("end") >= 3

    with background(serve, running.env, log, running.folder):
        wait_until(lambda: "reproduce/scheduled: every 4 s" in log.read_text(), 60, log)
        with background(serve, running.env, second, running.folder):
            wait_until(lambda: "reproduce/scheduled: every 4 s" in second.read_text(), 60, second)
            wait_until(done, 150, log)
    lines = [line.split() for line in stages.read_text().splitlines()]
    # A run takes longer than the interval, and two runners look for work: without limits they would overlap.
    assert [what for what, _ in lines][:6] == ["start", "end"] * 3
    scheduled = running.ask(
        "/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "limit": 20}
    )
    assert all(found["auto_scheduled"] for found in scheduled)
    assert len(scheduled) >= 2


def test_stopping_the_runner_leaves_the_schedule_on(running: Running) -> None:
    (deployment,) = running.ask("/deployments/filter", {"deployments": {"name": {"any_": ["scheduled"]}}})
    assert deployment["paused"] is False
    assert [schedule["active"] for schedule in deployment["schedules"]] == [True]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_the_server_will_mark_runs_whose_process_is_gone(running: Running) -> None:
    rules = running.ask("/automations/filter", {})
    # Two runners have started, and there is one rule.
    (rule,) = [found for found in rules if "process is gone" in found["name"]]
    assert rule["trigger"]["posture"] == "Proactive"
    assert rule["trigger"]["within"] == 3 * 180
    assert rule["trigger"]["for_each"] == ["prefect.resource.id"]
    assert {"prefect.flow-run.heartbeat", "prefect.flow-run.Completed"} <= set(rule["trigger"]["expect"])
    assert [(a["type"], a["state"]) for a in rule["actions"]] == [("change-flow-run-state", "CRASHED")]


def test_prefect_yaml_deploys_to_a_work_pool_whose_worker_runs_it(running: Running) -> None:
    git(running.folder, "add", "dvc.yaml")
    run(running.folder, running.env, "prefect", "work-pool", "create", "ikddit", "--type", "process")
    run(running.folder, running.env, "prefect", "--no-prompt", "deploy", "--all", timeout_s=120)
    found = running.ask("/deployments/filter", {"deployments": {"name": {"any_": ["worker"]}}})
    crons = {d["entrypoint"]: [s["schedule"]["cron"] for s in d["schedules"]] for d in found}
    assert crons == {
        "pipelines/retrain.py:retrain": [ScheduleParams().retrain],
        "pipelines/reproduce.py:reproduce": [],
    }
    assert {d["global_concurrency_limit"]["limit"] for d in found} == {1}
    stages, log = running.folder / "stages.log", running.folder / "worker.log"
    before = stages.read_text().count("end")
    run(running.folder, running.env, "prefect", "deployment", "run", "reproduce/worker")
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "ikddit", "--limit", "1"]
    # Started elsewhere: the pull step of prefect.yaml leads to the checkout.
    with background(worker, running.env, log, running.folder.parent):
        wait_until(lambda: stages.read_text().count("end") > before, 90, log)


def test_ports_that_are_taken_are_named(running: Running) -> None:
    env = running.env | {"PREFECT_SERVER_API_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.services"],
        cwd=running.folder, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "MLFLOW_PORT" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_stops_both_servers_and_their_children(running: Running) -> None:  # the last user of `running`
    children = psutil.Process(running.process.pid).children(recursive=True)
    assert len(children) >= 3  # two servers, and MLflow's worker
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []
    assert len(gone) == len(children)
    for name in ("MLFLOW_PORT", "PREFECT_SERVER_API_PORT"):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(running.env[name]))) != 0


def test_serving_without_a_server_says_how_to_start_one(tmp_path: Path, clean_env: dict[str, str]) -> None:
    folder = make_toy_checkout(tmp_path)
    env = clean_env | {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.serve", "reproduce"],
        cwd=folder, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "make services" in done.stderr
    assert "PREFECT_API_URL" in done.stderr  # one on another port is not found by itself
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"reproduce": "0 25 * * *"}, "schedule.reproduce"),
        ({"reproduce": "@daily", "timezone": "Mars"}, "Mars"),
    ],
)
def test_a_cron_line_that_is_none_is_refused_by_name(settings: dict[str, str], named: str) -> None:
    from pipelines.serve import make_deployment

    with pytest.raises(ParamsError, match=named):
        make_deployment("reproduce", ScheduleParams(**settings))


def test_cron_lines_of_prefect_yaml_are_those_of_params_yaml() -> None:
    from pipelines.serve import FLOWS

    settings = load_params(ROOT / "params.yaml").schedule
    written = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    assert {d["entrypoint"] for d in written} == {f"pipelines/{name}.py:{name}" for name in FLOWS}
    for deployment in written:
        cron = getattr(settings, deployment["entrypoint"].partition(":")[2])
        expected = [] if cron is None else [{"cron": cron, "timezone": settings.timezone}]
        assert deployment["schedules"] == expected


@pytest.mark.parametrize("text", ["abc", "", "0", "65536", "-1"])
@pytest.mark.parametrize("name", ["MLFLOW_PORT", "PREFECT_SERVER_API_PORT"])
def test_a_port_that_is_none_is_named_by_its_variable(name: str, text: str, tmp_path: Path) -> None:
    from pipelines.services import make_services

    (tmp_path / "mlflow.db").touch()  # as if it had been made: nothing is opened
    with pytest.raises(IkdditError, match=f"^{name}: '{text}' is no port"):
        make_services(tmp_path, {"DVC_ROOT": str(tmp_path), name: text})


def test_a_proxy_of_the_environment_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "health").touch()
    port, log = free_port(), tmp_path / "server.log"
    server = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    ask = (
        f"from pipelines.services import Service; s = Service('a', (), {{}}, '127.0.0.1', {port}, '/health')"
    )
    env = os.environ | {
        "http_proxy": f"http://127.0.0.1:{free_port()}",
        "no_proxy": "",
        "PREFECT_HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", f"{ask}; raise SystemExit(not s.is_up())"]
    with background(server, dict(os.environ), log, tmp_path):
        wait_until(lambda: subprocess.run(command, cwd=ROOT, env=env).returncode == 0, 30, log)


def test_a_tracking_server_elsewhere_is_not_started_again(tmp_path: Path) -> None:
    from pipelines.services import make_services

    with pytest.raises(IkdditError, match=r"open https://mlflow\.example\.org"):
        make_services(tmp_path, {"MLFLOW_TRACKING_URI": "https://mlflow.example.org"})
    assert os.listdir(tmp_path) == []
