"""Workers of a pool end when whoever started them is killed."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

PARENT = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from ikddit.orphans import end_with_parent

if __name__ == "__main__":
    started = end_with_parent if sys.argv[1] == "guarded" else None
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=started) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(8)}
        print(*pids, flush=True)
        time.sleep(60)
"""


def left_after_kill(tmp_path: Path, kind: str, seconds: float) -> list[psutil.Process]:
    """Kill -9 a process with a pool; its workers that are still there that much later, or as soon as none is."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(script), kind], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert workers
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(w.is_running() for w in workers):
        time.sleep(0.05)
    return [worker for worker in workers if worker.is_running()]


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    assert left_after_kill(tmp_path, "guarded", 10) == []


def test_without_it_they_would_wait_for_ever(tmp_path: Path) -> None:
    left = left_after_kill(tmp_path, "bare", 2)
    for worker in left:
        worker.kill()
    assert left
