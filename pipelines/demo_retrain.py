"""`make demo-retrain`: three months of a simulated fab, and what retraining decides about each.

A champion is trained on the days before. Month 1: a maintenance leaves a scanner elsewhere. Month 2: nothing
changes. Month 3: half of the export is broken. Everything is real (DVC, MLflow, Prefect), in a checkout of
its own under `.ikddit/demo-retrain`, so that data, store and branches of this one are left alone.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikddit.atomic import write_text
from ikddit.checkout import checkout_root
from ikddit.console import configure_logging, log
from ikddit.errors import IkdditError
from ikddit.params import ShiftParams, SimulateParams, load_params
from ikddit.simulator.writer import write_dataset
from pipelines.process import CommandError, dvc_command, git, run_command
from pipelines.scratch import copy_project

PROFILE = Path(__file__).with_name("demo_retrain.yaml")
MARK = ".ikddit/made-by-demo-retrain"
"""In a folder of the play: it may be deleted for the next one."""


@dataclass(frozen=True)
class Month:
    """One delivery of the play."""

    name: str
    what: str
    corrupt: bool = False


MONTHS = (
    Month("month-1", "maintenance moves a scanner"),
    Month("month-2", "nothing changes"),
    Month("month-3", "half of the export is broken", corrupt=True),
)


@dataclass(frozen=True)
class Play:
    """Size of the play."""

    profile: Path = PROFILE
    lots: int = 90
    """Of a month."""
    days: float = 30.0
    scanner: str = "LITH03"
    shift_nm: float = 4.0


def environment(folder: Path) -> dict[str, str]:
    """What processes of the play get: nothing that points to this checkout's stores."""
    own = {"PREFECT_HOME": str(folder / ".prefect")}
    code = [str(folder / "src"), os.environ.get("PYTHONPATH", "")]
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, code)), "MLFLOW_TRACKING_URI": ""}


def make_champion(folder: Path) -> None:
    """Run the pipeline on the days before month 1: its model is the first champion."""
    command, env = dvc_command("repro")
    run_command(command, folder, log.info, env | environment(folder))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "First champion")


def deliver(folder: Path, number: int, play: Play) -> None:
    """Put a month into the drop folder; it takes its name there when it is complete."""
    month, base = MONTHS[number], load_params(folder / "params.yaml").simulate
    start = base.from_day + base.days
    fab = SimulateParams(
        fab_seed=base.fab_seed,
        sample_seed=base.sample_seed,
        lots=play.lots,
        from_day=start + number * play.days,
        days=play.days,
        shift=ShiftParams(scanner=play.scanner, day=start, nm=play.shift_nm),
    )
    incoming = folder / "data" / "incoming"
    scratch = incoming / f"{month.name}.part"
    write_dataset(fab, scratch, workers=1 if play.lots < 50 else 0)
    if month.corrupt:
        corrupt(scratch)
    os.replace(scratch, incoming / month.name)


def corrupt(delivery: Path) -> None:
    """Cut the images of every second lot short, as a full disk on the export server does."""
    for archive in sorted((delivery / "lots").glob("*.zip"))[::2]:
        with zipfile.ZipFile(archive) as source:
            members = {info: source.read(info) for info in source.infolist()}
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
            for info, content in members.items():
                target.writestr(
                    info, content[: len(content) // 2] if info.filename.endswith(".png") else content
                )


def run_retraining(folder: Path, month: Month) -> dict[str, Any]:
    """Run the flow as a schedule would; returns its record."""
    command = [sys.executable, "-m", "pipelines.retrain"]
    run_command(command, folder, log.info, dvc_command()[1] | environment(folder))
    record: dict[str, Any] = json.loads((folder / "reports" / "retrain" / f"{month.name}.json").read_text())
    return record


def clear(folder: Path) -> None:
    """Make the folder empty, and this command's.

    Raises:
        IkdditError: it holds something that this command did not write.
    """
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / MARK).is_file():
        raise IkdditError(
            f"{folder}: not made by this command; choose another --folder, or delete it yourself"
        )
    shutil.rmtree(folder, ignore_errors=True)
    write_text(folder / MARK, "`python -m pipelines.demo_retrain` made this folder, and will delete it\n")


def play_all(folder: Path, play: Play) -> list[dict[str, Any]]:
    """Play the three months; returns what was decided about each."""
    clear(folder)
    copy_project(folder, play.profile)
    make_champion(folder)
    records = []
    for number, month in enumerate(MONTHS):
        log.info("---- %s: %s ----", month.name, month.what)
        deliver(folder, number, play)
        records.append(run_retraining(folder, month))
    return records


def table(records: list[dict[str, Any]]) -> None:
    """Print what happened, what was decided and why."""
    from rich.console import Console
    from rich.table import Table

    out = Table("month", "what happened", "wafers in / passed", "decision", "why", show_lines=True)
    for month, record in zip(MONTHS, records, strict=True):
        drop = record["drops"][0]
        counts = f"{drop['found']} / {drop['records'] if drop['passed'] else 0}"
        out.add_row(month.name, month.what, counts, record["decision"], "\n".join(record["reasons"]))
    Console(width=None if sys.stdout.isatty() else 150).print(out)


def main() -> None:
    """Play, print, and say where everything is."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.demo_retrain", description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        default=checkout_root() / ".ikddit" / "demo-retrain",
        help="new, or of the play before",
    )
    arguments = parser.parse_args()
    configure_logging()
    start = time.monotonic()
    folder = arguments.folder.resolve()
    try:
        records = play_all(folder, Play())
    except (IkdditError, CommandError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"demo-retrain: {error}") from None
    table(records)
    write_text(folder / "demo.json", json.dumps(records, indent=2) + "\n")
    print(
        f"{(time.monotonic() - start) / 60:.1f} minutes; look around in {folder} (ikddit models, git branch)"
    )


if __name__ == "__main__":
    main()
