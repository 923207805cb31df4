"""Killed processes, full and read-only disks: real stages in checkouts of their own."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "pipeline"),
    str(Path(__file__).resolve().parents[2]),
]

from checkouts import clean_environment, finished_checkout  # noqa: E402


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    return clean_environment()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Path:
    """A checkout in which `dvc repro` has run; not to be changed."""
    return finished_checkout(tmp_path_factory, clean_env)[1]
