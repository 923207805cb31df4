"""Places that refuse a write for true: a full file system, a read-only one.

Both are mounts in a user and mount namespace of their own (`unshare`), which root's powers over permission bits do
not get round, and which goes with its last process.
"""

import hashlib
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

PRIVATE = "mount --make-rprivate /"
NOT_MOUNTED = 99
UNSHARE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


@cache
def namespaces_allowed() -> bool:
    """Whether this machine lets a user mount a tmpfs in a namespace of his own (containers often do not)."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*UNSHARE, f"{PRIVATE} && mount -t tmpfs none /mnt"], capture_output=True)
    return tried.returncode == 0


def full(folder: Path, free_kib: int) -> str:
    """Shell line that puts a tmpfs with the folder's content, and `free_kib` KiB beside it, in its place."""
    return (
        f"mount -t tmpfs none /mnt && cp -a '{folder}'/. /mnt && "
        f"mount -t tmpfs -o size=$(($(du -sk /mnt | cut -f1) + {free_kib}))k none '{folder}' && "
        f"cp -a /mnt/. '{folder}'/"
    )


def read_only(folder: Path) -> str:
    """Shell line that mounts a folder over itself, read-only."""
    return f"mount --bind '{folder}' '{folder}' && mount -o remount,bind,ro '{folder}'"


def run_there(
    mounts: str, folder: Path, command: list[str], cwd: Path, env: dict[str, str]
) -> tuple[int, str, list[str]]:
    """Run a command where the shell line `mounts` holds.

    Skips the test where namespaces are refused.

    Returns:
        The command's exit code, what it said, and every folder, and file with its sha256, that `folder` then held.
    """
    if not namespaces_allowed():
        pytest.skip(
            "`unshare --map-root-user --mount` is refused here: no small or read-only file system to try"
        )
    script = (
        f'{PRIVATE} && {mounts} || exit {NOT_MOUNTED}; "$@" >&2; code=$?; '
        f"cd '{folder}' && {{ find . -type d; find . -type f -exec sha256sum {{}} +; }} | LC_ALL=C sort; exit $code"
    )
    done = subprocess.run(
        [*UNSHARE, script, "sh", *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode != NOT_MOUNTED, done.stderr
    return done.returncode, done.stderr, done.stdout.splitlines()


def listing(folder: Path) -> list[str]:
    """What `run_there` returns of a folder in which nothing has changed."""
    found = ["."]
    for path in folder.rglob("*"):
        name = f"./{path.relative_to(folder).as_posix()}"
        found.append(name if path.is_dir() else f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}")
    return sorted(found)
