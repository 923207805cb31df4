"""Lots spread over processes: each makes the fab once and keeps it."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ikddit.errors import IkdditError
from ikddit.orphans import cores, end_with_parent
from ikddit.params import SimulateParams
from ikddit.simulator.constants import Fab

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Worker:
    params: SimulateParams
    fab: Fab


_worker: _Worker | None = None


def _start(params: SimulateParams) -> None:
    global _worker
    end_with_parent()
    threadpool_limits(1)
    _worker = _Worker(params, Fab.build(params.fab_seed))


def _run(task: Callable[[Fab, SimulateParams, Item], Result], item: Item) -> Result:
    assert _worker is not None
    return task(_worker.fab, _worker.params, item)


def map_lots(
    task: Callable[[Fab, SimulateParams, Item], Result],
    params: SimulateParams,
    items: Sequence[Item],
    workers: int = 0,
) -> Iterator[Result]:
    """Yield `task(fab, params, item)` for each item, in order.

    Linear algebra keeps to one thread in every process: that is faster with a process per core, and no
    result then depends on the number of threads or of workers.

    Args:
        task: a module-level function, since workers import it anew.
        params: what is simulated.
        items: what to run over.
        workers: processes; 0 takes all cores, 1 stays in this process.

    Raises:
        IkdditError: a worker process died.
    """
    workers = min(workers or cores(), len(items))
    if workers <= 1:
        fab = Fab.build(params.fab_seed)
        with threadpool_limits(1):
            for item in items:
                yield task(fab, params, item)
        return
    # Spawned, not forked: safe beside threads, and the same on every platform.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(params,)
    ) as pool:
        chunk = max(1, min(4, len(items) // (4 * workers)))
        try:
            yield from pool.map(partial(_run, task), items, chunksize=chunk)
        except BrokenProcessPool:
            raise IkdditError(
                f"simulate: one of {workers} worker processes died; if memory ran out, run it on fewer cores "
                "(taskset -c 0)"
            ) from None
