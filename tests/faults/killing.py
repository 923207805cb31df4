"""Start the pipeline in a checkout, kill -9 all of it at a chosen moment, and see what is left."""

import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil
from checkouts import copy_checkout, git
from outcome import Output, contents, differences, outcome, read_outputs
from ruamel.yaml import YAML

Runner = Literal["dvc", "flow"]
Moment = Literal["before", "in", "checkpoint", "after"]
MARK = "IKDDIT_FAULTS_MARK"
"""Every process of a started run carries it, also one that left its group and its parents."""
RUNNING = re.compile(r"Running stage '(\w+)'")
POLL_S = 0.02
USUAL_S = 6.0
"""Of a stage of the tiny profile, most of it imports."""
COMMANDS: dict[Runner, list[str]] = {
    "dvc": [sys.executable, "-m", "dvc", "repro"],
    # what `ikddit run` runs, whether or not it is installed in this environment
    "flow": [sys.executable, "-c", "from ikddit.cli import main; main()", "run"],
}
NOTHING = "nothing"
"""Where a kill came that was too late."""
SHARES = (1.0, 0.5, 0.0)
"""Of the wait, tried one after the other until a kill is in time."""
MARKED_STAGE = re.compile(r"stages/(\w+)\.py$")
OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")
SCRATCH = ("*.part", "*.old")
STEPS = {"steps: 6": "steps: 20", "checkpoint_every: 3": "checkpoint_every: 10"}
"""Enough steps of training for checkpoints to be written, and resumed from."""


@dataclass(frozen=True)
class Kill:
    """When to kill: before any stage, in one, at its first checkpoint, or when DVC notes what it wrote."""

    stage: str
    moment: Moment
    wait_s: float
    """From the moment's beginning."""
    runner: Runner = "dvc"


@dataclass(frozen=True)
class Killed:
    """What was running when the kill came."""

    place: str
    """`simulate`: in that stage; `DVC around simulate`: in DVC's own hands, before or after it; `nothing`: too late."""
    stage: str
    log: str

    @property
    def by_dvc(self) -> bool:
        """Whether DVC was at work, which removes and links outputs file by file."""
        return self.place.startswith("DVC")


class House:
    """A checkout with the tiny profile in which the pipeline ran undisturbed once."""

    def __init__(self, root: Path, env: dict[str, str]) -> None:
        self.root = root
        self.env = env | {
            "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]),
            "PYTHONUNBUFFERED": "1",
            "PREFECT_HOME": str(root / ".prefect"),
        }
        self.outputs: list[Output] = read_outputs(root)
        self.stages = list(dict.fromkeys(output.stage for output in self.outputs))
        self.target: str | None = None
        """Stage up to which `dvc repro` runs; all by default."""
        self.undisturbed: dict[str, dict[str, str]] = {}
        self.seconds = dict.fromkeys(self.stages, USUAL_S)
        """Of each stage with DVC's work after it, in the undisturbed run, if it ran there."""

    @classmethod
    def build(cls, root: Path, env: dict[str, str]) -> "House":
        """Copy this project and make its training long enough to be resumed; an earlier copy there is used again."""
        if (root / "dvc.lock").is_file():
            return cls(root, env)
        root.mkdir(parents=True)
        copy_checkout(root)
        text = (root / "params.yaml").read_text()
        for short, long in STEPS.items():
            assert f"  {short}\n" in text, short
            text = text.replace(f"  {short}\n", f"  {long}\n")
        (root / "params.yaml").write_text(text)
        git(root, "commit", "-qam", "longer training")
        return cls(root, env)

    def run_undisturbed(self) -> None:
        """One whole `dvc repro`: what it leaves is what every later run must come to."""
        starts: list[tuple[str, float]] = []
        said = []
        with subprocess.Popen(
            COMMANDS["dvc"],
            cwd=self.root,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if found := RUNNING.search(line):
                    starts.append((found[1], time.monotonic()))
        if process.returncode != 0:
            raise RuntimeError("".join(said))
        self.take_as_undisturbed()
        ends = [start for _, start in starts[1:]] + [time.monotonic()]
        self.seconds |= {name: end - start for (name, start), end in zip(starts, ends, strict=True)}

    def take_as_undisturbed(self) -> None:
        """Hold later runs to what is here now."""
        self.undisturbed = outcome(self.root, self.outputs)
        missing = [path for path, files in self.undisturbed.items() if not files]
        if missing:
            raise RuntimeError(f"{self.root}: the undisturbed run left no {', '.join(missing)}")

    def forget(self, stage: str, with_outputs: bool) -> None:
        """Make DVC run a stage again: drop it from dvc.lock, drop the run cache and perhaps its outputs."""
        shutil.rmtree(self.root / ".dvc" / "cache" / "runs", ignore_errors=True)
        yaml = YAML()
        lock = yaml.load(self.root / "dvc.lock")
        lock["stages"].pop(stage, None)  # gone already if a run failed
        yaml.dump(lock, self.root / "dvc.lock")
        for output in self.outputs:
            if with_outputs and output.stage == stage:
                remove(self.root / output.path)

    def _command(self, runner: Runner) -> list[str]:
        return [*COMMANDS[runner], *([self.target] if self.target else [])]

    # Start, kill ---------------------------------------------------------------------------------------

    def kill(self, kill: Kill, patience_s: float = 1800.0) -> Killed:
        """Start a run, wait for the moment, and kill -9 everything that came of it."""
        mark, log = uuid.uuid4().hex, self.root / ".ikddit" / "faults.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._command(kill.runner),
                cwd=self.root,
                env=self.env | {MARK: mark},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = time.monotonic() + patience_s
        if kill.moment != "before":
            self._await(
                lambda: kill.stage in RUNNING.findall(log.read_text(errors="replace")), process, deadline
            )
        if kill.moment == "checkpoint":
            states = self.root / ".ikddit" / "checkpoints"
            self._await(lambda: any(states.glob("*.pt")), process, deadline)
        if kill.moment == "after":
            stage = self._await_stage(process, kill.stage, deadline)
            self._await(
                lambda: stage is None or not stage.is_running() or stage.status() == "zombie",
                process,
                deadline,
            )
        end = time.monotonic() + kill.wait_s
        while time.monotonic() < end and process.poll() is None:
            time.sleep(POLL_S)
        for one in marked(mark):  # so that what is noted is what is killed
            with suppress(psutil.Error):
                one.suspend()
        place = self._place(process, mark, log.read_text(errors="replace"))
        kill_marked(mark)
        process.wait()
        return Killed(place, kill.stage, log.read_text(errors="replace"))

    def kill_in_time(self, kill: Kill, with_outputs: bool) -> Killed:
        """Make the stage run again and kill it; sooner, where the run had ended before."""
        for share in SHARES:
            self.forget(kill.stage, with_outputs)
            killed = self.kill(replace(kill, wait_s=kill.wait_s * share))
            if killed.place != NOTHING:
                break
        return killed

    def _await(self, ready: Callable[[], bool], process: "subprocess.Popen[bytes]", deadline: float) -> None:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(psutil.NoSuchProcess):
                if ready():
                    return
            time.sleep(POLL_S)

    def _await_stage(
        self, process: "subprocess.Popen[bytes]", name: str, deadline: float
    ) -> psutil.Process | None:
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    if stage_of(child) == name:
                        return child
            time.sleep(POLL_S)
        return None

    def _place(self, process: "subprocess.Popen[bytes]", mark: str, said: str) -> str:
        if process.poll() is not None:
            return NOTHING
        working = [name for one in marked(mark) if (name := stage_of(one))]
        if working:
            return working[0]
        ran = RUNNING.findall(said)
        return f"DVC around {ran[-1]}" if ran else "DVC before any stage"

    # What is left --------------------------------------------------------------------------------------

    def half_written(self, killed: Killed) -> tuple[list[str], list[str]]:
        """Outputs that are neither absent nor as after the undisturbed run.

        Returns:
            Those that are wrong; and those of which whole files are missing because DVC was just removing or linking
            them, which only DVC reads and completes.
        """
        wrong: list[str] = []
        partly: list[str] = []
        for output in self.outputs:
            now, whole = contents(self.root, output.path), self.undisturbed[output.path]
            if not now or now == whole:
                continue
            (partly if killed.by_dvc and now.items() <= whole.items() else wrong).append(output.path)
        return wrong, partly

    def recover(self, timeout_s: float = 1800.0) -> tuple[int, str]:
        """`dvc repro`, as a person would after a kill: exit code and what it said."""
        done = subprocess.run(
            self._command("dvc"),
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
        return done.returncode, done.stdout + done.stderr

    def come_back(self) -> tuple[int, str, str]:
        """`recover`, where it refuses after `mend`: DVC may have been killed while it wrote dvc.lock in place.

        Returns:
            Exit code and output of the last `dvc repro`, and what was mended.
        """
        code, said = self.recover()
        if code == 0:
            return code, said, ""
        by_hand = self.mend().strip()
        return *self.recover(), by_hand

    def run_flow(self) -> list[str]:
        """What is wrong after one whole `ikddit run` on the stores that kills have left."""
        done = subprocess.run(
            COMMANDS["flow"], cwd=self.root, env=self.env, capture_output=True, text=True, errors="replace"
        )
        if done.returncode != 0:
            return [f"ikddit run: exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"]
        return differences(self.undisturbed, outcome(self.root, self.outputs)) + self.stores()

    def mend(self) -> str:
        """`python -m pipelines.mend`, which the flows do by themselves."""
        command = [sys.executable, "-m", "pipelines.mend"]
        done = subprocess.run(
            command, cwd=self.root, env=self.env, capture_output=True, text=True, check=True
        )
        return done.stdout

    def scratch_left(self) -> list[str]:
        """Hidden scratch of our own that no run has taken over."""
        folders = [self.root / name for name in ("data", "models", "reports", "docs", ".ikddit")]
        found = {p for folder in folders for pattern in SCRATCH for p in folder.rglob(f".{pattern}")}
        return sorted(str(path.relative_to(self.root)) for path in found)

    def stores(self) -> list[str]:
        """What is wrong with the stores of MLflow and Prefect; nothing where all is well."""
        wrong = []
        for name, query in {
            "mlflow.db": "select count(*) from runs",
            ".prefect/prefect.db": "select count(*) from flow_run",
        }.items():
            if (self.root / name).is_file():
                wrong += [f"{name}: {reason}" for reason in damage(self.root / name, query)]
        return wrong

    def registered(self) -> list[str]:
        """What is wrong with the registry after a whole run: it must hold the version that is written down."""
        from ikddit.atomic import read_json
        from ikddit.registry.store import Store, has_files, locate_store, open_store

        store: Store = locate_store({}, self.root)
        client, experiment = open_store(store, "ikddit")
        said = read_json(self.root / "reports" / "registration.json")
        version = client.get_model_version(said["model_name"], str(said["version"]))
        run = client.get_run(said["run_id"])
        aliases = client.get_registered_model(said["model_name"]).aliases
        wrong = [] if has_files(client, version) else [f"version {version.version} has no files"]
        if run.info.status != "FINISHED" or version.run_id != said["run_id"]:
            wrong.append(f"run {said['run_id']} of version {version.version} is {run.info.status}")
        if said["alias"] is None:
            # A measured speed-up near 1 may make two versions of one model, served in full and masked, in turns.
            newest = client.get_model_version(said["model_name"], aliases["challenger"])
            if newest.tags["served"] == version.tags["served"]:
                wrong.append(f"version {newest.version} is served as {version.version} is, and yet another")
        elif str(aliases.get(said["alias"])) != str(said["version"]):
            wrong.append(f"aliases are {aliases}, registered was version {said['version']}")
        if "champion" not in aliases:
            wrong.append(f"no champion among {aliases}")
        alive = [r.info.run_id for r in client.search_runs([experiment]) if r.info.status == "RUNNING"]
        return wrong + [f"run {run_id} is still RUNNING" for run_id in alive]

    def damaged_cache(self) -> list[str]:
        """Objects of DVC's cache that are not what their name says."""
        objects = self.root / ".dvc" / "cache" / "files" / "md5"
        return [
            str(path.relative_to(objects))
            for path in sorted(objects.glob("??/*"))
            if OBJECT.fullmatch(path.name)
            and hashlib.md5(path.read_bytes()).hexdigest()
            != (path.parent.name + path.name).removesuffix(".dir")
        ]


def damage(database: Path, query: str) -> list[str]:
    """Why an SQLite file cannot be used, if it cannot; a killed writer's journal is rolled back by opening it."""
    try:
        with closing(sqlite3.connect(database, timeout=30.0)) as connection:
            said = [row[0] for row in connection.execute("pragma integrity_check")]
            tables = {row[0] for row in connection.execute("select name from sqlite_master")}
            if query.rpartition(" ")[2] in tables:  # a kill may come before the first table
                connection.execute(query).fetchone()
    except sqlite3.Error as error:
        return [str(error)]
    return [] if said == ["ok"] else said


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stage_of(process: psutil.Process) -> str | None:
    """Name of the stage that a process is, None if it is none."""
    with suppress(psutil.Error):
        for argument in process.cmdline()[1:2]:
            if found := MARKED_STAGE.match(argument):
                return found[1]
    return None


def marked(mark: str) -> Iterator[psutil.Process]:
    """Living processes that carry a mark."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def kill_marked(mark: str) -> None:
    """Kill -9 until none is left: one may start another while it is looked for."""
    while left := list(marked(mark)):
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=5.0)
