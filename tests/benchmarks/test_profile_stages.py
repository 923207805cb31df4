"""Figures of the profile are those of what ran."""

import argparse
import doctest
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import bench_peers
import profile_stages
import pytest
import run
import torch
from pipelines.process import CommandError, git
from pipelines.scratch import copy_project
from profile_stages import (
    ROOT,
    parse,
    profile_hot,
    python_profile,
    read_log,
    stages_of,
    table,
    timed_command,
    torch_profile,
)
from ruamel.yaml import YAML

from ikddit.errors import ParamsError

TINY = ROOT / "tests/pipeline/tiny.yaml"
WORK = """
import subprocess, sys, time
burn = "import time; held = b'x' * (200 << 20); end = time.process_time() + 0.6\\nwhile time.process_time() < end: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
print("09:00:00 I done in 0.5 s")
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("module", [run, bench_peers, profile_stages], ids=lambda m: m.__name__)
def test_examples_in_docstrings_hold(module: ModuleType) -> None:
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


def test_memory_and_cpu_are_of_all_processes_of_a_stage(tmp_path: Path) -> None:
    heard: list[str] = []
    stage = timed_command("burn", python(WORK), tmp_path, {}, heard.append)
    assert heard == ["09:00:00 I done in 0.5 s"]
    assert stage.stage_s == 0.5
    assert stage.wall_s is not None
    assert stage.cpu_s is not None
    assert stage.peak_mib is not None
    assert stage.wall_s > 0.6
    assert 0.6 < stage.cpu_s < 5
    assert 200 < stage.peak_mib < 400


def test_failure_and_silence_are_errors_that_name_the_stage(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="exit code 3\nno such wafer"):
        timed_command("train", python("print('no such wafer'); raise SystemExit(3)"), tmp_path, {}, print)
    with pytest.raises(CommandError, match="stage train: no line says"):
        timed_command("train", python("print('hello')"), tmp_path, {}, print)


def test_log_of_a_repro_gives_the_stages_that_ran() -> None:
    log = """Stage 'simulate' didn't change, skipping
Running stage 'ingest':
> python stages/ingest.py
10:00:00 I ingest: 100 found = 100 records + 0 quarantined
10:00:01 I done in 1.5 s
Updating lock file 'dvc.lock'
Running stage 'train':
> python stages/train.py
Traceback (most recent call last):
Running stage 'report':
10:00:09 I done in 8.0 s"""
    stages = read_log(log.splitlines())
    assert [(s.name, s.stage_s) for s in stages] == [("ingest", 1.5), ("report", 8.0)]
    assert table(stages).splitlines()[-1].split()[:2] == ["total", "9.5"]


def test_order_of_dvc_yaml_is_one_in_which_the_stages_can_run() -> None:
    made: set[str] = set()
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    everything = {place for stage in stages.values() for place in outs_of(stage)}
    for name in stages_of(ROOT / "dvc.yaml"):
        needed = {dep for dep in stages[name].get("deps", []) if dep in everything}
        assert needed <= made, name
        made |= outs_of(stages[name])


def outs_of(stage: dict[str, list[str | dict[str, object]]]) -> set[str]:
    parts = [part for kind in ("outs", "metrics", "plots") for part in stage.get(kind, [])]
    return {part if isinstance(part, str) else next(iter(part)) for part in parts}


def test_copy_has_the_code_and_the_settings_and_no_results(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    copy_project(tmp_path, TINY)
    assert (tmp_path / "stages/train.py").is_file()
    assert (tmp_path / "reports/ablations").is_dir()
    assert not any((tmp_path / name).exists() for name in ("dvc.lock", "tests", "data", "reports/index.html"))
    params = YAML(typ="safe").load(tmp_path / "params.yaml")
    assert params["simulate"]["lots"] == 12
    assert params["simulate"]["scale_nm"] == 16.0
    assert git(tmp_path, "status", "--porcelain") == ""


def test_setting_that_does_not_exist_is_named(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    (tmp_path / "mine.yaml").write_text("train: {stepz: 2}")
    with pytest.raises(ParamsError, match=r"mine\.yaml: train: stepz: not in params\.yaml"):
        copy_project(tmp_path / "copy", tmp_path / "mine.yaml")


def test_folder_with_things_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(SystemExit):
        parse(["--work", str(tmp_path)])
    assert "not empty" in capsys.readouterr().err


def test_hot_paths_show_where_the_time_goes() -> None:
    # every line: which are the top ones in so short a run is chance
    small = ["--seconds", "0.1", "--lots", "1", "--batch", "2", "--steps", "1", "--top", "1000"]
    parts = profile_hot(parse(["--hot", "simulate", "ingest", "train", "sample", *small])).split("\n\n")
    simulate, ingest, train, sample = parts
    assert simulate.startswith("== simulate: 1 lots drawn and written;")
    assert "(write_lot)" in simulate
    assert "(decode_png)" in ingest
    assert "aten::addmm" in train
    assert "aten::_fused_adamw_" in train
    assert "aten::addmm" in sample
    assert "adamw" not in sample


@pytest.mark.parametrize("profiled", [python_profile, torch_profile])
def test_top_says_how_many_lines(
    profiled: Callable[[Callable[[], object], argparse.Namespace], tuple[int, float, str]],
) -> None:
    def run() -> None:
        sorted(float(v) for v in (torch.ones(8, 8) @ torch.ones(8, 8)).exp().flatten().tolist())

    count, each, text = profiled(run, parse(["--seconds", "0", "--top", "2"]))
    assert count == 1
    assert each > 0
    assert len(text.splitlines()) == 1 + 2


@pytest.mark.pipeline
def test_a_stage_runs_under_dvc_in_the_copy_alone(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    (stage,) = profile_stages.profile_stages(tmp_path, TINY, ["simulate"])
    assert stage.name == "simulate"
    assert (tmp_path / "data/simulated/dataset.json").is_file()
    assert stage.wall_s is not None
    assert stage.wall_s > stage.stage_s > 0
