"""The retraining flow, killed: champion and delivery stay as they were, and the next run decides what it would have."""

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from checkouts import ROOT, git
from killing import MARK, NOTHING, POLL_S, RUNNING, damage, kill_marked, marked, stage_of
from pipelines.demo_retrain import (
    MONTHS,
    Play,
    deliver,
    environment,
    make_champion,
    run_retraining,
)
from pipelines.scratch import copy_project
from ruamel.yaml import YAML

COMMAND = [sys.executable, "-m", "pipelines.retrain"]
PLAY = Play(ROOT / "tests" / "pipeline" / "tiny_retrain.yaml", lots=60, scanner="LITH04", shift_nm=8.0)
"""The smallest play in which the challenger wins."""
MEASURED = ("data/generated",)
"""Data that hold times."""


class RetrainHouse:
    """A checkout with a champion and a delivery, and what retraining decides about it undisturbed."""

    def __init__(self, root: Path, pristine: Path, env: dict[str, str]) -> None:
        self.root, self.pristine = root, pristine
        self.env = env | environment(root) | {"PYTHONUNBUFFERED": "1"}
        self.seconds = 0.0
        """Of the undisturbed flow."""
        self.undisturbed: dict[str, Any] = {}

    @classmethod
    def build(cls, folder: Path, env: dict[str, str]) -> "RetrainHouse":
        """Train the champion, deliver the first month and let the flow run once undisturbed."""
        house = cls(folder / "checkout", folder / "pristine", env)
        copy_project(house.root, PLAY.profile)
        make_champion(house.root)
        deliver(house.root, 0, PLAY)
        shutil.copytree(house.root, house.pristine, symlinks=True)
        start = time.monotonic()
        run_retraining(house.root, MONTHS[0])
        house.seconds = time.monotonic() - start
        house.undisturbed = house.decided()
        return house

    def decided(self) -> dict[str, Any]:
        """What the flow decided and made, without times and counters."""
        name = MONTHS[0].name
        lock = YAML(typ="safe").load(git(self.root, "show", f"retrain/{name}:dvc.lock"))
        return {
            "promoted": self.champion() != 1,
            "deliveries": sorted(path.name for path in (self.root / "data" / "months").iterdir()),
            "left to do": os.listdir(self.root / "data" / "incoming"),
            "status": git(self.root, "status", "--porcelain"),
            "made": {
                out["path"]: out["md5"]
                for stage in lock["stages"].values()
                for out in stage.get("outs", [])
                if out["path"].startswith(("data/", "models/")) and out["path"] not in MEASURED
            },
            "record": self.record(),
        }

    def record(self) -> dict[str, Any] | None:
        """The reasons of the decision; None of a run that found it made: the one before was killed after promotion."""
        written = self.root / "reports" / "retrain" / f"{MONTHS[0].name}.json"
        found = json.loads(written.read_text()) if written.is_file() else {"decision": "nothing new"}
        if found["decision"] == "nothing new":
            return None
        return {key: found[key] for key in ("decision", "triggers", "comparison")}

    def champion(self) -> int | None:
        """Version of the champion."""
        from ikddit.registry.store import if_there, locate_store, open_store

        client, _ = open_store(locate_store({}, self.root), "ikddit")
        found = if_there(client.get_model_version_by_alias, "ikddit", "champion")
        return None if found is None else int(found.version)

    def kill_and_recover(self, wait_s: float) -> tuple[str, list[str]]:
        """Kill the flow after a while, look, run it again; returns where it was killed and what is wrong."""
        shutil.rmtree(self.root)
        shutil.copytree(self.pristine, self.root, symlinks=True)
        mark, log = uuid.uuid4().hex, self.root / ".ikddit" / "faults.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as out:
            process = subprocess.Popen(
                COMMAND,
                cwd=self.root,
                env=self.env | {MARK: mark},
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        end = time.monotonic() + wait_s
        while time.monotonic() < end and process.poll() is None:
            time.sleep(POLL_S)
        ended = process.poll() is not None
        stages = [name for one in marked(mark) if (name := stage_of(one))]
        kill_marked(mark)
        process.wait()
        place = "retrain: " + self._place(ended, stages, RUNNING.findall(log.read_text(errors="replace")))
        found = damage(self.root / "mlflow.db", "select count(*) from runs")
        wrong = [f"mlflow.db: {reason}" for reason in found]
        if not any((self.root / "data" / at / MONTHS[0].name).is_dir() for at in ("incoming", "months")):
            wrong.append(f"delivery {MONTHS[0].name} is in none of data/incoming and data/months")
        if os.listdir(self.root / "data" / "incoming") or self.record() is None:
            done = subprocess.run(COMMAND, cwd=self.root, env=self.env, capture_output=True, text=True)
            if done.returncode != 0:
                said = (done.stdout + done.stderr)[-2000:]
                return place, [*wrong, f"retrain: exit code {done.returncode}: {said}"]
        now = self.decided()
        if now["record"] is None:
            now["record"] = self.undisturbed["record"]
        wrong += [f"{key}: {now[key]}, not {was}" for key, was in self.undisturbed.items() if now[key] != was]
        return place, wrong

    def _place(self, ended: bool, stages: list[str], ran: list[str]) -> str:
        if ended:
            return NOTHING
        if stages:
            return stages[0]
        return f"after {ran[-1]}" if ran else "before its stages"
