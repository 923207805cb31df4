"""Whole or not at all, also after a kill: what a dead writer left goes, what a living one has stays."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from ikddit.atomic import atomic_dir, atomic_path, new_array, read_json, write_json, write_text
from ikddit.storage import StorageError

DIES = """
import os, signal, sys
from pathlib import Path
from ikddit.atomic import atomic_dir, atomic_path, write_text
kind, target = sys.argv[1], Path(sys.argv[2])
with (atomic_dir if kind == "folder" else atomic_path)(target) as scratch:
    half = scratch / "inner" / "half.bin" if kind == "folder" else scratch
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_next_writer_removes_what_a_killed_one_left(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    dead = subprocess.run([sys.executable, "-c", DIES, kind, str(target)])
    assert dead.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.match(".out.*.part")
    if kind == "folder":
        with atomic_dir(target) as scratch:
            assert not left.exists()
            assert scratch != left, "a worker of the dead one may still write there"
            write_text(scratch / "whole.txt", "whole")
        assert names(target) == ["whole.txt"]
    else:
        with atomic_path(target) as scratch:
            assert scratch.read_bytes() == b""
            scratch.write_text("whole")
        assert target.read_text() == "whole"
    assert names(tmp_path) == ["out"]


def test_two_writers_of_one_path_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_dir(target) as first, atomic_dir(target) as second:
        assert first != second
        (first / "a").touch()
        (second / "b").touch()
    # the inner block ends first, so the outer one's folder is what stays
    assert names(target) == ["a"]
    assert names(tmp_path) == ["out"]
    with atomic_path(tmp_path / "file") as one, atomic_path(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one"
    assert names(tmp_path) == ["file", "out"]


def test_writer_leaves_the_scratch_of_the_next_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is free again once the first writer has renamed its own."""
    target = tmp_path / "out"
    replace = os.replace
    with ExitStack() as stack:

        def second_begins(source: Path, destination: Path) -> None:
            replace(source, destination)
            monkeypatch.undo()
            stack.enter_context(atomic_path(target)).write_text("second")

        monkeypatch.setattr(os, "replace", second_begins)
        with atomic_path(target) as first:
            first.write_text("first")
        assert target.read_text() == "first"
    assert target.read_text() == "second"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_link_to_a_folder_elsewhere_stays_a_link(there: bool, tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "larger_disk" / "records", tmp_path / "records"
    if there:
        write_text(elsewhere / "old", "old")
    link.symlink_to(elsewhere)
    with atomic_dir(link) as scratch:
        assert scratch.parent == elsewhere.parent
        (scratch / "new").touch()
    assert link.is_symlink()
    assert names(elsewhere) == ["new"]
    assert names(tmp_path) == ["larger_disk", "records"]


def test_files_of_a_folder_are_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    with atomic_dir(tmp_path / "out") as scratch:
        (scratch / "inner").mkdir()
        files = [scratch / "a", scratch / "inner" / "b"]
        for file in files:
            file.touch()
        wanted = {file.stat().st_ino for file in files}
    assert set(flushed) == wanted


def test_old_folder_of_a_writer_killed_between_its_two_renames_goes(tmp_path: Path) -> None:
    for ending in ("part", "old"):
        (tmp_path / f".out.cafe.{ending}").mkdir()
    (tmp_path / ".out.beef.old").mkdir()
    with atomic_dir(tmp_path / "out") as scratch:
        (scratch / "new").touch()
    assert names(tmp_path) == ["out"]


def test_failed_writer_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_dir(target) as scratch:
        (scratch / "old").touch()

    def fail() -> None:
        with atomic_dir(target) as scratch:
            (scratch / "new").touch()
            raise KeyError("of the caller, and not of the disk")

    with pytest.raises(KeyError, match="of the caller"):
        fail()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_folder_that_cannot_take_its_place_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    write_text(target / "old", "old")
    replace = os.replace

    def full_disk(source: Path, destination: Path) -> None:
        if source.suffix == ".part":
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(StorageError, match="out: No space left on device"), atomic_dir(target) as scratch:
        (scratch / "new").touch()
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_refusal_of_a_file_in_a_folder_is_told_of_the_folder(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_dir(tmp_path / "records") as scratch:
            raise OSError(errno.ENOSPC, "No space left on device", str(scratch / "part-00000.parquet"))

    with pytest.raises(StorageError, match=r"/records: No space left on device; free some space"):
        write()


def test_error_about_another_file_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=r"somebody\.json"), atomic_dir(tmp_path / "records"):
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/somebody.json")


def test_refusal_that_a_rust_library_tells_of(tmp_path: Path) -> None:
    said = r"weights: Disk quota exceeded; free some of your quota"
    with pytest.raises(StorageError, match=said), atomic_path(tmp_path / "weights"):
        raise RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")


def test_refusal_crosses_processes() -> None:
    """Workers raise it too, so it must come through pickle as it was."""
    there = ForkingPickler.loads(ForkingPickler.dumps(StorageError(Path("data/records"), errno.EROFS)))
    assert str(there) == str(StorageError(Path("data/records"), errno.EROFS))
    assert (there.path, there.number) == (Path("data/records"), errno.EROFS)


def test_files_have_the_rights_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "folder" / "value.json", {"a": 1})
        with atomic_dir(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "value.json").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


def test_json_nested_too_deeply_is_a_value_error_as_any_bad_json(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep.json")


@pytest.mark.parametrize("allocates", [True, False], ids=["linux", "macos"])
def test_place_of_an_array_is_taken_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocates: bool
) -> None:
    if not allocates:
        monkeypatch.delattr(os, "posix_fallocate")
    array = new_array(tmp_path / "maps.npy", (5, 2, 100, 333))
    written = (tmp_path / "maps.npy").stat()
    assert written.st_blocks * 512 >= written.st_size > array.nbytes
    array[-1] = 1.5
    array.flush()
    again = np.load(tmp_path / "maps.npy", allow_pickle=False)
    assert (again.shape, again.dtype, again.sum(dtype=float)) == ((5, 2, 100, 333), np.float16, 1.5 * 66_600)


def test_number_that_is_no_json_is_named_by_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report\.json: splits\.test\.1: "):
        write_json(tmp_path / "report.json", {"a": 1.0, "splits": {"test": [0.5, float("nan")]}})
    assert names(tmp_path) == []
