"""Worker processes: how many there may be, and that they end with whoever started them."""

import os
import threading
from multiprocessing import parent_process


def cores() -> int:
    """Processors this process may run on, which a container or `taskset` may hold to fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def end_with_parent() -> None:
    """Called in a worker: end this process as soon as its parent is gone, however that ended.

    Workers of `ProcessPoolExecutor` hold both ends of the pipe they wait at, so they would not notice a parent that
    was killed: they would wait for ever, or go on writing into its scratch folder.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
