"""What the machine says when it refuses a write, in plain words and with the way out."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ikddit.errors import IkdditError

_REMEDIES = {
    errno.ENOSPC: "free some space on that disk (`df -h` shows it)",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
    errno.EROFS: "make that file system writable, or work in a checkout that is",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
}
"""Refusals of the machine that say nothing about the program, and the way out of each."""
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
_PROBE = bytes(64 * 1024)


class StorageError(IkdditError):
    """A file or folder cannot be written: full, read-only or closed to this user; nothing half-written is left.

    Args:
        path: what was to be written.
        number: errno of the refusal, one of those with a remedy.

    >>> str(StorageError(Path("data/records"), errno.EROFS)).partition("; ")[0]
    'data/records: Read-only file system'
    """

    def __init__(self, path: Path, number: int) -> None:
        said = storage_message(path, number)
        super().__init__(f"{said}, then run the same command again; nothing half-written is left")
        self.path = path
        self.number = number

    def __reduce__(self) -> tuple[type["StorageError"], tuple[Path, int]]:
        return StorageError, (self.path, self.number)  # worker processes raise it too


def storage_message(path: Path | str, number: int | None) -> str | None:
    """Say in one line what the machine refused and what to do; None if it is no refusal of a write.

    >>> storage_message("data/records", errno.EROFS)
    'data/records: Read-only file system; make that file system writable, or work in a checkout that is'
    """
    if number is None or (remedy := _REMEDIES.get(number)) is None:
        return None
    return f"{path}: {os.strerror(number)}; {remedy}"


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Turn a refusal while the scratch is made into a `StorageError`."""
    try:
        yield
    except OSError as error:
        refuse(target, None, error)
        raise


def refuse(target: Path, scratch: Path | None, error: Exception) -> None:
    """Raise a `StorageError` of `target` if the machine refused to write it; else do nothing."""
    number = None
    if isinstance(error, StorageError):
        if scratch is not None and error.path.is_relative_to(scratch):
            number = error.number  # a file of this folder, whose scratch name means nothing to anybody
    elif not isinstance(error, IkdditError) and not _of_another_file(target, scratch, error):
        number = _refusal(error) or (_probe(scratch) if scratch is not None else None)
    if number in _REMEDIES:
        raise StorageError(target, number) from error


def _refusal(error: Exception) -> int | None:
    """Errno that an exception tells of, in its own field or as Rust libraries do (`... (os error 28)`)."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_ERRNO.search(str(error))
    return int(found[1]) if found else None


def _of_another_file(target: Path, scratch: Path | None, error: Exception) -> bool:
    """Whether an `OSError` names a file that is no part of writing `target`."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | os.PathLike):
        return False
    named = Path(os.fspath(error.filename))
    within = scratch is not None and named.is_relative_to(scratch)
    return not (within or named.parent == target.parent or target.is_relative_to(named))


def _probe(scratch: Path) -> int | None:
    """Errno of a small write into the scratch, None if it succeeds: torch says only that its own write failed."""
    probe = scratch / ".probe" if scratch.is_dir() else scratch
    try:
        with probe.open("ab") as handle:
            handle.write(_PROBE)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        return error.errno
    return None
