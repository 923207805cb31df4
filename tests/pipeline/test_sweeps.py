"""Sweeps: how they are spelled out, found again, collected and shown; the runs themselves are in test_end_to_end."""

import math
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from checkouts import ROOT, git

from ikddit.errors import IkdditError, ParamsError

COUNTS = {"mask": 24, "lambda": 9, "discriminator": 4, "condition": 4, "mean": 3, "size": 3}


def runs_of(name: str) -> list[Any]:
    from pipelines.ablate import read_params
    from pipelines.sweeps import expand, read_definitions

    return expand(name, read_definitions(), read_params(ROOT))


def test_every_sweep_has_its_runs_and_each_a_name_of_its_own() -> None:
    from pipelines.sweeps import read_definitions

    assert {name: len(runs_of(name)) for name in read_definitions().sweeps} == COUNTS
    runs = [run for name in COUNTS for run in runs_of(name)]
    assert len({run.name for run in runs}) == sum(COUNTS.values())
    for run in runs:
        subprocess.run(["git", "check-ref-format", f"refs/exps/{run.name}"], check=True)
        assert run.settings["register.version"] is False


def test_the_mask_sweep_is_every_ratio_with_and_without_dense_path_for_three_seeds() -> None:
    cells = [tuple(run.cell.values()) for run in runs_of("mask")]
    assert cells == [(s, r, d) for s in (0, 1, 2) for r in (0.0, 0.25, 0.5, 0.7) for d in (True, False)]


def test_names_are_stable_and_change_with_the_profile() -> None:
    from pipelines.ablate import read_params
    from pipelines.sweeps import Definitions, expand, read_definitions

    first = [run.name for run in runs_of("lambda")]
    assert first == [run.name for run in runs_of("lambda")]
    other = read_definitions().model_dump()
    other["profiles"]["paper"]["train.steps"] += 1
    changed = [run.name for run in expand("lambda", Definitions(**other), read_params(ROOT))]
    assert not set(first) & set(changed)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("train.stepz", 5, "train.stepz"), ("mask_ratio", 1.5, "mask_ratio"), ("train.batch", 0, "train.batch")],
)
def test_a_setting_that_params_refuses_is_named_before_anything_runs(
    setting: str, value: float, said: str
) -> None:
    from pipelines.ablate import read_params
    from pipelines.sweeps import Definitions, expand, read_definitions

    values = read_definitions().model_dump()
    values["sweeps"]["size"]["axes"][setting] = [value]
    with pytest.raises(ParamsError, match=said):
        expand("size", Definitions(**values), read_params(ROOT))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("x: model", "x: modle", "sweeps.size: `modle` is none of its axes"),
        ("x: model", "x: model\n    profile_: a", "sweeps.size.profile_"),
        ("  default:\n", "  defaults:\n", "sweeps.mean: no profile `default`"),
    ],
)
def test_a_wrong_definition_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    from pipelines.sweeps import DEFINITIONS, read_definitions

    path = tmp_path / "ablations.yaml"
    path.write_text(DEFINITIONS.read_text().replace(old, new))
    with pytest.raises(ParamsError) as caught:
        read_definitions(path)
    assert said in str(caught.value)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    for name in ("src/a.py", "docs/a.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("one")
    return committed(tmp_path)


def committed(folder: Path) -> Path:
    git(folder, "add", "--all")
    git(folder, "commit", "-qm", "change")
    return folder


def experiment(folder: Path, name: str, changed: str = "params.yaml") -> str:
    """A commit as DVC leaves one for an experiment that started from HEAD and changed a file."""
    head = git(folder, "rev-parse", "HEAD").strip()
    (folder / changed).write_text(f"of {name}")
    git(folder, "add", changed)
    tree = git(folder, "write-tree").strip()
    git(folder, "reset", "-q", "--hard")
    made = git(folder, "commit-tree", tree, "-p", head, "-m", name).strip()
    git(folder, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", made)
    return made


def test_an_experiment_is_found_again_until_the_code_changes(repository: Path) -> None:
    from pipelines.ablate import finished

    made = experiment(repository, "mask-1")
    experiment(repository, "mask-10")
    assert finished(repository, ["mask-1", "mask-2"]) == {"mask-1": made}
    (repository / "docs/a.md").write_text("two")
    committed(repository)
    assert finished(repository, ["mask-1"]) == {"mask-1": made}
    (repository / "src/a.py").write_text("two")
    committed(repository)
    assert finished(repository, ["mask-1"]) == {}


def test_a_row_of_the_table_counts_while_the_code_is_the_same(repository: Path) -> None:
    from pipelines.ablate import FOLDER, recorded
    from pipelines.collect import code_commit, write_rows
    from pipelines.sweeps import read_definitions

    sweep, runs = read_definitions().sweeps["mean"], runs_of("mean")
    commit = code_commit("HEAD", repository)
    rows = [run.cell | {"run": run.name, "code_commit": commit} for run in runs]
    rows[1] |= {"failed": "no memory"}
    rows[2] |= {"code_commit": "0123456789ab"}
    write_rows(rows, repository / FOLDER / "mean.csv")
    committed(repository)
    assert list(recorded("mean", sweep, runs, repository)) == [runs[0].name]
    (repository / "src/a.py").write_text("two")
    committed(repository)
    assert recorded("mean", sweep, runs, repository) == {}
    # a table of when the sweep had another axis
    write_rows([{"run": "mean-1", "seed": 0}], repository / FOLDER / "mean.csv")
    assert recorded("mean", sweep, runs, repository) == {}


def test_the_commit_of_the_code_is_the_last_that_changed_it(repository: Path) -> None:
    from pipelines.collect import code_commit

    first = git(repository, "rev-parse", "HEAD").strip()
    (repository / "docs/a.md").write_text("two")
    experiment(committed(repository), "mask-1")
    for revision in ("HEAD", "mask-1", git(repository, "rev-parse", "HEAD").strip()):
        assert first.startswith(code_commit(revision, repository))
    made = experiment(repository, "by-hand", "src/a.py")  # from code that no other commit holds
    assert made.startswith(code_commit("by-hand", repository))


def test_params_committed_before_a_sweep_do_not_make_its_rows_stale(repository: Path) -> None:
    from pipelines.ablate import FOLDER, recorded
    from pipelines.collect import code_commit, write_rows
    from pipelines.sweeps import read_definitions

    (repository / "params.yaml").write_text("seed: 1")
    made = experiment(committed(repository), "mean-1")
    run = runs_of("mean")[0]
    for revision in ("mean-1", made):
        row = run.cell | {"run": run.name, "code_commit": code_commit(revision, repository)}
        write_rows([row], repository / FOLDER / "mean.csv")
        assert list(recorded("mean", read_definitions().sweeps["mean"], [run], repository)) == [run.name]


def test_collecting_an_unknown_revision_or_param_says_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.collect import main

    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["collect", "seeds", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return str(ended.value)

    monkeypatch.setenv("DVC_ROOT", str(ROOT))
    assert said("no-such-seed").startswith(
        "collect: no-such-seed: no such revision or experiment here; `git log`"
    )
    assert said("HEAD", "--param", "sed") == "collect: sed: not in params.yaml of HEAD"


def test_sources_that_no_commit_holds_are_refused(repository: Path) -> None:
    from pipelines.ablate import require_committed

    (repository / "docs/a.md").write_text("two")
    require_committed(repository)
    (repository / "src/a.py").write_text("two")
    with pytest.raises(IkdditError, match=r"src/a\.py"):
        require_committed(repository)


def test_clones_that_nobody_works_in_are_removed(tmp_path: Path) -> None:
    from pipelines.clones import CLONES, clones_of, remove_dead_clones

    clones = [tmp_path / CLONES / name for name in ("tmpdead", "tmpbusy", "tmpnew", "run")]
    for clone in clones:
        (clone / "data").mkdir(parents=True)
        if clone.name != "tmpnew":
            os.utime(clone, (0, 0))
    with subprocess.Popen(["sleep", "60"], cwd=clones[1] / "data") as busy:
        assert clones_of(tmp_path, [psutil.Process(busy.pid)]) == {"tmpbusy"}
        assert remove_dead_clones(tmp_path) == ["tmpdead"]
        assert [clone.exists() for clone in clones] == [False, True, True, True]
        assert remove_dead_clones(tmp_path, own={"tmpnew", "tmpbusy"}) == ["tmpnew"]
        busy.kill()


def test_a_clone_that_dvc_removes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.clones import CLONES, remove_dead_clones

    gone = tmp_path / CLONES / "tmpgone"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([gone]))
    assert remove_dead_clones(tmp_path) == []


IDLE = "import time; time.sleep(60)"
EXPERIMENT = ["exp", "run", "--temp", "-n", "mask-1"]


def test_experiments_of_a_killed_sweep_are_stopped(tmp_path: Path) -> None:
    from pipelines.ablate import stop_orphans

    # a shell that starts it and ends at once leaves it without its parent, as a kill does
    shell = ["sh", "-c", '"$@" >/dev/null & echo $!', "sh", sys.executable, "-c", IDLE, *EXPERIMENT]
    started = subprocess.run(
        shell,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
    orphan = psutil.Process(int(started.stdout))
    assert stop_orphans(tmp_path, ["mask-2"]) == []
    assert stop_orphans(tmp_path / "elsewhere", ["mask-1"]) == []
    assert stop_orphans(tmp_path, ["mask-1"]) == ["mask-1"]
    orphan.wait(10)


def test_a_sweep_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    from pipelines.ablate import stop_orphans

    keep = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {IDLE!r}, *{EXPERIMENT!r}])"
    command = [sys.executable, "-c", keep, "pipelines.ablate"]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as flow:
        parent = psutil.Process(flow.pid)
        deadline = time.monotonic() + 30
        while not parent.children() and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(IkdditError, match=f"mask-1 is being run by process {flow.pid}"):
            stop_orphans(tmp_path, ["mask-1"])
        os.killpg(flow.pid, signal.SIGKILL)


METRICS = {"rmse_nm": 1.0, "crps_nm": 0.5, "train.cpu_seconds": 100.0}


def mask_rows() -> list[dict[str, Any]]:
    """As collected, RMSE rising with the seed; the last run failed."""
    rows = []
    for run in runs_of("mask")[:-1]:
        rmse = 1.0 + 0.1 * run.cell["seed"] + (0.0 if run.cell["train.dense_path"] else 0.5)
        rows.append({"run": run.name, **run.cell, **METRICS, "rmse_nm": rmse})
    last = runs_of("mask")[-1]
    return [*rows, {"run": last.name, **last.cell, "failed": "TrainingError: loss nan"}]


def test_collected_rows_are_in_the_order_of_the_sweep_with_the_failed_run_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipelines import ablate

    runs = runs_of("discriminator")
    there = {run.name: f"commit-{i}" for i, run in enumerate(runs[:2])}
    monkeypatch.setattr(ablate, "finished", lambda root, names: there)
    monkeypatch.setattr(ablate, "row_of", lambda revision, axes, root: {"run": revision, **METRICS})
    kept = {runs[1].name: {"run": runs[1].name, "rmse_nm": "1.5"}}
    del there[runs[1].name]
    rows = ablate.collect(ROOT, runs, kept, {runs[2].name: "no memory"})
    assert [row["run"] for row in rows] == [run.name for run in runs[:3]]  # the fourth has not run yet
    assert rows[1] == kept[runs[1].name]
    assert rows[0]["rmse_nm"] == 1.0
    assert rows[2] == {"run": runs[2].name, "train.discriminator": "prototype", "failed": "no memory"}


def test_the_table_has_mean_and_sd_over_the_seeds_beside_the_papers_figures() -> None:
    from pipelines.ablation_report import markdown
    from pipelines.sweeps import read_definitions

    text = markdown("mask", read_definitions().sweeps["mask"], mask_rows())
    lines = [line for line in text.splitlines() if line.startswith("| 0.")]
    assert len(lines) == 8
    cells = [cell.strip() for cell in lines[0].strip("|").split("|")]
    sd = statistics.stdev([1.0, 1.1, 1.2])
    assert math.isclose(sd, 0.1)
    assert cells[:4] == ["0.0", "true", "3", f"1.1 +- {sd:.2g}"]
    assert cells[-1] == "27.46"
    last = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert last[:4] == ["0.7", "false", "2", f"1.55 +- {statistics.stdev([1.5, 1.6]):.2g}"]
    assert last[-1] == "123.85"
    assert "failed: TrainingError: loss nan" in text
    assert "second hand" in text


def test_a_table_read_back_gives_the_same_text(tmp_path: Path) -> None:
    from pipelines.ablation_report import markdown, read_rows, write_document
    from pipelines.collect import write_rows
    from pipelines.sweeps import read_definitions

    sweeps, rows = read_definitions().sweeps, mask_rows()
    write_rows(rows, tmp_path / "reports/ablations/mask.csv")
    again = read_rows(sweeps["mask"], tmp_path / "reports/ablations/mask.csv")
    assert markdown("mask", sweeps["mask"], again) == markdown("mask", sweeps["mask"], rows)
    document = write_document(sweeps, tmp_path).read_text()
    assert markdown("mask", sweeps["mask"], rows) in document
    assert "`python -m pipelines.ablate size`" in document


def test_figure_has_a_panel_for_each_metric_and_is_the_same_for_the_same_table(tmp_path: Path) -> None:
    from pipelines.ablation_report import draw
    from pipelines.sweeps import read_definitions

    sweep = read_definitions().sweeps["mask"]
    for name in ("one", "two"):
        draw(sweep, mask_rows(), tmp_path / name / "mask")
    svg = (tmp_path / "one/mask.svg").read_text()
    assert svg == (tmp_path / "two/mask.svg").read_text()
    assert all(f">{words}<" in svg for words in ("RMSE, nm", "CRPS, nm", "training, CPU s", sweep.title))
    assert ">OME(1.5 nm)<" not in svg  # in none of the rows
    assert (tmp_path / "one/mask.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_that_cannot_be_compared_are_left_out() -> None:
    from pipelines.ablation_report import shown
    from pipelines.sweeps import read_definitions

    assert "frechet_embedding" in shown(read_definitions().sweeps["mask"])
    assert "frechet_embedding" not in shown(read_definitions().sweeps["condition"])


def test_the_reason_of_a_failure_is_its_telling_line() -> None:
    from pipelines.ablate import _reason

    said = [
        "python -m dvc: exit code 255",
        "10:01:02 E TrainingError: loss nan",
        "ERROR: failed to reproduce",
    ]
    assert _reason(said) == "TrainingError: loss nan"
    assert _reason(["python -m dvc: exit code 137"]) == "python -m dvc: exit code 137"
    assert _reason([]) == "failed"


def test_table_says_whether_the_samples_are_wafers_or_noise():
    from pipelines.ablation_report import markdown
    from pipelines.sweeps import read_definitions

    sweep = read_definitions().sweeps["lambda"]
    row = {"run": "a", "lambda1": 0.0, "lambda2": 0.0, "rmse_nm": 1.0, "spread_skill": 1.5}
    table = markdown("lambda", sweep, [row | {"spectrum_ratio_high": 8.0}])
    assert "| spread / skill | power of samples below 25 mm over measured |" in table
    assert "| 1.5 | 8 |" in table
    assert "power of samples" not in markdown("lambda", sweep, [row])
