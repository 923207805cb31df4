"""Raw items where they lie: folders (nested too), zips in folders, a zip itself; nothing is extracted.

An item is one wafer: the files of one key in one folder (of the disk or of a zip). Whatever stands in the way
of an item is carried by the item as a rejection, so that found = records + quarantined holds by construction.
"""

import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from ikddit.errors import InputError
from ikddit.mpom.archive import Container, Member, member_problem, open_zip, read_member

ROLES = ("overlay_prev", "overlay", "logs", "id", "maps")
"""What the files of an item are; also the order in which their bytes are hashed."""
DESCRIPTION = "dataset.json"
TABLE_SUFFIXES = (".csv", ".parquet")
_NAME = re.compile(
    r"(?P<role>overlay_prev|overlay|logs|id|maps)(?:_(?P<key>.+)|(?P<digits>\d.*))?\.(?P<ext>png|json|txt|npz)",
    re.IGNORECASE | re.DOTALL,
)
_EXTENSIONS = {"overlay_prev": "png", "overlay": "png", "logs": "json", "id": "txt", "maps": "npz"}


@dataclass(frozen=True, slots=True)
class Rejection:
    """One item that goes to quarantine: what `InputError` says, and of which item."""

    item: str
    file: str
    field: str
    reason: str
    remedy: str

    @classmethod
    def of(cls, item: str, error: InputError) -> "Rejection":
        """Take over the four parts of an error, in characters that any file takes."""
        parts = (item, error.file, error.field, error.reason, error.remedy)
        return cls(*map(_printable, parts))

    @property
    def text(self) -> str:
        """File, field and reason in one line."""
        return f"{self.file}: {self.field}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RawItem:
    """The files of one wafer.

    Args:
        container: where they lie.
        folder: folder inside a zip ("" at its top, and for folders on disk).
        key: what stands between a file's prefix and its extension; may be empty.
        members: role (see `ROLES`) -> file inside the container.
        rejection: why the item cannot be read at all.
    """

    container: Container
    folder: str
    key: str
    members: dict[str, Member] = field(default_factory=dict)
    rejection: Rejection | None = None

    @property
    def name(self) -> str:
        """The item's name for people, as written to `source`."""
        return self.container.name(f"{self.folder}/{self.key}" if self.folder else self.key) or "."

    @property
    def barcode(self) -> str:
        """Barcode for data without ids: the key, after the path where the data set has folders or zips.

        >>> RawItem(Container("lots/L1.zip", True), "", "0007").barcode
        'lots/L1/0007'
        """
        path, _, inner = self.container
        parts = (path.removesuffix(".zip"), inner.removesuffix(".zip"), self.folder, self.key)
        return "/".join(part for part in parts if part) or "0"


@dataclass(slots=True)
class Census:
    """What the walk passed by, filled while it goes.

    Args:
        ignored: files that belong to no item.
        tables: mark tables (CSV, Parquet), relative to the root; empty where the root is a zip.
        refused_tables: why others of them cannot be read.
        descriptions: dataset.json files that lie below the root.
    """

    ignored: int = 0
    tables: list[str] = field(default_factory=list)
    refused_tables: list[Rejection] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)


def classify(filename: str) -> tuple[str, str] | None:
    """Role and key of a file name, or None if it is not part of an item.

    >>> classify("overlay_prev_000001.png"), classify("overlay_prev000001.png"), classify("logs.json")
    (('overlay_prev', '000001'), ('overlay_prev', '000001'), ('logs', ''))
    >>> classify("ideas.txt"), classify("dataset.json")
    (None, None)
    """
    match = _NAME.fullmatch(filename)
    if match is None or _EXTENSIONS[match["role"].lower()] != match["ext"].lower():
        return None
    return match["role"].lower(), match["key"] or match["digits"] or ""


def walk(root: Path, max_member_bytes: int, census: Census) -> Iterator[RawItem]:
    """Yield the items below `root` in the order of their names, one folder or zip at a time.

    Memory is that of the largest single folder's listing. Symbolic links to files are followed only inside
    `root`, links to folders never.

    Args:
        root: a folder or a zip file.
        max_member_bytes: largest zip that is read from inside another zip.
        census: is filled with what was passed by.
    """
    if root.is_dir():
        yield from _walk_folder(root.resolve(), "", max_member_bytes, census)
    else:
        yield from _walk_zip_file(root, Container("", is_zip=True), root.name, max_member_bytes, census)


def _refuse(container: Container, error: InputError, member: str = "") -> RawItem:
    item = RawItem(container, "", member)
    return RawItem(container, "", member, rejection=Rejection.of(_printable(item.name), error))


def _printable(name: str) -> str:
    """File names that are not UTF-8 hold lone surrogates, which no JSON or Parquet file takes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _walk_folder(root: Path, path: str, max_member_bytes: int, census: Census) -> Iterator[RawItem]:
    container = Container(path, is_zip=False)
    try:
        with os.scandir(root / path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        reason = f"folder not readable: {error.strerror}"
        yield _refuse(container, InputError(path or ".", "file", reason, "check its permissions"))
        return
    files: list[Member] = []
    archives: list[str] = []
    folders: list[str] = []
    problems: dict[str, InputError] = {}
    for entry in found:
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            census.ignored += 1
        elif entry.is_dir(follow_symlinks=False) and classify(entry.name) is None:
            folders.append(entry.name)
        elif entry.name == DESCRIPTION:
            if path:
                census.descriptions.append(container.name(entry.name))
        else:
            name = container.name(entry.name)
            problem = _entry_problem(root, entry, _printable(name))
            if problem is None and suffix in TABLE_SUFFIXES and _printable(name) != name:
                # Items are told so where they are put together.
                problem = InputError(_printable(name), "path", "file name is not UTF-8", "rename it")
            if problem is not None:
                problems[entry.name] = problem
            if suffix == ".zip":
                archives.append(entry.name)
            elif suffix in TABLE_SUFFIXES and problem is None:
                census.tables.append(container.name(entry.name))
            elif suffix in TABLE_SUFFIXES and problem is not None:
                census.refused_tables.append(Rejection.of(problem.file, problem))
            else:
                files.append(Member(entry.name))
    yield from _group(container, "", files, problems, census)
    for name in archives:
        inner = Container(container.name(name), is_zip=True)
        if name in problems:
            yield _refuse(inner, problems[name])
        else:
            yield from _walk_zip_file(root / path / name, inner, inner.path, max_member_bytes, census)
    for name in folders:
        yield from _walk_folder(root, container.name(name), max_member_bytes, census)


def _entry_problem(root: Path, entry: os.DirEntry[str], name: str) -> InputError | None:
    """Why a directory entry can't be read as a file; None where it can (its content is not looked at)."""
    if not entry.is_symlink():
        if entry.is_file(follow_symlinks=False):
            return None
        kind = "a folder" if entry.is_dir(follow_symlinks=False) else "not a regular file"
        return InputError(name, "file", f"{kind} where a file is expected", "remove or rename it")
    problem = outside_link(root, entry.path, name)
    if problem is None and not entry.is_file():
        return InputError(name, "file", "symbolic link that leads to no file", "copy the file here")
    return problem


def outside_link(root: Path, path: Path | str, name: str) -> InputError | None:
    """A symbolic link at `path` that leads outside `root`, called `name` for people; None for any other file."""
    if os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        return InputError(name, "path", "symbolic link that leads outside the data set", "copy the file here")
    return None


def _group(
    container: Container, folder: str, files: list[Member], problems: dict[str, InputError], census: Census
) -> Iterator[RawItem]:
    """Put the files of one folder together by key; their names are full names inside the container."""
    items: dict[str, dict[str, Member]] = {}
    refused: dict[str, InputError] = {}
    for member in files:
        name = member.name
        problem = problems.get(name)
        kind = classify(name.rpartition("/")[2])
        if kind is None:
            if problem is None or problem.field != "path":
                census.ignored += 1
            else:
                yield _refuse(container, problem, name)
            continue
        role, key = kind
        members = items.setdefault(key, {})
        if role in members:
            reason = f"{members[role].name} and {name} are both {role} of key {key!r}"
            problem = InputError(container.name(name), "path", reason, "keep one of them")
        members[role] = member
        if problem is not None:
            refused.setdefault(key, problem)
    for key in sorted(items):
        item = RawItem(container, folder, key, items[key])
        error = refused.get(key)
        printable = _printable(item.name)
        if error is None and printable != item.name:
            error = InputError(printable, "path", "file name is not UTF-8", "rename it")
        if error is not None:
            item = RawItem(container, folder, key, items[key], Rejection.of(printable, error))
        yield item


def _walk_zip_file(
    path: Path, container: Container, file: str, max_member_bytes: int, census: Census
) -> Iterator[RawItem]:
    try:
        with path.open("rb") as handle:
            yield from _walk_zip(handle, container, file, max_member_bytes, census)
    except OSError as error:
        yield _refuse(
            container, InputError(file, "file", f"not readable: {error.strerror}", "check its permissions")
        )


def _walk_zip(
    handle: BinaryIO, container: Container, file: str, max_member_bytes: int, census: Census
) -> Iterator[RawItem]:
    """Items of an open zip; `file` names it for people."""
    try:
        archive = open_zip(handle, file)
    except InputError as error:
        yield _refuse(container, error)
        return
    folders, archives, problems = _sort_members(archive.filelist, container, file, census)
    found = False
    for folder in sorted(folders):
        for item in _group(container, folder, folders[folder], problems, census):
            found = True
            yield item
    for member in archives:
        found = True
        name = f"{file}!{member.name}"
        problem = problems.get(member.name)
        if container.inner and problem is None:
            problem = InputError(name, "zip", "third zip inside one another", "unpack the outer one")
        inner = Container(container.path, True, member.name)
        try:
            if problem is not None:
                raise problem
            data = io.BytesIO(read_member(handle, member, max_member_bytes, name))
        except InputError as error:
            yield _refuse(container, error, member.name)
        else:
            yield from _walk_zip(data, inner, name, max_member_bytes, census)
    if not found:
        reason, remedy = "holds no overlay_prev*.png, logs*.json or id*.txt", "remove it or write it again"
        if any(name.lower().endswith(TABLE_SUFFIXES) for name in archive.namelist()):
            reason, remedy = "holds mark tables, which are not read from a zip", "unpack it"
        yield _refuse(container, InputError(file, "zip", reason, remedy))


def _sort_members(
    infos: list[zipfile.ZipInfo], container: Container, file: str, census: Census
) -> tuple[dict[str, list[Member]], list[Member], dict[str, InputError]]:
    """Files by folder, zips, and problems by name."""
    folders: dict[str, list[Member]] = {}
    archives: list[Member] = []
    problems: dict[str, InputError] = {}
    times = Counter(info.filename for info in infos)
    for info in sorted(infos, key=attrgetter("filename")):
        name = info.filename
        if name.endswith("/") or name in problems:  # `info.is_dir()` fails on an empty name
            continue
        problem = member_problem(info, file)
        if times[name] > 1:
            reason = f"name occurs {times[name]} times in the zip"
            problem = problems[name] = InputError(f"{file}!{name}", "path", reason, "write the zip again")
        elif problem is not None:
            problems[name] = problem
        folder, _, base = name.rpartition("/")
        if base == DESCRIPTION:
            if container.path or container.inner or folder.count("/") > 0:
                census.descriptions.append(container.name(name))
        elif base.lower().endswith(".zip"):
            archives.append(Member.of(info))
        else:
            folders.setdefault(folder, []).append(Member.of(info))
    return folders, archives, problems
