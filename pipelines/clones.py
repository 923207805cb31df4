"""The clones in which `dvc exp run --temp` works: DVC leaves them behind when it is stopped or killed."""

import shutil
import time
from contextlib import suppress
from pathlib import Path

CLONES = Path(".dvc/tmp/exps/standalone")


def remove_dead_clones(root: Path, spare_s: float = 60.0) -> list[str]:
    """Remove the clones that stopped or killed experiments left in DVC's folder; returns their names.

    A clone lives while a process works in it, or while it is younger than `spare_s`: DVC makes one before it runs
    anything there.
    """
    import psutil

    working = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            working.append(process.cwd())
    dead = [
        clone
        for clone in (root / CLONES).glob("tmp*")
        if time.time() - clone.stat().st_mtime > spare_s
        and not any(Path(place).is_relative_to(clone.resolve()) for place in working if place)
    ]
    for clone in dead:
        shutil.rmtree(clone, ignore_errors=True)
    return [clone.name for clone in dead]
