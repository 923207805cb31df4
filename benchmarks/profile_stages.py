"""Where does the time go? Every stage of `dvc repro` with wall, CPU and memory; the hot paths line by line.

    python benchmarks/profile_stages.py                                     # the default pipeline, in a copy
    python benchmarks/profile_stages.py --params tests/pipeline/tiny.yaml   # the smallest, in minutes
    python benchmarks/profile_stages.py --log repro.log                     # of `dvc repro > repro.log 2>&1`; wall only
    python benchmarks/profile_stages.py --hot                               # all hot paths
    python benchmarks/profile_stages.py --hot train sample --seconds 5 --top 20

Stages run in a copy of this checkout as it is now, without results, one `dvc repro --single-item` after the other in
the order of dvc.yaml; nothing of this checkout is touched. The copy is a temporary folder unless `--work` names one,
which is then kept. `--params` names a YAML file whose keys replace those of params.yaml. CPU is of the stage with all
its processes, DVC included; memory is the sum over them, looked at five times a second (what they share counts twice).
What DVC adds to a stage (start, hashes, cache) is wall less what the stage itself says at its end; here DVC starts
once a stage, in a whole `dvc repro` once.

`--hot` runs each path (simulate, ingest, loader, train, sample, report) in this process for some seconds, after one
run that does not count, on small inputs: `--lots` lots of 25 wafers for the first three, an untrained model of
`--model` at `--batch` for train and sample, and for report what `--root` holds. The exact noise floor is computed on a
part of a large data set and on all of a small one, so simulate looks dearer here than it is. Python is profiled with
cProfile, torch with torch.profiler.
"""

import argparse
import cProfile
import io
import json
import os
import pstats
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `pipelines` is not part of the installed package
from pipelines.process import CommandError, dvc_command, run_command  # noqa: E402
from pipelines.scratch import copy_project  # noqa: E402

from ikddit.console import configure_logging, log  # noqa: E402
from ikddit.device import pick_precision  # noqa: E402
from ikddit.errors import ParamsError  # noqa: E402

LOOK_S = 0.2
RUNNING = re.compile(r"Running stage '([\w@.-]+)'")
DONE = re.compile(r"\bdone in ([\d.]+) s\b")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
HOT = ("simulate", "ingest", "loader", "train", "sample", "report")


@dataclass(frozen=True)
class StageTime:
    """What one stage took."""

    name: str
    stage_s: float
    """Wall, as the stage says itself."""
    wall_s: float | None = None
    """With what DVC does around it; None where only a log was read, like the next two."""
    cpu_s: float | None = None
    peak_mib: float | None = None


# Stages --------------------------------------------------------------------------------------------------


@contextmanager
def peak_watched(pid: int) -> Iterator[Callable[[], float]]:
    """Highest memory in MiB so far, summed over a process and its descendants."""
    peak, over = 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not over.wait(LOOK_S):
            total = 0
            try:
                for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:  # one of them has just ended: look again
                continue
            peak = max(peak, total)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield lambda: peak / 2**20
    finally:
        over.set()
        watcher.join()


def children_cpu_s() -> float:
    """CPU seconds of all children that have ended, with their own children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed_command(
    name: str, command: Sequence[str], cwd: Path, env: Mapping[str, str], say: Callable[[str], object]
) -> StageTime:
    """Run a command to its end and measure it with all that it starts.

    Args:
        name: of the stage.
        command: program and arguments.
        cwd: working folder.
        env: added to this process's environment.
        say: called with every line it prints; one of them must be a stage's `done in X s`.

    Raises:
        CommandError: it failed, or never said how long it took.
    """
    lines: list[str] = []
    watch: list[Any] = []

    def heard(line: str) -> None:
        lines.append(line)
        say(line)

    def started(pid: int) -> None:
        watch.append(peak_watched(pid))
        watch.append(watch[0].__enter__())

    before, start = children_cpu_s(), time.perf_counter()
    try:
        run_command(command, cwd, heard, env, started)
    finally:
        if watch:
            watch[0].__exit__(None, None, None)
    wall_s, cpu_s = time.perf_counter() - start, children_cpu_s() - before
    said = [float(found[1]) for line in lines if (found := DONE.search(line))]
    if not said:
        raise CommandError(f"stage {name}: no line says `done in ... s`; its last: {lines[-1:]}")
    return StageTime(name, said[-1], wall_s, cpu_s, watch[1]())


def stages_of(dvc_yaml: Path) -> list[str]:
    """Names of the stages, in the order of the file, which is one in which they can run."""
    return list(YAML(typ="safe").load(dvc_yaml)["stages"])


def quiet_environment() -> dict[str, str]:
    """What `make` exports from .env.defaults, and this copy's own store and code."""
    pairs = (
        line.split("?=", 1) for line in (ROOT / ".env.defaults").read_text().splitlines() if "?=" in line
    )
    return {name.strip(): os.environ.get(name.strip(), value.strip()) for name, value in pairs}


def profile_stages(work: Path, params: Path | None, only: Sequence[str]) -> list[StageTime]:
    """Run the stages one by one in a copy of this checkout.

    Raises:
        CommandError: a stage failed; the message holds its last lines.
        ParamsError: a key of `params` that params.yaml does not have.
    """
    copy_project(work, params)
    env = quiet_environment() | {
        "PYTHONPATH": str(work / "src"),
        # not those of the person who measures: the last stage registers a model
        "MLFLOW_TRACKING_URI": f"sqlite:///{work / 'mlflow.db'}",
        "DVC_ROOT": "",
    }
    found = []
    for name in stages_of(work / "dvc.yaml"):
        if only and name not in only:
            continue
        command, path = dvc_command("repro", "--single-item", name)
        found.append(
            timed_command(name, command, work, env | path, lambda line: print(line, file=sys.stderr))
        )
        log.info("%s: %.1f s", name, found[-1].wall_s)
    return found


def read_log(lines: Iterable[str]) -> list[StageTime]:
    """Stages and their seconds from what `dvc repro` printed, stderr included; skipped stages are not there.

    >>> read_log(["Running stage 'ingest':", "> python stages/ingest.py", "09:00:01 I done in 12.5 s"])
    [StageTime(name='ingest', stage_s=12.5, wall_s=None, cpu_s=None, peak_mib=None)]
    """
    found, running = [], None
    for line in lines:
        if stage := RUNNING.search(line):
            running = stage[1]
        elif (done := DONE.search(line)) and running:
            found.append(StageTime(running, float(done[1])))
            running = None
    return found


def table(stages: Sequence[StageTime]) -> str:
    """One line a stage, its share of the whole, and the sum; `-` where it was not measured.

    >>> print(table([StageTime("train", 30.0, 40.0, 60.0, 512.0), StageTime("report", 8.0, 10.0, 9.0, 100.0)]))
    stage             wall s   share   in DVC s    CPU s  CPU/wall  peak MiB
    train               40.0    80 %       10.0     60.0      1.50       512
    report              10.0    20 %        2.0      9.0      0.90       100
    total               50.0   100 %       12.0     69.0      1.38       512
    """
    wall = [s.stage_s if s.wall_s is None else s.wall_s for s in stages]
    lines = ["stage             wall s   share   in DVC s    CPU s  CPU/wall  peak MiB"]
    whole = sum(wall) or 1.0
    measured = all(s.wall_s is not None for s in stages)
    total = StageTime(
        "total",
        sum(s.stage_s for s in stages),
        sum(wall) if measured else None,
        sum(s.cpu_s or 0.0 for s in stages) if measured else None,
        max((s.peak_mib or 0.0 for s in stages), default=0.0) if measured else None,
    )
    for stage, seconds in zip([*stages, total], [*wall, sum(wall)], strict=True):
        line = f"{stage.name:<14}{seconds:>10.1f}{100 * seconds / whole:>6.0f} %"
        if stage.wall_s is None or stage.cpu_s is None or stage.peak_mib is None:
            lines.append(line + f"{'-':>11}{'-':>9}{'-':>10}{'-':>10}")
            continue
        line += f"{seconds - stage.stage_s:>11.1f}{stage.cpu_s:>9.1f}"
        lines.append(line + f"{stage.cpu_s / max(seconds, 1e-9):>10.2f}{stage.peak_mib:>10.0f}")
    return "\n".join(lines)


# Hot paths -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hot:
    """One hot path, ready to run."""

    what: str
    """What one run is."""
    run: Callable[[], object]
    torch: bool = False
    """Profiled by operator instead of by Python function."""


def python_profile(run: Callable[[], object], args: argparse.Namespace) -> tuple[int, float, str]:
    """Runs, wall seconds per run and the functions with most time of their own."""
    profile, count, start = cProfile.Profile(CLOCKS[args.clock]), 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < args.seconds:
        profile.enable()
        run()
        profile.disable()
        count += 1
    each = (time.perf_counter() - start) / count
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(args.top)
    body = text.getvalue()
    return count, each, body[body.index("   ncalls") :].rstrip()


def torch_profile(run: Callable[[], object], args: argparse.Namespace) -> tuple[int, float, str]:
    """The same by torch operator, with its share of all operators' own time (wall)."""
    from torch.profiler import ProfilerActivity, profile

    count, start = 0, time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        while count == 0 or time.perf_counter() - start < args.seconds:
            run()
            count += 1
        each = (time.perf_counter() - start) / count
    rows = sorted(found.key_averages(), key=lambda row: row.self_cpu_time_total, reverse=True)
    whole = sum(row.self_cpu_time_total for row in rows) or 1.0
    lines = [f"{'self':>10}{'share':>8}{'calls a run':>13}  operator"]
    lines += [
        f"{row.self_cpu_time_total / 1e3 / count:>7.2f} ms{100 * row.self_cpu_time_total / whole:>6.1f} %"
        f"{row.count / count:>13.1f}  {row.key[:70]}"
        for row in rows[: args.top]
    ]
    return count, each, "\n".join(lines)


def made_dataset(folder: Path, lots: int) -> None:
    """folder/raw: so many simulated lots."""
    from ikddit.params import SimulateParams
    from ikddit.simulator.writer import write_dataset

    write_dataset(SimulateParams.model_validate({"lots": lots, "days": 30.0}), folder / "raw", workers=1)


def made_records(folder: Path) -> None:
    """folder/records from folder/raw, in this process."""
    from ikddit.mpom.ingest import ingest
    from ikddit.params import IngestParams

    settings = IngestParams.model_validate({"workers": 1})
    ingest(folder / "raw", folder / "records", folder / "quarantine", folder / "report.json", settings)


def hot_simulate(args: argparse.Namespace, scratch: Path) -> Hot:
    return Hot(f"{args.lots} lots drawn and written", lambda: made_dataset(scratch, args.lots))


def hot_ingest(args: argparse.Namespace, scratch: Path) -> Hot:
    made_dataset(scratch, args.lots)
    return Hot(f"{args.lots} lots read", lambda: made_records(scratch))


def hot_loader(args: argparse.Namespace, scratch: Path) -> Hot:
    """Memory-mapped wafers to tensors, as training with learning encoders and sampling read them."""
    import numpy as np

    from ikddit.dataset.arrow import PreparedSplit
    from ikddit.dataset.normaliser import Normaliser
    from ikddit.dataset.prepare import prepare
    from ikddit.embedding.conditions import gather_conditions, gather_maps
    from ikddit.params import PrepareParams

    made_dataset(scratch, args.lots)
    made_records(scratch)
    shares = {"val_share": 0.1, "test_share": 0.25, "unseen_combinations": 0}
    prepare(scratch / "records", scratch / "prepared", PrepareParams.model_validate(shares), 0)
    split = PreparedSplit.open(scratch / "prepared/train.arrow")
    sigma_nm = Normaliser.load(scratch / "prepared/normaliser.json").sigma_nm
    rng, batch = np.random.default_rng(0), min(args.batch, len(split))

    def load() -> None:
        index = np.sort(rng.choice(len(split), batch, replace=False))
        gather_conditions(split, index, sigma_nm)
        gather_maps(split, index, sigma_nm)

    return Hot(f"a batch of {batch} wafers gathered", load)


def hot_train(args: argparse.Namespace, scratch: Path) -> Hot:
    from common import made_data, made_model, training_params, training_run

    params = training_params(args.batch, args.precision)
    _, step = training_run(made_model(args.model, args.precision), params, made_data(4 * args.batch))
    return Hot(f"a training step of {args.model}, batch {args.batch}, {args.precision}", step, torch=True)


def hot_sample(args: argparse.Namespace, scratch: Path) -> Hot:
    from common import made_model, sampling_runs

    from ikddit.diffusion.plan import SamplingPlan

    model = made_model(args.model, args.precision).eval()
    plan = SamplingPlan(args.steps, "masked")
    run = sampling_runs(model, args.batch, {"masked": plan})["masked"]
    what = f"masked sampling of {args.model}, batch {args.batch}, {args.steps} steps, {args.precision}"
    return Hot(what, run, torch=True)


def hot_report(args: argparse.Namespace, scratch: Path) -> Hot:
    """The page from a finished run; data are read where they are, everything is written to the scratch folder."""
    from ikddit.evaluation.report.page import write_report
    from ikddit.evaluation.report.sources import read_sources

    shutil.copytree(args.root / "reports", scratch / "reports")
    if (args.root / "data").is_dir():
        (scratch / "data").symlink_to((args.root / "data").resolve(), target_is_directory=True)
    absent = read_sources(scratch).missing
    without = f", without {', '.join(absent)} (run `dvc repro`, or name a finished run with --root)"
    return Hot(f"the report page{without if absent else ''}", lambda: write_report(scratch))


HOT_PATHS: dict[str, Callable[[argparse.Namespace, Path], Hot]] = {
    "simulate": hot_simulate,
    "ingest": hot_ingest,
    "loader": hot_loader,
    "train": hot_train,
    "sample": hot_sample,
    "report": hot_report,
}


def profile_hot(args: argparse.Namespace) -> str:
    """The paths asked for, one after the other."""
    parts = []
    for name in args.hot or HOT:
        log.info("profiling %s", name)
        with tempfile.TemporaryDirectory() as folder:
            hot = HOT_PATHS[name](args, Path(folder))
            hot.run()  # imports, caches and threads come up
            profiled = torch_profile if hot.torch else python_profile
            count, each, lines = profiled(hot.run, args)
        parts.append(f"== {name}: {hot.what}; {count} runs, {each:.4g} s each under the profiler\n{lines}")
    return "\n\n".join(parts)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, help="YAML of settings that replace those of params.yaml")
    parser.add_argument("--only", nargs="+", default=[], metavar="STAGE", help="run these stages; the others are "
                        "then missing, so name a first part of the pipeline")  # fmt: skip
    parser.add_argument("--work", type=Path, help="empty or new folder for the copy, kept afterwards")
    parser.add_argument("--log", type=Path, help="output of a `dvc repro`, instead of running one")
    parser.add_argument("--json", type=Path, help="write the stages' figures to this file too")
    parser.add_argument("--hot", nargs="*", choices=HOT, metavar="PATH", help=f"profile {', '.join(HOT)}")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each hot path")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="of cProfile; cpu on a busy machine"
    )
    parser.add_argument("--top", type=int, default=15, help="lines of each hot path")
    parser.add_argument("--lots", type=int, default=8, help="of 25 wafers")
    parser.add_argument("--model", default="T/8")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10, help="of the sampler")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: as `auto`")
    parser.add_argument(
        "--root", type=Path, default=ROOT, help="checkout whose results the report is made of"
    )
    args = parser.parse_args(arguments)
    if args.work is not None and args.work.exists() and any(args.work.iterdir()):
        parser.error(f"--work {args.work}: not empty; name a new folder")
    args.precision = args.precision or pick_precision("auto", "cpu")
    return args


def main() -> None:
    configure_logging()
    args = parse()
    if args.hot is not None:
        print(profile_hot(args))
        return
    if args.log is not None:
        stages = read_log(args.log.read_text(encoding="utf-8", errors="replace").splitlines())
        if not stages:
            raise SystemExit(f"{args.log}: no stage that ran; is it what `dvc repro > FILE 2>&1` wrote?")
    else:
        place = tempfile.TemporaryDirectory() if args.work is None else nullcontext(args.work)
        with place as folder:
            work = Path(folder).resolve()
            work.mkdir(parents=True, exist_ok=True)
            try:
                stages = profile_stages(work, args.params, args.only)
            except (CommandError, ParamsError) as error:
                raise SystemExit(str(error)) from None
    print(table(stages))
    print(f"CPUs {os.cpu_count()}, OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}")
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(s) for s in stages], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
