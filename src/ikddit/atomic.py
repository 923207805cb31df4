"""Files and folders that appear whole or not at all (write beside, flush, rename).

What a killed writer left goes with the next writer of the same path.
"""

import fcntl
import glob
import itertools
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikddit.storage import explained, refuse

if TYPE_CHECKING:
    import numpy as np

_ZEROS = bytes(64 * 1024)


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Yield an empty scratch file beside `target`; on success it is fsynced and renamed to `target`.

    On an exception the scratch file is removed and `target` keeps what it had.

    Raises:
        StorageError: the machine refuses the write.
    """
    target = Path(target)
    with explained(target), _claimed_file(target) as scratch:
        replaced = False
        try:
            yield scratch
            with scratch.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(scratch, target)
            replaced = True
        except Exception as error:
            refuse(target, scratch, error)  # while the scratch still takes the place that is missing
            raise
        finally:
            if not replaced:  # else its name may be another writer's by now
                scratch.unlink(missing_ok=True)


@contextmanager
def atomic_dir(target: Path | str) -> Iterator[Path]:
    """Yield an empty scratch folder beside `target`; on success it is fsynced and replaces `target` as a whole.

    On an exception the scratch folder is removed and `target` keeps what it had. A symbolic link stays one: what it
    points at is replaced.

    Raises:
        StorageError: the machine refuses the write.
    """
    target = Path(target)
    if target.is_symlink():  # to a larger disk
        target = target.resolve()
    with explained(target), _claimed_dir(target) as scratch:
        old = scratch.with_suffix(".old")
        try:
            yield scratch
            _flush(scratch)
            if target.exists():
                os.replace(target, old)
                try:
                    os.replace(scratch, target)
                except BaseException:
                    os.replace(old, target)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(scratch, target)
        except Exception as error:
            refuse(target, scratch, error)
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Put what the folder's files hold on the disk: 9 ms for a part of 250 records."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with (Path(parent) / name).open("rb") as handle:
                os.fsync(handle.fileno())


def write_text(target: Path | str, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(target) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(target: Path | str, value: Any) -> None:
    """Write `value` as indented, strict JSON (no NaN), atomically; keys keep their order.

    Raises:
        ValueError: names the file and the key of a number that is NaN or infinite.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{target}: {_not_finite(value) or 'value'}: {error}") from None
    write_text(target, text + "\n")


def _not_finite(value: Any) -> str | None:
    """Dotted key of the first number that is NaN or infinite, as `splits.test.0`; None if all are finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    keys: Any = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list | tuple) else ()
    )
    for key in keys:
        if (below := _not_finite(value[key])) is not None:
            return f"{key}.{below}".rstrip(".")
    return None


def read_json(path: Path | str) -> Any:
    """Read JSON written by `write_json`.

    Raises:
        ValueError: it is no JSON, or nested deeper than anything of ours.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def new_array(path: Path | str, shape: tuple[int, ...]) -> "np.memmap":
    """Create a float16 `.npy` file of zeros and map it, with its place on the disk taken at once.

    Writing through a map into a file whose place is not taken ends the process (SIGBUS) when the disk is full.

    Raises:
        OSError: the disk has no room for it.
    """
    import numpy as np  # not for those who only write text

    array: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    with Path(path).open("rb+") as handle:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle.fileno(), 0, os.fstat(handle.fileno()).st_size)
        else:  # macOS
            handle.seek(-array.nbytes, os.SEEK_END)
            for start in range(0, array.nbytes, len(_ZEROS)):
                handle.write(_ZEROS[: array.nbytes - start])
    return array


# Scratch names and their owners -------------------------------------------------------------------------
#
# A scratch is its owner's by a lock of the operating system, which goes with the process however that ends. So a dead
# writer's scratch is told from a live one's, on any machine that shares the file system and its locks.


@contextmanager
def _claimed_file(target: Path) -> Iterator[Path]:
    """Own one scratch file of `target`, empty, until the block ends.

    Names are numbered from 0, so that what a killed writer left is taken over without listing the folder, which may
    hold thousands of files.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        scratch = target.parent / f".{target.name}.{number}.part"
        try:
            handle = _open_file(scratch)
        except PermissionError:
            if scratch.exists():  # another user's
                continue
            raise
        try:
            locked = _lock(handle)
            if locked and _is_at(handle, scratch):
                os.truncate(handle, 0)
                yield scratch
                return
        finally:
            os.close(handle)
        if locked is None:
            break
    # A file system without locks: named by process, and what a killed one leaves stays.
    scratch = target.parent / f".{target.name}.{socket.gethostname()}-{os.getpid()}.part"
    os.close(_open_file(scratch))
    yield scratch


@contextmanager
def _claimed_dir(target: Path) -> Iterator[Path]:
    """Own one scratch folder of `target` until the block ends; those of dead writers are removed.

    Never the same name twice: a killed stage's worker processes may live on for a while, and write into the folder
    they knew.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    while True:
        scratch = target.parent / f".{target.name}.{secrets.token_hex(4)}.part"
        scratch.mkdir()
        try:
            handle = _open_dir(scratch)
        except FileNotFoundError:  # swept by another writer before it was locked
            continue
        try:
            if _lock(handle) is not False and _is_at(handle, scratch):
                yield scratch
                return
        finally:
            os.close(handle)


def _sweep(target: Path) -> None:
    """Remove scratch folders of `target` whose writers are dead."""
    name = glob.escape(target.name)
    for old in target.parent.glob(f".{name}.*.old"):
        if not old.with_suffix(".part").exists():  # else its owner is just putting the new one in its place
            shutil.rmtree(old, ignore_errors=True)
    for left in target.parent.glob(f".{name}.*.part"):
        try:
            handle = _open_dir(left)
        except OSError:  # a scratch file, another user's, or gone
            continue
        try:
            if _lock(handle):
                shutil.rmtree(left, ignore_errors=True)
                shutil.rmtree(left.with_suffix(".old"), ignore_errors=True)
        finally:
            os.close(handle)


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def _open_dir(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _lock(handle: int) -> bool | None:
    """Whether it is ours now; None where the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the open file is still the one of that name: its owner may have renamed it just now."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
