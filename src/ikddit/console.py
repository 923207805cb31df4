"""What a person sees while a stage or command runs: log lines, progress with rate and ETA, plain errors."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from ikddit.errors import IkdditError, without_passwords
from ikddit.storage import storage_message

T = TypeVar("T")
log = logging.getLogger("ikddit")


class _Discreet(logging.Formatter):
    """Strikes logins in URLs out of the whole line, a stack trace included."""

    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))


def configure_logging(level: int = logging.INFO) -> None:
    """Send `ikddit` log lines to stderr once, with the time of day and without passwords."""
    if log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Discreet("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    log.setLevel(level)
    log.propagate = False


def progress(
    items: Iterable[T], label: str, total: int | None = None, unit: str = "it", every_s: float = 15.0
) -> Iterator[T]:
    """Iterate with a live bar on a terminal, else with a log line (count, rate, ETA) every `every_s` s."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class _Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:,.1f} {unit}/s" if task.speed else f"- {unit}/s")

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            yield from bar.track(items, total=total, description=label)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every_s:
            last = now
            rate = done / (now - start)
            eta = f", ETA {(total - done) / rate:.0f} s" if total else ""
            log.info(
                "%s: %d%s %s, %.1f %s/s%s", label, done, f"/{total}" if total else "", unit, rate, unit, eta
            )


def run_plainly(main: Callable[[], None]) -> None:
    """Run a stage's `main` with log lines on; an `IkdditError` ends as one message and exit code 1.

    So does what the machine refuses to write (disk full, read-only, no permission).
    """
    configure_logging()
    start = time.monotonic()
    try:
        main()
    except IkdditError as error:
        log.error("%s: %s", type(error).__name__, error)
        raise SystemExit(1) from None
    except OSError as error:  # a write that did not go through `ikddit.atomic`
        said = storage_message(error.filename or Path.cwd(), error.errno)
        if said is None:
            raise
        log.error("StorageError: %s", said)
        raise SystemExit(1) from None
    log.info("done in %.1f s", time.monotonic() - start)
