"""A copy of this project as a git repository of its own, with other params: to try things without touching this one."""

import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ikddit.errors import ParamsError
from pipelines.process import git

LEFT_OUT = ("tests/", "docs/", "benchmarks/", "reports/", "dvc.lock")
"""Of the checkout: no stage needs them, and results of the full profile would only stand in the way."""
KEPT = "reports/ablations/"
"""Committed tables of runs, which stage `report` shows and no stage writes."""


def copy_project(folder: Path, profile: Path | None) -> Path:
    """Copy this project as it is now (committed or not) and commit it there.

    Args:
        folder: empty or not there yet.
        profile: YAML file of changes to params.yaml; None leaves it as it is.

    Returns:
        `folder`.

    Raises:
        ParamsError: the profile changes a key that params.yaml lacks.
        CommandError: git failed.
    """
    root = Path(__file__).resolve().parents[1]
    for name in git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        needed = name.startswith(KEPT) or not name.startswith(LEFT_OUT)
        if needed and (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    if profile is not None:
        yaml = YAML()
        params = yaml.load(folder / "params.yaml")
        _change(params, yaml.load(profile), profile.name)
        yaml.dump(params, folder / "params.yaml")
    git(folder, "init", "--quiet")
    git(folder, "config", "user.name", "scratch")
    git(folder, "config", "user.email", "scratch@example.org")
    git(folder, "add", "--all")
    of = "params.yaml as it is" if profile is None else f"the profile {profile.name}"
    git(folder, "commit", "--quiet", "--message", f"Copy with {of}")
    return folder


def _change(values: Any, changes: Any, where: str) -> None:
    for name, change in changes.items():
        if name not in values:
            raise ParamsError(f"{where}: {name}: not in params.yaml; correct its spelling")
        if isinstance(change, dict):
            _change(values[name], change, f"{where}: {name}")
        else:
            values[name] = change
