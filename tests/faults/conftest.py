"""Killed processes, full and read-only disks: real stages in checkouts of their own."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [
    str(Path(__file__).resolve().parents[1] / "pipeline"),
    str(Path(__file__).resolve().parents[2]),
]

from checkouts import clean_environment, finished_checkout, mark_as_pipeline  # noqa: E402


@pytest.hookimpl(tryfirst=True)  # before tests/conftest.py puts them in order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_as_pipeline(items, Path(__file__).parent)


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    return clean_environment()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Path:
    """A checkout in which `dvc repro` has run; not to be changed."""
    return finished_checkout(tmp_path_factory, clean_env)[1]
