"""Run one command in its own process group, so that stopping it stops everything it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

GRACE_S = 10.0
"""Time between asking a process group to stop (SIGTERM) and making it (SIGKILL)."""
POLL_S = 0.1

_running: set["subprocess.Popen[str]"] = set()


class CommandError(Exception):
    """A command ended with another exit code than 0; the message holds its last lines."""


def run_command(
    command: Sequence[str],
    cwd: Path,
    say: Callable[[str], object],
    env: Mapping[str, str] | None = None,
    started: Callable[[int], object] | None = None,
) -> None:
    """Run a command to its end and pass on each line it prints.

    DVC leaves its stage running when only DVC is told to stop; so the command gets a session of its own, and
    on any interruption (Ctrl-C, a cancelled flow) the whole group is stopped.

    Args:
        command: program and arguments.
        cwd: working folder.
        say: called with each line, stdout and stderr together.
        env: added to this process's environment.
        started: called with the process id, which is also that of the group.

    Raises:
        CommandError: the command failed.
    """
    last: list[str] = []
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=os.environ | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        _running.add(process)
        try:
            assert process.stdout is not None
            if started is not None:
                started(process.pid)
            for line in process.stdout:
                if line := line.rstrip():
                    say(line)
                    last = [*last[-9:], line]
            process.wait()
        except BaseException:
            stop_group(process)
            raise
        finally:
            _running.discard(process)
    if process.returncode != 0:
        raise CommandError(f"{' '.join(command)}: exit code {process.returncode}\n" + "\n".join(last))


def stop_group(process: "subprocess.Popen[str]") -> None:
    """Ask the process and all its descendants to stop; those that have not after `GRACE_S` are made to."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + GRACE_S
    while _works(process.pid) and time.monotonic() < end:
        time.sleep(POLL_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _works(group: int) -> bool:
    """Whether a process of the group lives; one that nobody has taken leave of yet (a zombie) does not."""
    for process in group_members(group):
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def group_members(group: int) -> list[psutil.Process]:
    """Processes of a process group, zombies among them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                found.append(process)
    return found


def stop_running() -> None:
    """Stop the commands that other threads of this process run; their `run_command` raises CommandError."""
    for process in list(_running):
        stop_group(process)


def unwind_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception: by itself it leaves the commands of `run_command` running."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def dvc_command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """Build a DVC command and its environment: stages say `python`, which must be this interpreter."""
    # Not resolved: the link in .venv/bin is what makes it this environment's Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return [sys.executable, "-m", "dvc", *arguments], {"PATH": path}


def git(root: Path, *arguments: str) -> str:
    """Run git in a checkout and return what it says, without the last line break.

    Raises:
        CommandError: git failed; the message is git's.
    """
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")
