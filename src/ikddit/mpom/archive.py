"""Members of folders and zips, read within bounds: path tricks, bombs, encryption are refused by name."""

import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from ikddit.errors import InputError

MAX_MEMBERS = 100_000
"""Files in one zip."""
_MAX_DIRECTORY_BYTES = 32 << 20
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
)
"""What zipfile raises on damaged archives is not one type."""
_AGAIN = "copy or write the zip again"


class Container(NamedTuple):
    """A folder or zip that holds items.

    Args:
        path: of the folder or zip file, relative to the root ("" is the root itself).
        is_zip: whether it is a zip file.
        inner: name of a zip inside that zip ("" if none).

    >>> Container("lots/L1.zip", True).name("id_1.txt"), Container("lots/L1", False).name("id_1.txt")
    ('lots/L1.zip!id_1.txt', 'lots/L1/id_1.txt')
    """

    path: str
    is_zip: bool
    inner: str = ""

    def name(self, member: str = "") -> str:
        """Name of a member for people; `all.zip!L1.zip!id_1.txt` for a zip inside a zip."""
        return ("!" if self.is_zip else "/").join(part for part in (self.path, self.inner, member) if part)


def open_zip(handle: BinaryIO, file: str) -> zipfile.ZipFile:
    """Open a zip whose directory is of bearable size (checked before it is read into memory).

    Raises:
        InputError: not a zip, damaged, or more than `MAX_MEMBERS` files.
    """
    too_many = InputError(file, "zip", f"more than {MAX_MEMBERS} files", "split it, one zip per lot")
    try:
        if _directory_bytes(handle) > _MAX_DIRECTORY_BYTES:
            raise too_many
        archive = zipfile.ZipFile(handle)
    except _ZIP_ERRORS as error:
        raise InputError(file, "zip", f"not readable as a zip: {error}", _AGAIN) from None
    if len(archive.filelist) > MAX_MEMBERS:
        raise too_many
    return archive


def _directory_bytes(handle: BinaryIO) -> int:
    """Size that the end record claims for the directory, in the 64-bit form if there is one; 0 if none."""
    handle.seek(0, os.SEEK_END)
    handle.seek(max(0, handle.tell() - (1 << 16) - 128))
    tail = handle.read()
    size = 0
    if 0 <= (at := tail.rfind(b"PK\x05\x06")) <= len(tail) - 16:
        size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size == 0xFFFFFFFF and 0 <= (at := tail.rfind(b"PK\x06\x06")) <= len(tail) - 48:
        size = int.from_bytes(tail[at + 40 : at + 48], "little")
    return size


def member_problem(info: zipfile.ZipInfo, file: str) -> InputError | None:
    """Why the name of a zip member is a trick, or None."""
    name = info.filename
    if name != info.orig_filename or "\\" in name or name[1:2] == ":" or "\0" in name:
        reason = f"unsafe name {info.orig_filename!r}"
    elif PurePosixPath(name).is_absolute():
        reason = f"absolute name {name!r}"
    elif ".." in PurePosixPath(name).parts:
        reason = f"name {name!r} leads outside the zip"
    elif stat.S_ISLNK(info.external_attr >> 16):
        reason = f"{name!r} is a symbolic link"
    else:
        return None
    return InputError(file, "path", reason, "write the zip again with plain relative names")


def read_member(archive: zipfile.ZipFile, member: str, max_bytes: int, file: str) -> bytes:
    """Decompress one member, never more than it declares and never more than `max_bytes`.

    Raises:
        InputError: encrypted, too large, of a compression other than deflate, damaged, or missing.
    """
    try:
        info = archive.getinfo(member)
        if info.flag_bits & 0x1:
            raise InputError(file, "zip", "encrypted", "write the zip without a password")
        # bz2 and lzma members cannot be decompressed within a bound.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = f"compression method {info.compress_type}, expected stored or deflate"
            raise InputError(file, "zip", reason, "write the zip with deflate")
        if info.file_size > max_bytes:
            raise _too_large(file, info.file_size, max_bytes)
        with archive.open(info) as handle:
            return handle.read(info.file_size + 1)
    except KeyError:
        raise InputError(file, "file", "no longer there", "run again") from None
    except _ZIP_ERRORS as error:
        raise InputError(file, "zip", f"damaged: {error}", _AGAIN) from None


def _too_large(file: str, size: int, max_bytes: int) -> InputError:
    reason = f"{size / 2**20:.1f} MiB when decompressed, at most {max_bytes / 2**20:.1f} MiB"
    return InputError(file, "size", reason, "no map or log is that large; else raise ingest.max_member_mb")


class Reader:
    """Reads members of containers below a root; keeps the last zip open: items of one zip come together."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Read below `root` (a folder or a zip file), files of at most `max_bytes` when decompressed."""
        self.root = root
        self.max_bytes = max_bytes
        self._container: Container | None = None
        self._archive: zipfile.ZipFile | None = None
        self._handles: list[BinaryIO] = []

    def read(self, container: Container, member: str) -> bytes:
        """Bytes of one file.

        Raises:
            InputError: unreadable, too large, or whatever `read_member` refuses.
        """
        file = container.name(member)
        if not container.is_zip:
            return self._read_file(self.root / container.path / member, file)
        if container != self._container or self._archive is None:
            self._open(container)
        assert self._archive is not None
        return read_member(self._archive, member, self.max_bytes, file)

    def _read_file(self, path: Path, file: str) -> bytes:
        try:
            # Non-blocking, so that a pipe in the place of a file cannot hold the run up.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as handle:
                status = os.fstat(handle.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise InputError(file, "file", "not a regular file", "remove or rename it")
                if status.st_size > self.max_bytes:
                    raise _too_large(file, status.st_size, self.max_bytes)
                return handle.read(self.max_bytes)
        except OSError as error:
            raise InputError(
                file, "file", f"not readable: {error.strerror}", "check it and its permissions"
            ) from None

    def _open(self, container: Container) -> None:
        self.close()
        path = self.root / container.path if container.path else self.root
        try:
            self._handles.append(path.open("rb"))
        except OSError as error:
            raise InputError(
                container.path, "file", f"not readable: {error.strerror}", "check its permissions"
            ) from None
        archive = open_zip(self._handles[-1], container.path or self.root.name)
        if container.inner:
            data = read_member(archive, container.inner, self.max_bytes, container.name())
            archive = open_zip(io.BytesIO(data), container.name())
        self._container, self._archive = container, archive

    def close(self) -> None:
        """Close what is open; the reader may be used again."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()
        self._container = self._archive = None
