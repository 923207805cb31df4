"""A challenger by `dvc exp run --temp`: the workspace, its branch and its index stay as they are."""

import json
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ikddit.atomic import read_json, write_json
from pipelines.clones import clones_of, remove_dead_clones
from pipelines.deliveries import RAW
from pipelines.mend import mend
from pipelines.process import CommandError, dvc_command, git, group_members, run_command

CHILD = ".ikddit/retrain/child.json"
"""Process group of the running experiment, so that the next run can end what a killed one left behind."""
DVC_FILE = f"{RAW}.dvc"


def run_experiment(root: Path, name: str, say: Callable[[str], object]) -> tuple[str, dict[str, Any]]:
    """Put `data/raw` under DVC and run the pipeline on it as a temporary experiment.

    The experiment's commit holds `data/raw.dvc`, params.yaml, dvc.lock and the reports: whoever checks it out
    (branch `retrain/<name>`, made here) has this data set version and can reproduce it.

    Args:
        root: the checkout.
        name: of the delivery; the experiment is `retrain-<name>`.
        say: called with each line DVC prints.

    Returns:
        The branch, and what the register stage wrote.

    Raises:
        CommandError: DVC or a stage failed.
    """
    experiment = f"retrain-{name}"
    tracked = bool(git(root, "ls-files", "--", DVC_FILE)) and not staged_only(root)
    try:
        _dvc(root, say, "add", "--quiet", RAW)
        git(root, "add", "--force", "--", DVC_FILE)
        if experiment_commit(root, experiment) is not None:
            _dvc(root, say, "exp", "remove", experiment)
        _dvc(root, say, "exp", "run", "--temp", "--name", experiment, "--set-param", f"data.raw={RAW}")
    finally:
        forget_data_file(root, tracked)
    commit = experiment_commit(root, experiment)
    if commit is None:
        raise CommandError(f"experiment {experiment}: DVC left no commit; see its messages above")
    branch = f"retrain/{name}"
    git(root, "branch", "--force", branch, commit)
    registration: dict[str, Any] = json.loads(git(root, "show", f"{commit}:reports/registration.json"))
    return branch, registration


def _dvc(root: Path, say: Callable[[str], object], *arguments: str) -> None:
    command, env = dvc_command(*arguments)

    def note(pid: int) -> None:
        with suppress(psutil.NoSuchProcess):
            write_json(root / CHILD, {"pid": pid, "created": psutil.Process(pid).create_time()})

    try:
        run_command(command, root, say, env, started=note)
    finally:
        (root / CHILD).unlink(missing_ok=True)


def staged_only(root: Path) -> bool:
    """Whether data/raw.dvc is in the index but not in the commit: a killed run left it."""
    in_commit = subprocess.run(["git", "cat-file", "-e", f"HEAD:{DVC_FILE}"], cwd=root, capture_output=True)
    return in_commit.returncode != 0


def forget_data_file(root: Path, tracked: bool) -> None:
    """Give index and workspace back what they had of data/raw.dvc."""
    if tracked:
        git(root, "restore", "--source=HEAD", "--staged", "--worktree", "--", DVC_FILE)
    else:
        git(root, "rm", "--quiet", "--cached", "--force", "--ignore-unmatch", "--", DVC_FILE)
        (root / DVC_FILE).unlink(missing_ok=True)


def clean_up(root: Path, say: Callable[[str], object]) -> None:
    """End and remove what a killed run left: its process group, its clones, its staged data/raw.dvc.

    Clones in which another process works, and young ones in which none works yet, belong to somebody else's
    experiment and stay.
    """
    own: set[str] = set()
    if (root / CHILD).is_file():
        child = read_json(root / CHILD)
        if left := _group(int(child["pid"]), float(child["created"])):
            own = clones_of(root, left)
            say(f"ending the experiment that a killed run left behind ({len(left)} processes)")
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=10)
        (root / CHILD).unlink(missing_ok=True)
    mend(root, say)
    for clone in remove_dead_clones(root, own):
        say(f"removed the clone of a dead experiment: {clone}")
    if git(root, "ls-files", "--", DVC_FILE) and staged_only(root):
        forget_data_file(root, tracked=False)


def _group(leader: int, created: float) -> list[psutil.Process]:
    """Processes of the group that the leader began; its number may be somebody else's by now."""
    found = []
    for process in group_members(leader):
        with suppress(psutil.Error):
            if process.create_time() > created - 1.0:
                found.append(process)
    if any(p.pid == leader and abs(p.create_time() - created) > 1.0 for p in found):
        return []
    return found


def experiment_commit(root: Path, experiment: str) -> str | None:
    """Commit of a DVC experiment, None if there is none of that name."""
    listed = git(root, "for-each-ref", "refs/exps", "--format=%(refname) %(objectname)")
    found = [line.split() for line in listed.splitlines()]
    return next((commit for ref, commit in found if ref.rpartition("/")[2] == experiment), None)
