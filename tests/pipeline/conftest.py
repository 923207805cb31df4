"""Real DVC, MLflow and Prefect processes."""

import shutil
import sys
from pathlib import Path

import pytest
from checkouts import ROOT, clean_environment, git, make_toy_checkout, run

sys.path.insert(0, str(ROOT))  # `pipelines` is not part of the installed package


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    return clean_environment()


@pytest.fixture(scope="session")
def dvc_repository(tmp_path_factory: pytest.TempPathFactory, clean_env: dict[str, str]) -> Path:
    """An empty repository of git and DVC: copying it saves a start of DVC in every test; not to be changed."""
    folder = tmp_path_factory.mktemp("dvc")
    git(folder, "init", "-q")
    run(folder, clean_env, "dvc", "init", "-q")
    return folder


@pytest.fixture
def toy_checkout(tmp_path: Path, dvc_repository: Path) -> Path:
    """`make_toy_checkout` in a folder `checkout`, with DVC."""
    shutil.copytree(dvc_repository, tmp_path / "checkout")
    return make_toy_checkout(tmp_path / "checkout")
