"""Members of folders and zips, read within bounds: path tricks, bombs, encryption are refused by name."""

import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

from isal import isal_zlib

from ikddit.errors import InputError
from ikddit.mpom.inflate import INFLATE_ERROR

MAX_MEMBERS = 100_000
"""Files in one zip."""
_MAX_DIRECTORY_BYTES = 32 << 20
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    INFLATE_ERROR,
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
        separator = "!" if self.is_zip else "/"
        if self.path and member and not self.inner:  # nearly all
            return f"{self.path}{separator}{member}"
        return separator.join(filter(None, (self.path, self.inner, member)))


class Member(NamedTuple):
    """A file of a container; for members of a zip also what its directory says about it.

    Args:
        name: inside the container.
        offset: of the member in the zip.
        stored_size: compressed bytes.
        size: decompressed bytes.
        crc: checksum of the decompressed bytes.
        method: compression method.
        flags: general purpose bits.
    """

    name: str
    offset: int = -1
    stored_size: int = 0
    size: int = 0
    crc: int = 0
    method: int = 0
    flags: int = 0

    @classmethod
    def of(cls, info: zipfile.ZipInfo) -> "Member":
        """Take over an entry of a zip's directory."""
        return cls(
            info.filename,
            info.header_offset,
            info.compress_size,
            info.file_size,
            info.CRC,
            info.compress_type,
            info.flag_bits,
        )


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
    """Why the name of a member of the zip `file` is a trick, or None."""
    name = info.filename
    if name != info.orig_filename or "\\" in name or name[1:2] == ":":
        reason = f"unsafe name {info.orig_filename!r}"
    elif not name:
        reason = "empty name"
    elif name.startswith("/"):
        reason = f"absolute name {name!r}"
    elif ".." in name.split("/"):
        reason = f"name {name!r} leads outside the zip"
    elif stat.S_ISLNK(info.external_attr >> 16):
        reason = f"{name!r} is a symbolic link"
    else:
        return None
    return InputError(f"{file}!{name}", "path", reason, "write the zip again with plain relative names")


def read_member(handle: BinaryIO, member: Member, max_bytes: int, file: str) -> bytes:
    """Decompress one member of a zip, never more than it declares and never more than `max_bytes`.

    Read here and not by `zipfile`, whose objects around each small member cost more than the member
    (benchmarks/bench_ingest.py), and which may decompress beyond the declared size.

    Raises:
        InputError: encrypted, too large, of a compression other than deflate, or damaged.
    """
    _, offset, stored_size, size, crc, method, flags = member
    if flags & 0x1:
        raise InputError(file, "zip", "encrypted", "write the zip without a password")
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        reason = f"compression method {method}, expected stored or deflate"
        raise InputError(file, "zip", reason, "write the zip with deflate")
    # Deflate enlarges what it cannot compress by less than a thousandth.
    if max(size, stored_size - stored_size // 1000 - 64) > max_bytes:
        raise _too_large(file, max(size, stored_size), max_bytes)
    try:
        handle.seek(offset)
        header = handle.read(30)
        name, extra = struct.unpack("<HH", header[26:30])
        body = handle.read(name + extra + stored_size)
        named = member.name.encode("utf-8" if flags & 0x800 else "cp437")
        if header[:4] != b"PK\x03\x04" or body[:name] != named:
            raise InputError(file, "zip", "damaged: directory and content do not agree", _AGAIN)
        data = body[name + extra :]
        if method == zipfile.ZIP_DEFLATED:
            data = isal_zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except _ZIP_ERRORS as error:
        raise InputError(file, "zip", f"damaged: {error}", _AGAIN) from None
    if len(data) != size or isal_zlib.crc32(data) != crc:
        raise InputError(file, "zip", "damaged: wrong length or checksum", _AGAIN)
    return data


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
        self._handle: BinaryIO | None = None

    def read(self, container: Container, member: Member) -> bytes:
        """Bytes of one file.

        Raises:
            InputError: unreadable, too large, or whatever `read_member` refuses.
        """
        file = container.name(member.name)
        if not container.is_zip:
            return self._read_file(os.path.join(self.root, container.path, member.name), file)
        if container != self._container:
            self._open(container)
        assert self._handle is not None
        return read_member(self._handle, member, self.max_bytes, file)

    def _read_file(self, path: str, file: str) -> bytes:
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
        name = container.path or self.root.name
        try:
            self._handle = path.open("rb", buffering=1 << 18)
        except OSError as error:
            raise InputError(
                name, "file", f"not readable: {error.strerror}", "check its permissions"
            ) from None
        if container.inner:
            inner = Member.of(open_zip(self._handle, name).NameToInfo[container.inner])
            data = read_member(self._handle, inner, self.max_bytes, container.name())
            self._handle.close()
            self._handle = io.BytesIO(data)
        self._container = container

    def close(self) -> None:
        """Close what is open; the reader may be used again."""
        if self._handle is not None:
            self._handle.close()
        self._container = self._handle = None
