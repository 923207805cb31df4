"""One at a time, nothing left behind, nobody waits for a webhook: the flow's promises, without any training."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from checkouts import git, wait_until

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
def repository(tmp_path: Path, dvc_repository: Path) -> Path:
    """A DVC repository whose only stage reads data/raw and then sleeps."""
    shutil.copytree(dvc_repository, tmp_path, dirs_exist_ok=True)
    (tmp_path / ".gitignore").write_text("/data/?*\n!/data/*.dvc\n/.ikddit/\n__pycache__\n")
    (tmp_path / "params.yaml").write_text("data: {raw: data/old}\nsleep_s: 0\n")
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "dvc.yaml").write_text(STAGES)
    git(tmp_path, "config", "user.name", "test")
    git(tmp_path, "config", "user.email", "test@example.org")
    (tmp_path / ".dvc" / "config").write_text("[core]\n    autostage = true\n")
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

    mine, dead, new = (repository / CLONES / name for name in ("tmpalive", "tmpdead", "tmpnew"))
    for clone in (mine, dead, new):  # in the new one somebody is about to work
        clone.mkdir(parents=True)
        if clone != new:
            os.utime(clone, (0, 0))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], cwd=mine) as worker:
        try:
            clean_up(repository, lambda line: None)
            assert (mine.exists(), dead.exists(), new.exists()) == (True, False, True)
        finally:
            worker.kill()


def test_without_leave_to_register_versions_nothing_runs(tmp_path: Path) -> None:
    from pipelines.retrain import retrain

    from ikddit.errors import ParamsError

    (tmp_path / "params.yaml").write_text("register: {version: false}\n")
    with pytest.raises(ParamsError, match=r"register\.version: false"):
        retrain.fn(tmp_path)
    assert os.listdir(tmp_path) == ["params.yaml"]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store in `tmp_path` with three sound versions, the first of them champion, made of 2024-02."""
    import mlflow
    from pipelines.champion import MONTHS_TAG

    from ikddit.registry.gate import Evidence
    from ikddit.registry.store import locate_store, open_store

    before = mlflow.get_tracking_uri()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    client, _ = open_store(locate_store(), "ikddit")
    client.create_registered_model("ikddit")
    tags = Evidence(0.78, 0.90, 0.90, 0.97, True, "a.dir").as_tags() | {MONTHS_TAG: "2024-02"}
    for number in (1, 2, 3):
        folder = tmp_path / "packages" / str(number)
        folder.mkdir(parents=True)
        (folder / "MLmodel").write_text("")
        client.create_model_version("ikddit", folder.as_uri(), tags=tags)
    client.set_registered_model_alias("ikddit", "champion", "1")
    yield client
    mlflow.set_tracking_uri(before)


def test_champion_that_changed_during_the_training_is_not_replaced(
    registry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import retrain

    from ikddit.params import parse_params
    from ikddit.registry.gate import PairedDifference
    from ikddit.registry.promotion import promote
    from ikddit.registry.store import locate_store

    def compare(*models: object) -> tuple[dict[str, Any], PairedDifference]:
        promote(3, "by hand", store=locate_store(), force=True)
        return {"better": True, "reason": "better by 0.1 nm"}, PairedDifference(-0.1, -0.15, -0.05, 100)

    monkeypatch.setattr(retrain, "compare_models", compare)
    settle = retrain.compare_and_settle.fn
    _, decision, reason = settle(tmp_path, parse_params({}), locate_store(), 1, 2, "drift")
    assert decision == "kept"
    assert "champion is version 3 by now, not 1, which version 2 was compared with" in reason
    assert registry.get_model_version_by_alias("ikddit", "champion").version == 3
    tags = registry.get_model_version("ikddit", "2").tags
    assert (tags["retrain.decision"], tags["retrain.reason"]) == ("kept", reason)
    assert "paired" not in tags


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("window", "decision", "reasons"),
    [
        (1, "nothing new", ["no new wafers"]),  # 2024-01 has left the window, and is no news for ever
        (
            0,
            "not retrained",
            [
                "drift not measured",
                "RMSE not measured",
                "champion 0 days old",
                "not in the champion: 2024-01; --force trains with them",
            ],
        ),
    ],
)
def test_news_are_what_a_challenger_would_learn_from(
    tmp_path: Path, window: int, decision: str, reasons: list[str]
) -> None:
    from pipelines.retrain import _judge_champion

    from ikddit.params import parse_params

    for name in ("2024-01", "2024-02"):
        (tmp_path / "data" / "months" / name).mkdir(parents=True)
    found = _judge_champion(tmp_path, parse_params({"retrain": {"months": window}}), False, "2024-02", {})
    assert (found["decision"], found["reasons"]) == (decision, reasons)


def test_demo_deletes_no_folder_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.demo_retrain import clear, main

    mine, theirs = tmp_path / "play", tmp_path / "work"
    clear(mine)
    (mine / "params.yaml").write_text("seed: 0\n")
    clear(mine)
    assert not (mine / "params.yaml").exists()
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years")
    monkeypatch.setattr(sys, "argv", ["demo_retrain", "--folder", str(theirs)])
    with pytest.raises(SystemExit, match=f"demo-retrain: {theirs}: not made by this command"):
        main()
    assert (theirs / "thesis.tex").read_text() == "years"


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
    over = threading.Event()

    def do_POST(self) -> None:
        if self.silent:
            self.over.wait(60)
        self.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[str]:
    _Hook.received, _Hook.silent, _Hook.over = [], False, threading.Event()
    server = http.server.HTTPServer(("127.0.0.1", 0), _Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret"
    _Hook.over.set()
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
