"""Real DVC, MLflow and Prefect processes; all of them in one xdist group, since they fill the machine."""

import os
import sys
from pathlib import Path

import pytest
from checkouts import ROOT, make_toy_checkout

sys.path.insert(0, str(ROOT))  # `pipelines` is not part of the installed package
OWN_SETTINGS = ("PREFECT_", "MLFLOW_", "DVC_")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.pipeline)
            item.add_marker(pytest.mark.xdist_group("pipeline"))


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    """What a person's shell holds, without settings of the tools under test; this Python first in PATH."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    quiet = {"DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    return kept | {"PATH": path, "OMP_NUM_THREADS": "1"} | quiet


@pytest.fixture
def toy_checkout(tmp_path: Path) -> Path:
    return make_toy_checkout(tmp_path)
