"""Who runs ingest's tasks: this process, a pool of processes, or the workers of a Dask cluster.

All give the same outcomes in the order in which the tasks were planned, with a bounded number of them under way: a
task is only planned when there is room for it.
"""

import gc
import hashlib
import itertools
import logging
import multiprocessing
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ikddit.console import log
from ikddit.errors import IkdditError
from ikddit.mpom.source import Census
from ikddit.mpom.tasks import Job, Outcome, Task, Worker, plan
from ikddit.orphans import cores, end_with_parent

if TYPE_CHECKING:
    from distributed import Client

SCHEDULER_VARIABLE = "IKDDIT_DASK_SCHEDULER"
PACKAGES = ("isal", "numpy", "orjson", "pillow", "pyarrow")
"""What reads raw data and writes parts: another version may give other bytes."""
CONNECT_S = 30.0
"""Patience with a scheduler that does not answer, and with one that has no worker yet."""
LOOK_S = 30.0
"""A result that takes longer makes the parent look whether there are workers at all."""

Numbered = tuple[int, Task]


def outcomes(job: Job, census: Census, env: Mapping[str, str] = os.environ) -> Iterator[Outcome]:
    """Run the tasks of `job` on the engine that its settings name; yields outcomes in the order of the tasks.

    Args:
        job: what is read, how, and where parts go.
        census: is filled with what the walk passed by.
        env: where `IKDDIT_DASK_SCHEDULER` may stand.

    Raises:
        IkdditError: a worker process died; for Dask also: it is not installed, its scheduler cannot be reached or
            has no workers, or a worker does not see the same files or runs other code.
    """
    tasks = enumerate(plan(job, census))
    if job.settings.engine == "dask":
        yield from _on_dask(job, tasks, job.settings.scheduler or env.get(SCHEDULER_VARIABLE))
    else:
        yield from _on_processes(job, tasks)


def _in_order(
    tasks: Iterator[Numbered], submit: Callable[[Numbered], Callable[[], Outcome]], room: Callable[[], int]
) -> Iterator[Outcome]:
    """Keep about `room` tasks under way and yield their outcomes in order; `submit` returns who waits for one."""
    under_way: deque[Callable[[], Outcome]] = deque()
    for numbered in tasks:
        under_way.append(submit(numbered))
        if len(under_way) > room():
            yield under_way.popleft()()
    while under_way:
        yield under_way.popleft()()


# Processes of this machine -------------------------------------------------------------------------------

_worker: Worker | None = None


def _start_worker(job: Job) -> None:
    global _worker
    end_with_parent()
    _worker = Worker(job)
    pa.set_cpu_count(1)
    # What was imported stays: the garbage collector need not look through it again and again.
    gc.freeze()


def _work(numbered: Numbered) -> Outcome:
    assert _worker is not None
    return _worker.run(*numbered)


def _on_processes(job: Job, tasks: Iterator[Numbered]) -> Iterator[Outcome]:
    workers = _processes(job)
    first = list(itertools.islice(tasks, 2))
    tasks = itertools.chain(first, tasks)
    if workers == 1 or len(first) < 2:
        worker = Worker(job)
        for numbered in tasks:
            yield worker.run(*numbered)
        return
    # Started afresh: forking a process that holds Arrow's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,))
    try:
        yield from _in_order(tasks, lambda numbered: pool.submit(_work, numbered).result, lambda: workers + 2)
    except BrokenProcessPool:
        raise _died(job) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _processes(job: Job) -> int:
    return job.settings.workers or cores()


def _died(job: Job) -> IkdditError:
    remedy = "lower ingest.workers or ingest.wafers_per_part if memory ran out"
    return IkdditError(f"{job.survey.root}: a worker process died; {remedy}")


# Workers of a Dask cluster -------------------------------------------------------------------------------


@cache
def software() -> str:
    """Hash of what decides the bytes of a part: the code of this room, and the packages it reads and writes with.

    Kept from the first call on: a worker that has been running since before an update answers for its old code.
    """
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for package in PACKAGES:
        digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def run_apart(job: Job, changed: int | None, code: str, numbered: Numbered) -> Outcome:
    """Run one task in a Dask worker, after making sure that it cannot come out differently here.

    Raises:
        IkdditError: this worker does not see the raw data or the records' folder, or runs other code. (Without this
            look, wafers that it cannot open would go to quarantine as if they were bad.)
    """
    root, here = job.survey.root, f"the Dask worker on {socket.gethostname()} (process {os.getpid()})"
    shared = "ingest on several machines needs a file system that all of them mount at the same path"
    if not job.scratch.is_dir():
        raise IkdditError(f"{job.scratch.parent}: {here} does not see this folder; {shared}")
    if _changed(root) != changed:
        raise IkdditError(f"{root}: {here} sees none or another at this path; {shared}")
    if software() != code:
        packages = ", ".join(PACKAGES)
        raise IkdditError(
            f"{here} runs other code: ikddit or one of {packages} differ; install the same there, restart the worker"
        )
    return Worker(job).run(*numbered)


def _on_dask(job: Job, tasks: Iterator[Numbered], address: str | None) -> Iterator[Outcome]:
    try:
        from distributed import KilledWorker
    except ImportError as error:
        raise IkdditError(
            f"ingest.engine: dask, but Dask is not installed ({error}); pip install -c constraints.txt "
            "-e '.[scale]', or set ingest.engine: processes"
        ) from None
    # Workers elsewhere have another working folder.
    job = replace(
        job, scratch=job.scratch.absolute(), survey=replace(job.survey, root=job.survey.root.absolute())
    )
    changed = _changed(job.survey.root)
    with _connected(address, _processes(job)) as cluster:

        def submit(numbered: Numbered) -> Callable[[], Outcome]:
            return cluster.submit(run_apart, job, changed, software(), numbered)

        try:
            yield from _in_order(tasks, submit, lambda: cluster.threads() + 2)
        except KilledWorker:
            raise cluster.died(job) from None
    # A task that was run twice, since its first worker was thought dead, may have come back after its parts moved.
    for left in job.scratch.glob("task-*.parquet"):
        left.unlink()


class _Cluster:
    """A client of a scheduler, and what is said when nobody is left to work."""

    def __init__(self, client: "Client", address: str | None) -> None:
        self._client, self._address = client, address
        self.name = f"Dask scheduler {address}" if address else "Dask scheduler on this machine"

    def submit(self, function: Callable[..., Outcome], *values: Any) -> Callable[[], Outcome]:
        """Have a function called by a worker; returns who waits for what it gives."""
        # Not pure: Dask would answer a second run with what it remembers of the first.
        return partial(self._wait, self._client.submit(function, *values, pure=False))

    def threads(self) -> int:
        """Tasks that run at a time, as of now: workers come and go."""
        try:
            return sum(self._client.nthreads().values())
        except OSError:
            raise self._lost() from None

    def wait_for_workers(self) -> None:
        """Wait for the first one."""
        try:
            self._client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError:
            raise self._no_workers() from None

    def _wait(self, future: Any) -> Outcome:
        while True:
            try:
                outcome: Outcome = future.result(timeout=LOOK_S)
                return outcome
            # The second is Dask's own slip (distributed.utils.sync), where a result comes as the time runs out.
            except (TimeoutError, UnboundLocalError):
                if future.status == "error":  # it may be the task's own, or have come just now
                    raise future.exception() from None
                if not self.threads():
                    raise self._no_workers() from None
            except CancelledError:
                raise self._lost() from None
            except RuntimeError as error:
                if "deserialization" not in str(error):
                    raise
                raise IkdditError(
                    f"{self.name} cannot read the tasks; install the same ikddit and Dask beside it, and restart it"
                ) from None

    def died(self, job: Job) -> IkdditError:
        """What a worker's death means."""
        if self._address is None:
            return _died(job)
        return IkdditError(
            f"{self.name}: several workers died at the same task; see their logs: lower ingest.wafers_per_part if "
            "memory ran out, and install the same ikddit wherever a worker runs"
        )

    def _lost(self) -> IkdditError:
        return IkdditError(f"{self.name}: the connection was lost; see why it ended, and start ingest again")

    def _no_workers(self) -> IkdditError:
        where = self._address or "ADDRESS"
        return IkdditError(
            f"{self.name} has no workers; start some where the data are mounted (dask worker {where}) and the same "
            "ikddit is installed, or set ingest.engine: processes"
        )


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[_Cluster]:
    """The scheduler at `address`, or a cluster of processes on this machine that ends with the run."""
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if address is None:
            # What dies here dies for want of memory and would again. On other machines Dask may try elsewhere.
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": 0}))
            local = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address="127.0.0.1:0",  # any free port
                silence_logs=logging.ERROR,
                # Whoever reaches a scheduler runs code: here only who has this run's certificate.
                security=True,
            )
            stack.enter_context(local)
            yield _Cluster(stack.enter_context(Client(local)), None)
            return
        try:
            client = stack.enter_context(Client(address, timeout=CONNECT_S))
        except (OSError, ValueError) as error:
            raise IkdditError(
                f"Dask scheduler {address} cannot be reached ({error}); start one (dask scheduler), correct "
                f"ingest.scheduler or {SCHEDULER_VARIABLE}, or leave both out for a cluster on this machine"
            ) from None
        cluster = _Cluster(client, address)
        cluster.wait_for_workers()
        log.info("ingest: %s, %d threads", cluster.name, cluster.threads())
        yield cluster
