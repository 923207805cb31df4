"""The three months of `make demo-retrain` on the tiny profile, the first of them killed once in the middle."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkouts import ROOT, git, wait_until

LOTS, SCANNER, SHIFT_NM = 60, "LITH04", 8.0
BROKEN_LOTS = 12


def champion(folder: Path) -> int:
    from ikddit.registry.store import locate_store, open_store

    client, _ = open_store(locate_store({}, folder), "ikddit")
    return int(client.get_model_version_by_alias("ikddit", "champion").version)


def tags(folder: Path, version: int) -> dict[str, str]:
    from ikddit.registry.store import locate_store, open_store

    client, _ = open_store(locate_store({}, folder), "ikddit")
    return dict(client.get_model_version("ikddit", str(version)).tags)


pytestmark = pytest.mark.xdist_group("retrain")  # one worker: the fixture is minutes of work


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The checkout of the play, and what each month left: records, and what was seen after the kill."""
    from pipelines.challenger import CHILD
    from pipelines.clones import CLONES
    from pipelines.demo_retrain import (
        MONTHS,
        Play,
        deliver,
        environment,
        make_champion,
        run_retraining,
    )
    from pipelines.mend import left_servers
    from pipelines.process import dvc_command
    from pipelines.scratch import copy_project

    folder = tmp_path_factory.mktemp("play") / "checkout"
    play = Play(Path(__file__).with_name("tiny_retrain.yaml"), lots=LOTS, scanner=SCANNER, shift_nm=SHIFT_NM)
    copy_project(folder, play.profile)
    make_champion(folder)
    left: dict[str, Any] = {"status": git(folder, "status", "--porcelain")}

    deliver(folder, 0, play)
    log = folder.parent / "killed.log"
    env = os.environ | dvc_command()[1] | environment(folder)
    with log.open("wb") as out:
        command = [sys.executable, "-m", "pipelines.retrain"]
        flow = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
        clones = folder / CLONES
        wait_until(lambda: (folder / CHILD).exists() and any(clones.glob("tmp*/data/raw")), 300, log)
        flow.kill()
        flow.wait()
    left["servers"] = [len(left_servers(folder))]
    left["killed"] = {
        "champion": champion(folder),
        "incoming": os.listdir(folder / "data" / "incoming"),
        "records": (folder / "reports" / "retrain").exists(),
    }
    for number, month in enumerate(MONTHS):
        if number:
            deliver(folder, number, replace(play, lots=BROKEN_LOTS) if month.corrupt else play)
        left[month.name] = run_retraining(folder, month) | {"now": champion(folder)}
    left["servers"].append(len(left_servers(folder)))
    return folder, left


def test_killed_run_leaves_champion_and_delivery_as_they_were(played: tuple[Path, dict[str, Any]]) -> None:
    assert played[1]["killed"] == {"champion": 1, "incoming": ["month-1"], "records": False}
    assert played[1]["servers"] == [1, 0], "the killed flow's Prefect server is ended by the next one"


def test_shifted_scanner_is_seen_and_the_challenger_promoted(played: tuple[Path, dict[str, Any]]) -> None:
    folder, left = played
    record = left["month-1"]
    assert record["decision"] == "promoted", record["reasons"]
    assert record["triggers"] == ["drift", "error"]
    drifted = {(m["scanner_id"], m["term"]) for m in record["drift"]["maps"] if m["drifted"]}
    assert drifted == {(SCANNER, "Tx"), (SCANNER, "Ty")}
    outcome = record["comparison"]
    assert outcome["challenger_rmse_nm"] < outcome["champion_rmse_nm"]
    assert outcome["low_nm"] > 0
    assert record["now"] == record["challenger"]["version"] == 2
    said = tags(folder, 2)
    assert said["retrain.decision"] == "promoted"
    assert said["retrain.why"] == "drift, error"
    assert said["retrain.reason"] == outcome["reason"]


def test_wafers_of_the_comparison_are_later_than_what_either_was_trained_on(
    played: tuple[Path, dict[str, Any]],
) -> None:
    from pipelines.champion import model_at
    from pipelines.examine import later_wafers

    from ikddit.params import load_params
    from ikddit.registry.store import locate_store

    folder, left = played
    settings = load_params(folder / "params.yaml").register_
    old, new = (model_at(folder, locate_store({}, folder), settings, version) for version in (1, 2))
    assert old is not None
    assert new is not None
    later = later_wafers(old, new)
    assert len(later) == left["month-1"]["comparison"]["wafers"] > 0
    trained = {*old.train.barcode, *new.train.barcode}
    assert not trained & set(later)
    last = max(split.table.column("exposed_at").to_pylist()[-1] for split in (old.train, new.train))
    assert min(new.records(later).column("exposed_at").to_pylist()) > last


def test_data_set_version_is_pinned_by_its_branch_and_the_old_one_still_there(
    played: tuple[Path, dict[str, Any]],
) -> None:
    folder, left = played
    branch = left["month-1"]["challenger"]["branch"]
    assert branch == "retrain/month-1"
    pinned = git(folder, "show", f"{branch}:data/raw.dvc")
    assert "raw: data/raw" in git(folder, "show", f"{branch}:params.yaml")
    assert tags(folder, 2)["md5.data/raw"] in pinned
    assert tags(folder, 2)["data_md5"] != tags(folder, 1)["data_md5"]
    assert "data/raw.dvc" not in git(folder, "ls-files")
    assert git(folder, "status", "--porcelain") == left["status"]


def test_the_documented_commands_bring_a_version_back(played: tuple[Path, dict[str, Any]]) -> None:
    from pipelines.process import dvc_command

    folder, left = played
    branch = left["month-1"]["challenger"]["branch"]
    text = (ROOT / "docs" / "retraining.md").read_text()
    commands = re.findall(r"^    ((?:git worktree|dvc cache|PYTHONPATH=).*)$", text, re.MULTILINE)
    assert len(commands) == 3
    script = "\n".join(["set -e", *commands]).replace("retrain/2024-03", branch)
    env = os.environ | dvc_command()[1]
    done = subprocess.run(["sh", "-c", script], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall("Running stage '(.*)'", done.stdout) == ["register"]
    again = json.loads((folder.parent / "then" / "reports" / "registration.json").read_text())
    assert again["fingerprint"] == tags(folder, 2)["fingerprint"]


def test_month_without_news_retrains_nothing(played: tuple[Path, dict[str, Any]]) -> None:
    record = played[1]["month-2"]
    assert record["decision"] == "not retrained", record["reasons"]
    assert "challenger" not in record
    assert record["now"] == 2


def test_corrupt_month_is_stopped_at_the_gate(played: tuple[Path, dict[str, Any]]) -> None:
    folder, left = played
    record = left["month-3"]
    assert record["decision"] == "stopped at the gate"
    assert record["drops"][0]["quarantined"] == BROKEN_LOTS // 2 * 25
    assert "quarantined" in record["reasons"][0]
    assert (folder / ".ikddit" / "retrain" / "gate" / "month-3" / "report" / "index.html").is_file()
    assert record["now"] == 2
    assert sorted(os.listdir(folder / "data" / "months")) == ["month-1", "month-2"]
    assert (folder / "data" / "refused" / "month-3").is_dir()
    assert json.loads((folder / "data" / "refused" / "month-3.json").read_text())["passed"] is False
