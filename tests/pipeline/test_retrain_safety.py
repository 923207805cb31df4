"""One at a time, nothing left behind, nobody waits for a webhook: the flow's promises, without any training."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from checkouts import git, run, wait_until

HOLD = """
import sys, time
from pathlib import Path
from typing import ClassVar
from filelock import FileLock
with FileLock(Path(sys.argv[1]) / ".ikddit/retrain/lock"):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def repository(tmp_path: Path, clean_env: dict[str, str]) -> Path:
    """A DVC repository whose only stage reads data/raw and then sleeps."""
    (tmp_path / ".gitignore").write_text("/data/?*\n!/data/*.dvc\n/.ikddit/\n__pycache__\n")
    (tmp_path / "params.yaml").write_text("data: {raw: data/old}\nsleep_s: 0\n")
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(STAGES)
    git(tmp_path, "init", "-q")
    git(tmp_path, "config", "user.name", "test")
    git(tmp_path, "config", "user.email", "test@example.org")
    run(tmp_path, clean_env, "dvc", "init", "-q")
    run(tmp_path, clean_env, "dvc", "config", "core.autostage", "true")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "-qm", "start")
    (tmp_path / "data" / "raw").mkdir(parents=True)
    (tmp_path / "data" / "raw" / "a.txt").write_text("wafer\n")
    return tmp_path


STAGES = """stages:
  only:
    cmd: python stage.py ${data.raw} ${sleep_s}
    deps: [stage.py, "${data.raw}"]
    params: [sleep_s]
    outs: [reports/registration.json: {cache: false}]
"""
STAGE = """import json, os, sys, time
from pathlib import Path
from typing import ClassVar
(Path(os.environ["DVC_ROOT"]) / "stage.pid").write_text(str(os.getpid()))
time.sleep(float(sys.argv[2]))
Path("reports").mkdir(exist_ok=True)
Path("reports/registration.json").write_text(json.dumps({"version": 7, "read": sorted(os.listdir(sys.argv[1]))}))
"""


def test_experiment_sees_the_new_data_and_leaves_branch_index_and_workspace_alone(repository: Path) -> None:
    from pipelines.challenger import run_experiment

    head, before = git(repository, "rev-parse", "HEAD"), git(repository, "status", "--porcelain")
    for content in ("wafer\n", "another wafer\n"):  # a second run of the name replaces the first
        (repository / "data" / "raw" / "a.txt").write_text(content)
        branch, registration = run_experiment(repository, "2024-02", lambda line: None)
        assert registration == {"version": 7, "read": ["a.txt"]}
    assert git(repository, "status", "--porcelain").replace("?? stage.pid\n", "") == before
    assert git(repository, "rev-parse", "HEAD") == head
    assert "md5:" in git(repository, "show", f"{branch}:data/raw.dvc")
    assert "raw: data/raw" in git(repository, "show", f"{branch}:params.yaml")


def test_what_a_killed_run_left_is_ended_and_removed(repository: Path, clean_env: dict[str, str]) -> None:
    from pipelines.challenger import CHILD, clean_up
    from pipelines.clones import CLONES

    (repository / "params.yaml").write_text("data: {raw: data/old}\nsleep_s: 300\n")
    git(repository, "commit", "-qam", "slow")
    (repository / "stage.pid").unlink(missing_ok=True)
    code = "from pathlib import Path; from pipelines.challenger import run_experiment; "
    code += "run_experiment(Path.cwd(), '2024-03', print)"
    path = os.pathsep.join([str(Path(__file__).parents[2]), clean_env.get("PYTHONPATH", "")])
    log = repository / "flow.log"
    with log.open("wb") as out:
        flow = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=repository,
            env=clean_env | {"PYTHONPATH": path},
            stdout=out,
            stderr=out,
        )
    wait_until(lambda: (repository / "stage.pid").exists() and (repository / CHILD).exists(), 120, log)
    stage = int((repository / "stage.pid").read_text())
    flow.kill()
    flow.wait()
    assert psutil.pid_exists(stage)
    assert list((repository / CLONES).glob("tmp*"))
    clean_up(repository, lambda line: None)
    wait_until(lambda: not psutil.pid_exists(stage), 20, log)
    assert not list((repository / CLONES).glob("tmp*"))
    assert not git(repository, "ls-files", "data/raw.dvc")
    assert not (repository / "data" / "raw.dvc").exists()
    assert (repository / "data" / "raw" / "a.txt").is_file()


def test_clone_in_which_somebody_works_is_not_removed(repository: Path) -> None:
    from pipelines.challenger import clean_up
    from pipelines.clones import CLONES

    mine, dead = (repository / CLONES / name for name in ("tmpalive", "tmpdead"))
    mine.mkdir(parents=True)
    dead.mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], cwd=mine) as worker:
        try:
            clean_up(repository, lambda line: None)
            assert (mine.exists(), dead.exists()) == (True, False)
        finally:
            worker.kill()


def test_second_retraining_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines import retrain

    monkeypatch.setattr(retrain, "WAIT_S", 0.2)
    (tmp_path / ".ikddit" / "retrain").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(retrain.BusyError, match="gave way"), retrain.one_at_a_time(tmp_path):
                raise AssertionError("two at once")
        finally:
            holder.kill()


class _Hook(http.server.BaseHTTPRequestHandler):
    received: ClassVar[list[bytes]] = []
    silent = False

    def do_POST(self) -> None:
        if self.silent:
            time.sleep(5)
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    _Hook.received, _Hook.silent = [], False
    server = http.server.HTTPServer(("127.0.0.1", 0), _Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret"
    server.shutdown()


def test_webhook_is_told(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.retrain import WEBHOOK, notify

    monkeypatch.setenv(WEBHOOK, hook)
    assert notify("retrain 2024-02: promoted", 5.0, pytest.fail)
    assert json.loads(_Hook.received[0]) == {"text": "retrain 2024-02: promoted"}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/secret", "file:///etc/passwd", "nonsense"])
def test_webhook_that_is_not_reached_is_a_warning_without_its_address(url: str, monkeypatch) -> None:
    from pipelines.retrain import WEBHOOK, notify

    monkeypatch.setenv(WEBHOOK, url)
    said: list[object] = []
    assert not notify("text", 1.0, said.append)
    assert len(said) == 1
    assert "nobody was told" in str(said[0])
    assert "secret" not in str(said[0])


def test_webhook_that_never_answers_is_not_waited_for(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.retrain import WEBHOOK, notify

    monkeypatch.setenv(WEBHOOK, hook)
    _Hook.silent = True
    said: list[object] = []
    start = time.monotonic()
    assert not notify("text", 0.3, said.append)
    assert time.monotonic() - start < 4
    assert said


def test_without_an_address_nobody_is_told_and_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.retrain import WEBHOOK, notify

    monkeypatch.delenv(WEBHOOK, raising=False)
    assert not notify("text", 1.0, pytest.fail)
