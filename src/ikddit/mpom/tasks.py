"""The unit of ingest's work: a task is planned by the parent, run by any process, and becomes Parquet parts.

What a task makes depends on the task alone, so parts and their bits don't depend on the number of workers.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from ikddit.errors import InputError
from ikddit.mpom.archive import Container, Reader
from ikddit.mpom.parts import ROW_GROUP, part_writer
from ikddit.mpom.record import Record, RecordBuffer
from ikddit.mpom.schema import record_schema
from ikddit.mpom.source import Census, RawItem, Rejection, walk
from ikddit.mpom.survey import Survey
from ikddit.mpom.wafer import Clipping, read_wafer
from ikddit.params import IngestParams

TABLE_TASK_BYTES = 256 << 20
"""Mark tables are put together to tasks of about this size; they are read one after the other."""

Task = list[RawItem | str | Rejection]
"""Items, or names of mark tables relative to the root; what is already rejected goes along in its place."""


@dataclass(frozen=True)
class Job:
    """What every worker knows: the data set, how to read it, where parts go."""

    survey: Survey
    settings: IngestParams
    scratch: Path

    @property
    def max_bytes(self) -> int:
        """Largest decompressed file."""
        return int(self.settings.max_member_mb * 2**20)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the parts."""
        return record_schema(self.survey.layout.log_names, self.survey.layout.units)


@dataclass
class Outcome:
    """What became of one task.

    Args:
        parts: Parquet files in the job's scratch folder.
        barcodes: of the records of each part, in order.
        rejections: items for the quarantine.
        clipping: of the PNGs read.
        with_target: records that have a target map.
        without_logs: barcodes of records that no log value and no log line belong to.
    """

    parts: list[Path] = field(default_factory=list)
    barcodes: list[list[str]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    clipping: Clipping = field(default_factory=Clipping)
    with_target: int = 0
    without_logs: list[str] = field(default_factory=list)


def plan(job: Job, census: Census) -> Iterator[Task]:
    """Yield the tasks in the order of the names of what they read; `census` is filled on the way."""
    root = job.survey.root
    if job.survey.format == "mpom":
        items = walk(root, job.max_bytes, census)
        while batch := list(itertools.islice(items, job.settings.wafers_per_part)):
            yield list(batch)
        return
    if root.is_file():
        yield [root.name]
        return
    task: Task = [item.rejection for item in walk(root, job.max_bytes, census) if item.rejection is not None]
    task.extend(census.refused_tables)
    size = 0
    for table in census.tables:
        task.append(table)
        size += (root / table).stat().st_size
        if size > TABLE_TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


class Worker:
    """Runs tasks one after the other, with what can be kept between them."""

    def __init__(self, job: Job) -> None:
        """Run tasks of `job`."""
        self._job = job
        self._buffer = RecordBuffer(min(ROW_GROUP, job.settings.wafers_per_part), job.schema)

    def run(self, number: int, task: Task) -> Outcome:
        """Read what task number `number` names and write its parts."""
        outcome = Outcome()
        results = _results(self._job, task, outcome)
        records = (result for result in results if isinstance(result, Record))
        for first in records:
            path = self._job.scratch / f"task-{number:07d}-{len(outcome.parts):05d}.parquet"
            rest = itertools.islice(records, self._job.settings.wafers_per_part - 1)
            outcome.parts.append(path)
            outcome.barcodes.append(self._write(itertools.chain([first], rest), path))
        return outcome

    def _write(self, records: Iterator[Record], path: Path) -> list[str]:
        """Write one part; returns its barcodes."""
        barcodes = []
        with part_writer(path, self._job.schema) as writer:
            for record in records:
                barcodes.append(record.barcode)
                self._buffer.add(record)
                if self._buffer.is_full:
                    writer.write_table(self._buffer.take())
            if len(self._buffer):
                writer.write_table(self._buffer.take())
        return barcodes


def _results(job: Job, task: Task, outcome: Outcome) -> Iterator[Record | Rejection]:
    """Read the task's entries; rejections are put into `outcome` too, and targets counted."""
    reader = Reader(job.survey.base, job.max_bytes)
    for entry in task:
        name = entry if isinstance(entry, str) else entry.name if isinstance(entry, RawItem) else ""
        try:
            for result in _read(entry, reader, job, outcome.clipping):
                if isinstance(result, Rejection):
                    outcome.rejections.append(result)
                else:
                    outcome.with_target += bool(result.valid.any())
                    if np.isnan(result.log_features).all() and not result.log_lines:
                        outcome.without_logs.append(result.barcode)
                yield result
        except InputError as error:
            outcome.rejections.append(Rejection.of(name, error))
        except Exception as error:  # one bad item never stops the good ones
            remedy = "if the file is sound, report this message and the file"
            unexpected = InputError(name, "reader", f"{type(error).__name__}: {error}", remedy)
            outcome.rejections.append(Rejection.of(name, unexpected))
    reader.close()


def _read(
    entry: RawItem | str | Rejection, reader: Reader, job: Job, clipping: Clipping
) -> Iterable[Record | Rejection]:
    layout = job.survey.layout
    if isinstance(entry, Rejection):
        return [entry]
    if isinstance(entry, RawItem):
        return [entry.rejection or read_wafer(entry, reader, layout, clipping)]
    from ikddit.mpom.marks import records_of  # with Arrow's compute functions, which items don't need

    folder, _, name = entry.rpartition("/")
    return records_of(Container(folder, is_zip=False), name, reader, job.settings.marks, layout)
