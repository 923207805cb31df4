"""What a killed DVC or flow leaves and nobody else gets over; the flows call this before DVC.

DVC writes two of its own files in place: `.dvc/tmp/rwlock`, its note of who works on what, and `dvc.lock`. Killed just
then, it leaves them empty or cut, and refuses to start until somebody removes them. So it does with git's
`index.lock`, if it was killed while it staged a file. A killed flow leaves its temporary Prefect server running, for
ever. `python -m pipelines.mend` removes what is left of these.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ikddit.checkout import checkout_root
from pipelines.process import git

RWLOCK = ".dvc/tmp/rwlock"
LOCK = "dvc.lock"
HELD = (".dvc/tmp/lock", ".dvc/tmp/rwlock.lock")
"""Files that a working DVC locks while it writes those two."""
CONFLICT = "<<<<<<<"
SERVER = "prefect.server.api.server:create_app"


def mend(root: Path, say: Callable[[str], object]) -> list[str]:
    """Remove what a killed DVC left, unless a DVC command or git is at work here, and end what a killed flow left.

    Returns the names of both. Nothing is lost with it: the notes are about processes, and a result that dvc.lock
    named is found again by its inputs in DVC's run cache. A dvc.lock with a merge conflict is somebody's work and
    stays.
    """
    ended = []
    for server in left_servers(root):
        ended.append(f"Prefect server {server.pid}")
        say(f"{ended[-1]}: left by a killed flow, ended")
        with suppress(psutil.NoSuchProcess):
            server.kill()
    with _nobody_works(root) as free:
        if not free:
            return ended
        broken = [name for name, unreadable in ((RWLOCK, _no_json), (LOCK, _cut)) if unreadable(root / name)]
        broken += _git_lock(root)
        for name in broken:
            say(f"{name}: left by a killed DVC, removed")
            (root / name).unlink(missing_ok=True)
    return ended + broken


def left_servers(root: Path) -> list[psutil.Process]:
    """Temporary Prefect servers that flows of this checkout started and did not live to end."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if SERVER in " ".join(process.cmdline()) and Path(process.cwd()) == root.resolve():
                parent = process.parent()  # of a living flow or `prefect server start`: Python
                if parent is None or not parent.name().startswith(("python", "prefect")):
                    found.append(process)
    return found


def _no_json(path: Path) -> bool:
    try:
        return path.is_file() and not isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return True


def _cut(path: Path) -> bool:
    """Whether DVC would refuse it; parts of a cut file may well be sound YAML."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(line.startswith(CONFLICT) for line in text.splitlines()):
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text) or {})
    except (YAMLError, Invalid):
        return True
    return False


def _git_lock(root: Path) -> list[str]:
    """Git's lock of the index, if there is one and no git that could hold it."""
    if not (root / ".git").exists():
        return []
    name = git(root, "rev-parse", "--git-path", "index.lock")
    if not (root / name).is_file():
        return []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.name().startswith("git") and Path(process.cwd()).is_relative_to(root.resolve()):
                return []
    return [name]


@contextmanager
def _nobody_works(root: Path) -> Iterator[bool]:
    """Hold DVC's locks while the block lasts; False if a DVC command has one."""
    handles: list[int] = []
    try:
        for name in HELD:
            if (root / name).is_file():
                handles.append(os.open(root / name, os.O_RDWR))
                fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        free = False
    else:
        free = True
    try:
        yield free
    finally:
        for handle in handles:
            os.close(handle)


def main() -> None:
    """Mend this checkout and say what was done."""
    if not mend(checkout_root(), print):
        print("nothing to mend")


if __name__ == "__main__":
    main()
