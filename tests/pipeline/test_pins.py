"""The pinned versions (constraints.txt) are those that run here, and what is known of pytest's."""

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from checkouts import ROOT
from packaging.utils import canonicalize_name


def test_installed_versions_are_the_pinned_ones() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines)}
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}
    wrong = {
        name: (pin, installed[name])
        for name, pin in pins.items()
        if name in installed and installed[name].partition("+")[0] != pin
    }
    assert wrong == {}
    assert {"prefect", "fastapi", "sqlalchemy", "torch", "torchvision"} <= pins.keys() & installed.keys()


def test_tests_of_one_group_run_in_one_worker(tmp_path: Path, clean_env: dict[str, str]) -> None:
    """pytest 9.2 takes no notice of pytest-xdist 3.8's groups, and costly fixtures are then made twice."""
    lines = ["import os, pytest", "pytestmark = pytest.mark.xdist_group('one')"]
    for number in range(6):
        lines.append(f"def test_{number}(): print('by', os.environ['PYTEST_XDIST_WORKER'])")
    (tmp_path / "test_grouped.py").write_text("\n".join(lines))
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-rP", "-c", os.devnull, str(tmp_path)],
        cwd=tmp_path, env=clean_env, capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    workers = [line for line in said.splitlines() if line.startswith("by ")]
    assert len(workers) == 6, said
    assert len(set(workers)) == 1, said
