import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pipelines.process import GRACE_S, CommandError, dvc_command, run_command, stop_group


def test_every_line_of_a_command_is_passed_on(tmp_path: Path) -> None:
    said: list[str] = []
    run_command([sys.executable, "-c", "print('one'); print('two')"], tmp_path, said.append)
    assert said == ["one", "two"]


def test_failed_command_names_its_exit_code_and_last_words(tmp_path: Path) -> None:
    code = "import sys; print('disk full', file=sys.stderr); sys.exit(3)"
    with pytest.raises(CommandError, match=r"exit code 3\ndisk full"):
        run_command([sys.executable, "-c", code], tmp_path, lambda line: None)


def test_interruption_stops_the_grandchildren_too(tmp_path: Path) -> None:
    # DVC told to stop leaves its stage running: here the command is a shell and the stage its child.
    grandchild: list[int] = []

    def note_and_interrupt(line: str) -> None:
        grandchild.append(int(line))
        main_thread = threading.main_thread().ident
        threading.Timer(0.2, signal.pthread_kill, [main_thread, signal.SIGINT]).start()

    # A shell starts what it puts into the background with interrupts ignored, these tests included.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_command(["/bin/sh", "-c", "sleep 300 & echo $!; wait"], tmp_path, note_and_interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 10
    while _runs(grandchild[0]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(grandchild[0])


def test_those_who_stop_later_than_their_leader_have_the_same_grace(tmp_path: Path) -> None:
    # what a stage writes last must not be cut because DVC, which started it, has ended before
    child = "trap 'sleep 1; echo whole > last; exit' TERM; echo ready; while :; do sleep 0.1; done"
    command = ["/bin/sh", "-c", f'/bin/sh -c "{child}" & exec sleep 300']
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        start = time.monotonic()
        stop_group(leader)
    assert (tmp_path / "last").read_text() == "whole\n"
    assert time.monotonic() - start < GRACE_S


def _runs(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_dvc_finds_this_python_without_an_activated_environment(tmp_path: Path) -> None:
    command, env = dvc_command("--version")
    assert command[0] == sys.executable
    which = ["/bin/sh", "-c", "command -v python"]
    found = subprocess.run(which, env=os.environ | env, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).parent == Path(sys.executable).parent
