"""The clones in which `dvc exp run --temp` works: DVC leaves them behind when it is stopped or killed."""

import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import psutil

CLONES = Path(".dvc/tmp/exps/standalone")
SPARE_S = 60.0
"""DVC makes a clone before it runs anything there: one as young as that may be about to be used."""


def clones_of(root: Path, processes: Iterable[psutil.Process]) -> set[str]:
    """Names of the clones in which these processes work."""
    folder, found = (root / CLONES).resolve(), set()
    for process in processes:
        with suppress(psutil.Error, OSError):
            place = Path(process.cwd())
            if folder in place.parents:
                found.add(place.relative_to(folder).parts[0])
    return found


def remove_dead_clones(root: Path, own: Collection[str] = ()) -> list[str]:
    """Remove the clones that stopped or killed experiments left in DVC's folder; returns their names.

    A clone lives while a process works in it, or while it is younger than `SPARE_S`, unless it is one of `own`: those
    are known to be nobody else's.
    """
    busy = clones_of(root, psutil.process_iter())
    dead = []
    for clone in (root / CLONES).glob("tmp*"):
        with suppress(FileNotFoundError):  # DVC removes its own meanwhile
            young = clone.name not in own and time.time() - clone.stat().st_mtime <= SPARE_S
            if clone.name not in busy and not young:
                dead.append(clone)
    for clone in dead:
        shutil.rmtree(clone, ignore_errors=True)
    return [clone.name for clone in dead]
