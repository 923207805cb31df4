"""Fixtures of the registry room: these tests are about the registry, so the generator is a stand-in."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow.pyfunc  # noqa: F401  the module itself: MLflow's lazy stand-in forgets what is patched
import pytest
from made_workspace import StandIn, write_workspace

from ikddit.registry.store import Store, open_store


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module: Any = ModuleType("ikddit.generator")
    module.Generator = StandIn
    monkeypatch.setitem(sys.modules, "ikddit.generator", module)
    return StandIn


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: copying it saves a second of migrations in every test."""
    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_store(Store(database.parent, f"sqlite:///{database}", None), "unused")
    return database


@pytest.fixture
def store(tmp_path: Path, empty_database: Path) -> Iterator[Store]:
    """A store of its own; MLflow's global state is put back afterwards."""
    before, path = os.environ.get("MLFLOW_TRACKING_URI"), list(sys.path)
    folder = tmp_path / "check out"  # a space, as on many desktops
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    yield Store(folder, f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlruns").as_uri())
    import mlflow

    mlflow.end_run("KILLED")
    mlflow.set_tracking_uri(before)
    sys.path[:] = path


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return write_workspace(tmp_path / "workspace")
