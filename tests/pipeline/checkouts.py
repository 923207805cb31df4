"""Checkouts to try things in, and commands run in them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]


OWN_SETTINGS = ("PREFECT_", "MLFLOW_", "DVC_")


def clean_environment() -> dict[str, str]:
    """What a person's shell holds, without settings of the tools under test; this Python first in PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    quiet = {"DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1"} | quiet


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def run(folder: Path, env: dict[str, str], *command: str, timeout_s: float = 300.0) -> str:
    """Run `python -m ...` in a folder; the whole output is in the assertion when it fails."""
    whole = [sys.executable, "-m", *command]
    done = subprocess.run(whole, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@contextmanager
def background(command: list[str], env: dict[str, str], log: Path, cwd: Path | None = None) -> Iterator[None]:
    """Run a server in a process group of its own while the block lasts; its output goes to `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdout=out, stderr=out, start_new_session=True)
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(ready: Callable[[], bool], seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_checkout(folder: Path) -> Path:
    """Copy this project as it is now (committed or not) into a new git repository, with the tiny profile."""
    from pipelines.scratch import copy_project

    return copy_project(folder, Path(__file__).with_name("tiny.yaml"))


def finished_checkout(factory: pytest.TempPathFactory, env: dict[str, str]) -> tuple[Path, Path]:
    """A checkout in which `dvc repro` has run, once for all workers of pytest-xdist, and a copy of it.

    Returns:
        The checkout, which the tests of one group may go on with; the copy, for those that need it as it was. The
        copy's registry points to the files of the checkout.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    note = shared / "finished.txt"
    with FileLock(shared / "finished.lock"):
        if not note.exists():
            folder = copy_checkout(factory.mktemp("checkout"))
            run(folder, env, "dvc", "repro", timeout_s=900)
            copy = factory.mktemp("finished") / "checkout"
            shutil.copytree(folder, copy, symlinks=True)
            note.write_text(f"{folder}\n{copy}")
    folder, copy = (Path(line) for line in note.read_text().splitlines())
    return folder, copy


def make_toy_checkout(folder: Path) -> Path:
    """A checkout with this project's flow, but stages that take no time."""
    (folder / "params.yaml").write_text("seed: 3\n")
    (folder / "dvc.yaml").write_text(TOY_STAGES)
    (folder / "toy_stage.py").write_text(TOY_COPY)
    (folder / "pipelines").symlink_to(ROOT / "pipelines")
    git(folder, "init", "-q")
    return folder


TOY_STAGES = """stages:
  last:
    cmd: python toy_stage.py first.txt reports/registration.json
    deps: [first.txt, toy_stage.py]
    outs: [reports/registration.json: {cache: false}]
  first:
    cmd: python toy_stage.py params.yaml first.txt
    params: [seed]
    outs: [first.txt: {cache: false}]
"""
TOY_COPY = """import json, sys
from pathlib import Path
print("reading", sys.argv[1])
Path(sys.argv[2]).parent.mkdir(exist_ok=True)
text = Path(sys.argv[1]).read_text()
Path(sys.argv[2]).write_text(json.dumps({"model_name": "toy", "version": 1, "text": text}))
"""
