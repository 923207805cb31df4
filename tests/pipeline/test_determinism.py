"""Same code, params, seed, machine and threads: the same bits of data and models, the same metrics but times."""

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from checkouts import copy_checkout, finished_checkout
from outcome import PAGES, TIMES, differences, outcome, read_outputs, without_times

Env = dict[str, str]
NOT_REPEATED = {
    "register": "every registration is a new run of the store by design; what it registers is compared here",
}
"""Stages that cannot give the same twice, and why. Of the others, times alone differ (`outcome.TIMES`)."""
STAGES = """
import os, runpy, sys
root, *names = sys.argv[1:]
os.chdir(root)
for name in names:
    print("stage", name, flush=True)
    runpy.run_path(f"stages/{name}.py", run_name="__main__")
"""


def run_stages(root: Path, env: Env, *names: str) -> None:
    """Run stages one after the other in one process, where they import everything once."""
    own = env | {"PYTHONPATH": str(root / "src"), "DVC_ROOT": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(root), *names],
        env=own,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, clean_env: Env) -> Path:
    return finished_checkout(tmp_path_factory, clean_env)[1]


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory, clean_env: Env) -> Path:
    """All stages once more from nothing, in another folder, not started by DVC."""
    folder = copy_checkout(tmp_path_factory.mktemp("second"))
    stages = dict.fromkeys(output.stage for output in read_outputs(folder))
    run_stages(folder, clean_env, *(name for name in stages if name not in NOT_REPEATED))
    return folder


def test_second_run_from_scratch_is_the_first_bit_for_bit(first: Path, second: Path) -> None:
    outputs = [output for output in read_outputs(first) if output.stage not in NOT_REPEATED]
    one, other = outcome(first, outputs), outcome(second, outputs)
    assert all(one.values()), [path for path, files in one.items() if not files]
    assert differences(one, other) == []


def test_only_what_is_listed_as_time_is_left_out(first: Path) -> None:
    """A field that is gone, or a pattern that fits nothing, would hide a difference one day."""
    for name, patterns in TIMES.items():
        value = json.loads((first / name).read_text())
        assert without_times(name, value), name
        fields = without_times("", value)
        idle = [pattern for pattern in patterns if not any(fnmatchcase(field, pattern) for field in fields)]
        assert idle == [], name
    assert all((first / name).is_file() for name in PAGES)


def test_report_of_the_same_inputs_is_the_same_to_the_byte(second: Path, clean_env: Env) -> None:
    """The pages show times, so two runs are not compared by them; from one run's inputs they come out the same."""
    written = [p for name in ("docs", "reports/figures") for p in (second / name).rglob("*") if p.is_file()]
    pages = {path: path.read_bytes() for path in [second / "reports" / "index.html", *written]}
    run_stages(second, clean_env, "report")
    assert [str(path) for path, content in pages.items() if path.read_bytes() != content] == []


WHERE = {
    "train": "reports/train/summary.json",
    "evaluate": "reports/evaluation/metrics.json",
    "fid": "reports/evaluation/fid.json",
    "timing": "reports/timing.json",
}
"""Stage -> where it says on which device, with how many threads, its figures were made."""


def said(root: Path) -> dict[str, tuple[str, int]]:
    found = {stage: json.loads((root / path).read_text()) for stage, path in WHERE.items()}
    found["fid"] = found["fid"]["settings"]
    return {stage: (value["device"], value["threads"]) for stage, value in found.items()}


def test_device_and_threads_stand_in_the_metrics_and_are_true(
    first: Path, second: Path, clean_env: Env
) -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert clean_env["OMP_NUM_THREADS"] == "1"
    assert {
        stage: (where.partition(":")[0], n) for stage, (where, n) in said(first).items()
    } == dict.fromkeys(WHERE, (device, 1))
    run_stages(second, clean_env | {"OMP_NUM_THREADS": "2"}, "train", "fid")
    expected = {"train": 2, "evaluate": 1, "fid": 2, "timing": 1}
    assert {stage: threads for stage, (_, threads) in said(second).items()} == expected
