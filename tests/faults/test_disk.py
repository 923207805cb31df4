"""A stage on a full or read-only disk says where and what to do, and leaves what was there and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkouts import ROOT
from killing import STEPS
from spaces import full, listing, read_only, run_there

Env = dict[str, str]
CHECKPOINTS = ".ikddit"


@pytest.fixture(scope="module")
def checkout(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished checkout, with training long enough for a checkpoint."""
    folder = tmp_path_factory.mktemp("disk") / "checkout"
    left_out = shutil.ignore_patterns(".git", ".dvc", "mlruns", "mlflow.db*")
    shutil.copytree(finished, folder, symlinks=True, ignore=left_out)
    (folder / CHECKPOINTS).mkdir(exist_ok=True)
    return folder


@pytest.fixture
def env(clean_env: Env, checkout: Path) -> Env:
    return clean_env | {"PYTHONPATH": str(checkout / "src"), "DVC_ROOT": str(checkout)}


def refused(mounts: str, place: str, stage: str, checkout: Path, env: Env) -> str:
    """The only error line of a stage that cannot write in `place`, which must be as before."""
    before = listing(checkout / place)
    command = [sys.executable, f"stages/{stage}.py"]
    code, said, after = run_there(mounts, checkout / place, command, checkout, env)
    assert code == 1, said
    assert "Traceback" not in said
    assert after == before, "old outputs whole, no scratch"
    errors = [line for line in said.splitlines() if " E " in line]
    assert len(errors) == 1, said
    assert said.splitlines()[-1] == errors[0]
    return errors[0].partition(" E ")[2]


@pytest.mark.parametrize(
    ("stage", "place", "free_kib", "named"),
    [
        ("ingest", "data", 200, "data/records"),
        ("generate", "data", 0, "data/generated"),
        ("train", "models", 300, "models/student"),
        ("report", "reports", 100, "reports/figures"),
    ],
)
def test_full_disk(stage: str, place: str, free_kib: int, named: str, checkout: Path, env: Env) -> None:
    said = refused(full(checkout / place, free_kib), place, stage, checkout, env)
    assert said.startswith(f"StorageError: {named}: No space left on device; free some space on that disk")
    assert "run the same command again" in said


def test_full_disk_while_maps_are_generated(checkout: Path, env: Env) -> None:
    said = refused(full(checkout / "data", 100), "data", "generate", checkout, env)
    assert said.startswith("StorageError: data/generated: No space left on device")


def test_full_disk_while_a_checkpoint_is_written(checkout: Path, env: Env) -> None:
    params = checkout / "params.yaml"
    short = params.read_text()
    try:
        text = short
        for few, many in STEPS.items():
            text = text.replace(f"  {few}\n", f"  {many}\n")
        params.write_text(text)
        models = listing(checkout / "models")
        (checkout / CHECKPOINTS / "checkpoints").mkdir(parents=True, exist_ok=True)
        said = refused(full(checkout / CHECKPOINTS, 400), CHECKPOINTS, "train", checkout, env)
    finally:
        params.write_text(short)
    assert said.startswith(f"StorageError: {checkout}/{CHECKPOINTS}/checkpoints/")
    assert ".pt: No space left on device; free some space" in said
    assert listing(checkout / "models") == models


@pytest.mark.parametrize(
    ("stage", "place", "named"),
    [
        ("ingest", "data", "data/quarantine/ingest"),
        ("generate", "data", "data/generated"),
        ("train", "models", "models/student"),
        ("report", "reports", "reports/figures"),
    ],
)
def test_read_only_folder(stage: str, place: str, named: str, checkout: Path, env: Env) -> None:
    said = refused(read_only(checkout / place), place, stage, checkout, env)
    assert said.startswith(f"StorageError: {named}: Read-only file system; make that file system writable")


def test_command_line_says_the_same(checkout: Path, env: Env) -> None:
    command = [
        sys.executable,
        "-c",
        "from ikddit.cli import main; main()",
        "ingest",
        "data/simulated",
        "--out",
        "data/mine",
    ]
    code, said, _ = run_there(read_only(checkout / "data"), checkout / "data", command, checkout, env)
    assert code == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("StorageError: data/mine/")
    assert "Read-only file system; make that file system writable" in said


@pytest.mark.skipif(
    os.geteuid() == 0, reason="root may write into every folder that is not mounted read-only"
)
def test_folder_of_somebody_else(tmp_path: Path) -> None:
    from ikddit.atomic import write_text
    from ikddit.storage import StorageError

    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match=r"page\.html: Permission denied; give this user the right"):
        write_text(tmp_path / "page.html", "text")


def test_limit_of_file_sizes(tmp_path: Path) -> None:
    """RLIMIT_FSIZE works where no namespace is allowed: a child writes more than its limit."""
    code = (
        "import resource, sys; from ikddit.console import run_plainly; from ikddit.atomic import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"run_plainly(lambda: write_text({str(tmp_path / 'page.html')!r}, 'x' * 5000))"
    )
    (tmp_path / "page.html").write_text("old")
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "page.html: File too large; raise the limit of a file's size (`ulimit -f`)" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_text() == "old"
