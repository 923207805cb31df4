"""Real DVC, MLflow and Prefect processes."""

import sys
from pathlib import Path

import pytest
from checkouts import ROOT, clean_environment, make_toy_checkout, mark_as_pipeline

sys.path.insert(0, str(ROOT))  # `pipelines` is not part of the installed package


@pytest.hookimpl(tryfirst=True)  # before tests/conftest.py puts them in order
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_as_pipeline(items, Path(__file__).parent)


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    return clean_environment()


@pytest.fixture
def toy_checkout(tmp_path: Path) -> Path:
    return make_toy_checkout(tmp_path)
