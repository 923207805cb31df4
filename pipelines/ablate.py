"""Sweeps as DVC experiments: run what is missing, collect the table, draw it. The sweeps are in ablations.yaml.

    python -m pipelines.ablate mask --jobs 2     # or: ikddit ablate mask; without a name: all sweeps
    python -m pipelines.ablate mask --dry-run    # what would run, and what is there already

Each run is a DVC experiment (`dvc exp run --temp`) and an MLflow run with the tag `sweep`. A run that is there
already, of the same settings and the same code, as an experiment or as a row of the table that git holds, is not
repeated; so a sweep that was stopped or killed goes on where it was, on this machine or another one. A failed run is
named in the table and stops no other one.
"""

import argparse
import os
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from ikddit.checkout import checkout_root
from ikddit.errors import IkdditError
from pipelines.ablation_report import draw, markdown, read_rows, summary_lines, write_document
from pipelines.clones import remove_dead_clones
from pipelines.collect import SOURCES, row_of, write_rows
from pipelines.mend import mend
from pipelines.process import CommandError, dvc_command, git, run_command, stop_running, unwind_on_sigterm
from pipelines.sweeps import Run, Sweep, expand, read_definitions

BUSY = "Unable to acquire lock"
"""DVC says so where two of its processes start in the same moment."""
TRIES = 5
FOLDER = Path("reports/ablations")
_stopping = threading.Event()


def finished(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Revisions of the experiments that are there: name -> commit, of the newest with the code of HEAD.

    An experiment hangs on the commit that it started from (refs/exps/<2 digits>/<38 digits>/<name>).
    """
    listed = git(root, "for-each-ref", "--sort=creatordate", "--format=%(refname) %(objectname)", "refs/exps")
    same = SameCode(root)
    found = {}
    for line in listed.splitlines():
        ref, revision = line.split()
        parts = ref.split("/")
        if len(parts) != 5 or parts[4] not in names:
            continue
        if same(parts[2] + parts[3]):
            found[parts[4]] = revision
    return found


class SameCode:
    """Whether a commit's sources are those of HEAD; asks git once for each commit."""

    def __init__(self, root: Path) -> None:
        """Of the checkout at `root`."""
        self._root = root
        self._known: dict[str, bool] = {}

    def __call__(self, commit: str) -> bool:
        """Tell; a commit that this clone does not hold is not the same."""
        if commit not in self._known:
            try:
                changed = git(self._root, "diff", "--name-only", commit, "HEAD", "--", *SOURCES)
            except CommandError:
                changed = commit
            self._known[commit] = not changed
        return self._known[commit]


def recorded(name: str, sweep: Sweep, runs: Sequence[Run], root: Path) -> dict[str, dict[str, Any]]:
    """Rows of the sweep's table that a run with the code of HEAD would only repeat, by the run's name."""
    table = root / FOLDER / f"{name}.csv"
    if not table.is_file():
        return {}
    same, wanted = SameCode(root), {run.name for run in runs}
    return {
        row["run"]: row
        for row in read_rows(sweep, table)
        if row["run"] in wanted
        and not row.get("failed")
        and row.get("code_commit")
        and same(row["code_commit"])
    }


@dataclass(frozen=True)
class State:
    """A sweep's runs, and which of them a run with the code of HEAD would only repeat."""

    sweep: Sweep
    runs: list[Run]
    there: dict[str, str]
    """Revisions of the experiments that are there, by name (`finished`)."""
    kept: dict[str, dict[str, Any]]
    """Rows of the table that git holds, by name (`recorded`)."""

    @classmethod
    def of(cls, name: str, root: Path) -> "State":
        """Look.

        Raises:
            ParamsError: no such sweep, or settings that are refused.
        """
        definitions = read_definitions()
        runs = expand(name, definitions, read_params(root))
        sweep = definitions.sweeps[name]
        there = finished(root, [run.name for run in runs])
        return cls(sweep, runs, there, recorded(name, sweep, runs, root))

    @property
    def missing(self) -> list[Run]:
        """What has to be run."""
        return [run for run in self.runs if run.name not in self.there.keys() | self.kept.keys()]


def require_committed(root: Path) -> None:
    """Refuse to start from sources that no commit holds: a table must say what code it was made with.

    Raises:
        IkdditError: sources differ from HEAD.
    """
    changed = git(root, "status", "--porcelain", "--", *SOURCES)
    if changed:
        files = ", ".join(line[3:] for line in changed.splitlines()[:5])
        raise IkdditError(f"not in any commit: {files}; commit or undo it, then start the sweep again")


def stop_orphans(root: Path, names: Sequence[str]) -> list[str]:
    """Stop experiments of these names whose sweep was killed and left them running; returns their names.

    They would finish in the way of the same runs started anew; what they have trained is in their checkpoints.

    Raises:
        IkdditError: one belongs to a sweep that is alive.
    """
    import psutil

    stopped = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            words = process.cmdline()
            wanted = [name for name in names if name in words and "--temp" in words]
            if not wanted or Path(process.cwd()) != root:
                continue
            parent = process.parent()
            if parent is not None and any("ablate" in word for word in parent.cmdline()):
                raise IkdditError(
                    f"{wanted[0]} is being run by process {parent.pid}: wait for it, or stop it"
                )
            os.killpg(os.getpgid(process.pid), signal.SIGKILL)
            stopped += wanted
    return stopped


@task(task_run_name="{run.name}")
def run_experiment(run: Run, root: Path, jobs: int) -> None:
    """Run one experiment in a clone of its own; its output goes to the log of the task.

    Raises:
        CommandError: it failed, or the sweep is being stopped.
    """
    command, env = dvc_command("exp", "run", "--temp", "-n", run.name, *run.arguments())
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env |= {name: os.environ.get(name, threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    for left in reversed(range(TRIES)):
        if _stopping.is_set():
            raise CommandError("not started: the sweep was stopped")
        try:
            run_command(command, root, get_run_logger().info, env)
            return
        except CommandError as error:
            if BUSY not in str(error) or not left:
                raise
            _stopping.wait(5.0)


def run_missing(runs: Sequence[Run], root: Path, jobs: int) -> dict[str, str]:
    """Run the experiments, `jobs` at a time. Returns the reasons of those that failed, by name."""
    futures = {run.name: run_experiment.submit(run, root, jobs, return_state=False) for run in runs}
    failed: dict[str, str] = {}
    try:
        for name, future in futures.items():
            error: Any = future.result(raise_on_failure=False)
            if isinstance(error, BaseException):
                failed[name] = _reason(str(error).splitlines())
    except BaseException:
        _stopping.set()
        stop_running()
        raise
    return failed


def _reason(lines: Sequence[str]) -> str:
    """The line of a failure that says most: what a stage or Python raised, else the last."""
    raised = [found[0] for line in lines[1:] if (found := re.search(r"\b\w+Error: .*", line))]
    return (raised or list(lines) or ["failed"])[-1].strip()


def collect(
    root: Path, runs: Sequence[Run], kept: Mapping[str, dict[str, Any]], failed: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row for each run that is finished, kept or failed; a failed one has a reason instead of metrics."""
    there = finished(root, [run.name for run in runs])
    axes = list(runs[0].cell)
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run.name in there:
            rows.append(row_of(there[run.name], axes, root) | {"run": run.name})
        elif run.name in kept:
            rows.append(kept[run.name])
        elif run.name in failed:
            rows.append({"run": run.name, **run.cell, "failed": failed[run.name]})
    return rows


@flow(name="ablate")
def ablate(name: str, root: Path, jobs: int = 1) -> list[dict[str, Any]]:
    """Run one sweep and write its table and figure to reports/ablations/.

    Args:
        name: of the sweep.
        root: the checkout.
        jobs: experiments at a time.

    Returns:
        The rows of the table.

    Raises:
        ParamsError: no such sweep, or settings that are refused; nothing has run.
        IkdditError: sources are not committed.
    """
    state = State.of(name, root)
    sweep, runs, missing = state.sweep, state.runs, state.missing
    require_committed(root)
    say = get_run_logger()
    mend(root, say.warning)
    for orphan in stop_orphans(root, [run.name for run in runs]):
        say.info("stopped %s, which a killed sweep had left running", orphan)
    for clone in remove_dead_clones(root):
        say.info("removed %s, left by an experiment that was stopped", clone)
    done = len(runs) - len(missing)
    say.info("sweep %s: %d of %d runs are there, %d to run", name, done, len(runs), len(missing))
    failed = run_missing(missing, root, jobs)
    for failure, reason in failed.items():
        say.warning("%s failed: %s", failure, reason)
    rows = collect(root, runs, state.kept, failed)
    write_rows(rows, root / FOLDER / f"{name}.csv")
    draw(sweep, rows, root / FOLDER / name)
    table = markdown(name, sweep, rows)
    create_markdown_artifact(key=f"ablate-{name}", markdown=table, description=sweep.title)
    for line in summary_lines(sweep, rows):
        say.info(line)
    return rows


def read_params(root: Path) -> dict[str, Any]:
    """params.yaml as it stands."""
    from ruamel.yaml import YAML

    values: dict[str, Any] = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    return values


def dry_run(name: str, root: Path) -> list[str]:
    """Lines that say of each run whether it is there, and the command that makes it."""
    state = State.of(name, root)
    lines = [f"{name}: {len(state.runs)} runs, {len(state.runs) - len(state.missing)} of them there"]
    for run in state.runs:
        if run.name in state.there:
            said = f"there, {state.there[run.name][:12]}"
        elif run.name in state.kept:
            said = f"in the table, of {state.kept[run.name]['code_commit']}"
        else:
            said = " ".join(run.arguments())
        lines.append(f"  {run.name}: {said}")
    return lines


def queue(name: str, root: Path) -> None:
    """Put the missing runs in DVC's own queue, for `dvc queue start` on this machine at any time."""
    require_committed(root)
    for run in State.of(name, root).missing:
        command, env = dvc_command("exp", "run", "--queue", "-n", run.name, *run.arguments())
        run_command(command, root, print, env)


def main() -> None:
    """Parse the command line and run the sweeps named, or all of them."""
    known = read_definitions().sweeps
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.ablate",
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join(f"{name}: {sweep.title}" for name, sweep in known.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="sweeps; all if none is named")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time (default 1)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="show the runs, run nothing")
    what.add_argument("--queue", action="store_true", help="only queue them, for `dvc queue start`")
    what.add_argument(
        "--tables", action="store_true", help="only write docs/ablations.md from the tables there"
    )
    arguments = parser.parse_args()
    root = checkout_root()
    unwind_on_sigterm()
    failed = []
    try:
        if unknown := [name for name in arguments.names if name not in known]:
            raise IkdditError(f"no sweep `{unknown[0]}`; known: {', '.join(known)}")
        if arguments.jobs < 1:
            raise IkdditError(f"--jobs {arguments.jobs}: at least 1")
        for name in arguments.names or known:
            if arguments.dry_run:
                print("\n".join(dry_run(name, root)))
            elif arguments.queue:
                queue(name, root)
            elif not arguments.tables:
                runner: Any = ThreadPoolTaskRunner(max_workers=arguments.jobs)
                rows = ablate.with_options(task_runner=runner)(name, root, arguments.jobs)
                failed += [row["run"] for row in rows if "failed" in row]
        if not (arguments.dry_run or arguments.queue):
            print(write_document(known, root).relative_to(root))
    except (IkdditError, CommandError) as error:
        raise SystemExit(f"ablate: {error}") from None
    if failed:
        raise SystemExit(
            f"ablate: {len(failed)} runs failed: {', '.join(failed)}; the others are in the tables"
        )


if __name__ == "__main__":
    main()
