"""What every reader of hostile input owes: a result or a typed error that names the file, within bounds.

`Checker.check` feeds one input to one target and says which promise was broken, if any. The promises:

- a result, or an `IkdditError` whose message names what was read; no other exception;
- at most `CPU_S` seconds of processor time, and `WALL_S` by the clock (a machine may be busy, a pipe may block);
- at most `GROWTH_MIB` MiB more resident memory than the sound inputs took; an allocation beyond `ADDRESS_MIB` fails;
- nothing is written outside the case's own folder, no process or connection is started, no pickle is followed.

Crashes of native code end the process; `fuzz_readers.py` looks after those.
"""

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from ikddit.errors import IkdditError

CPU_S = 5.0
WALL_S = 60.0
GROWTH_MIB = 512
ADDRESS_MIB = 2048
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATH_EVENTS = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
}
_FORBIDDEN = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
}


class BrokenError(Exception):
    """A target's own promise (counts, finite values, ...) was not kept."""


class HungError(BaseException):
    """Raised by the alarm; no reader's `except Exception` takes it."""


def require(kept: bool, promise: str) -> None:
    """Raise `BrokenError` unless the promise was kept."""
    if not kept:
        raise BrokenError(promise)


@dataclass(frozen=True)
class Target:
    """One reader.

    Args:
        name: of the target.
        read: hands the input to the reader as a user would, in an empty folder it may write into.
        seeds: sound inputs, from which cases are made.
        mutate: makes a case from an input; draws all its randomness from the given source.
        named: texts of which an error's message must hold one.
        weight: share of the cases of a run.
    """

    name: str
    read: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    mutate: Callable[[bytes, Random], bytes]
    named: tuple[str, ...]
    weight: int


@dataclass(frozen=True)
class Finding:
    """A broken promise and the input that breaks it."""

    target: str
    kind: str
    where: str
    """Type of exception and the innermost line of ours; two findings with the same are taken to be one."""
    detail: str
    data: bytes

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two findings one."""
        return self.target, self.kind, self.where


class _Watch:
    """An audit hook that notes what Python code does outside of a folder; there is one, hooks cannot be removed."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._event)

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path, mode, flags = args
            writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITES)
            paths = [path] if writes else []
        elif event in _PATH_EVENTS:
            paths = [arg for arg in args[:2] if isinstance(arg, str | bytes | os.PathLike)]
            if (
                isinstance(args[-1], int) and args[-1] >= 0 and event != "os.chmod"
            ):  # relative to an open folder
                paths = [
                    os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), os.fsdecode(p)) for p in paths
                ]
        elif event in _FORBIDDEN:
            self.seen.append(f"{event} {str(args)[:200]}")
            return
        else:
            return
        for path in paths:
            if isinstance(path, int):  # a handle that was opened before
                continue
            full = os.path.abspath(os.fsdecode(path))
            if not full.startswith(self.folder) and full != os.devnull:
                self.seen.append(f"{event} {full[:200]}")


_watch: _Watch | None = None


def _hung(number: int, frame: FrameType | None) -> None:
    raise HungError(signal.Signals(number).name)


def _maxrss_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@contextmanager
def _alarms() -> Iterator[None]:
    before = signal.signal(signal.SIGPROF, _hung), signal.signal(signal.SIGALRM, _hung)
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    signal.setitimer(signal.ITIMER_REAL, WALL_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


class Checker:
    """Checks cases one after the other in a scratch folder of its own, in memory where there is /dev/shm."""

    def __init__(self, scratch: Path | None = None) -> None:
        """Make the scratch folder (below `scratch`, if given): the cases' folder beside what nobody may touch."""
        global _watch
        _watch = _watch or _Watch()
        shm = Path("/dev/shm")
        within = scratch or (shm if os.access(shm, os.W_OK) else None)
        self.root = Path(tempfile.mkdtemp(prefix="ikddit-fuzz-", dir=within))
        self._case, self._sentinel = self.root / "case", self.root / "sentinel"
        self._case.mkdir()
        self._sentinel.mkdir()
        (self._sentinel / "kept.txt").write_text("kept")
        self._untouched = self._tree()
        self._baseline_mib = 0
        self._address: tuple[int, int] | None = None
        self.cpu_s = 0.0
        """Of the case checked last."""
        self.refused = False
        """Whether it ended in a typed error."""

    def close(self) -> None:
        """Remove the scratch folder."""
        shutil.rmtree(self.root, ignore_errors=True)

    def warm_up(self, target: Target) -> None:
        """Read the sound inputs, so that what is imported or kept once is not laid at a case's door."""
        for data in target.seeds():
            self._fresh()
            target.read(data, self._case)
        self._baseline_mib = _maxrss_mib()
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        self._address = (size + (ADDRESS_MIB << 20), resource.getrlimit(resource.RLIMIT_AS)[1])

    def check(self, target: Target, data: bytes) -> Finding | None:
        """Feed `data` to the target and say which promise was broken; a hang counts if it happens twice."""
        finding = self._once(target, data)
        return self._once(target, data) if finding is not None and finding.kind == "hang" else finding

    def _once(self, target: Target, data: bytes) -> Finding | None:
        assert _watch is not None
        self._fresh()
        _watch.seen.clear()
        self.refused = False
        outcome: tuple[str, str, str] | None = None
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        here, bytecode = os.getcwd(), sys.dont_write_bytecode
        sys.dont_write_bytecode = True  # what a reader imports late is no file of its own
        os.chdir(self._sentinel)  # a relative name that is written to would land here
        start = time.process_time()
        try:
            if self._address is not None:
                resource.setrlimit(resource.RLIMIT_AS, self._address)
            _watch.folder = f"{self._case}{os.sep}"
            with _alarms():
                target.read(data, self._case)
        except IkdditError as error:
            self.refused = True
            if not any(name in str(error) for name in target.named):
                outcome = ("unnamed", _place(error), str(error)[:500])
        except BrokenError as error:
            outcome = ("promise", str(error)[:80], str(error))
        except HungError as error:
            outcome = ("hang", _place(error), traceback.format_exc()[-2000:])
        except MemoryError as error:
            outcome = ("memory", _place(error), traceback.format_exc()[-2000:])
        except Exception as error:
            outcome = ("exception", _place(error), traceback.format_exc()[-2000:])
        finally:
            _watch.folder = None
            resource.setrlimit(resource.RLIMIT_AS, unlimited)
            os.chdir(here)
            sys.dont_write_bytecode = bytecode
            self.cpu_s = time.process_time() - start
        outcome = outcome or self._outside() or self._memory()
        return None if outcome is None else Finding(target.name, *outcome, data)

    def _outside(self) -> tuple[str, str, str] | None:
        assert _watch is not None
        if _watch.seen:
            return "outside", _watch.seen[0].partition(" ")[0], "\n".join(_watch.seen[:5])
        if self._tree() != self._untouched:
            return "outside", "sentinel", f"{self._untouched} became {self._tree()}"
        return None

    def _memory(self) -> tuple[str, str, str] | None:
        peak = _maxrss_mib()
        if not self._baseline_mib or peak <= self._baseline_mib + GROWTH_MIB:
            return None
        grown, self._baseline_mib = peak - self._baseline_mib, peak  # what comes after is not its fault
        return "memory", "growth", f"{grown} MiB more than sound inputs take, at most {GROWTH_MIB}"

    def _fresh(self) -> None:
        shutil.rmtree(self._case, ignore_errors=True)
        self._case.mkdir()

    def _tree(self) -> dict[str, tuple[int, bytes]]:
        return {
            str(p.relative_to(self.root)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else b"")
            for p in (self._sentinel, *self._sentinel.rglob("*"))
        } | {p.name: (0, b"") for p in self.root.iterdir()}


def _place(error: BaseException) -> str:
    """Type of an exception and the innermost line of the library it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}ikddit{os.sep}" in f.filename]
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{where}"
