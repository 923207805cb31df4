"""The unit of ingest's work: a task is planned by the parent, run by any process, and becomes Parquet parts.

What a task makes depends on the task alone, so parts and their bits don't depend on the number of workers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ikddit.atomic import atomic_path
from ikddit.errors import InputError
from ikddit.mpom.archive import Container, Reader
from ikddit.mpom.marks import records_of
from ikddit.mpom.record import Record, records_table
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
    """

    parts: list[Path] = field(default_factory=list)
    barcodes: list[list[str]] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    clipping: Clipping = field(default_factory=Clipping)
    with_target: int = 0


def plan(job: Job, census: Census) -> Iterator[Task]:
    """Yield the tasks in the order of the names of what they read; `census` is filled on the way."""
    root = job.survey.root
    if job.survey.format == "mpom":
        items = walk(root, job.max_bytes, census)
        while batch := list(islice(items, job.settings.wafers_per_part)):
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


def run_task(job: Job, number: int, task: Task) -> Outcome:
    """Read what the task names and write its parts."""
    outcome = Outcome()
    records: list[Record] = []
    for result in _results(job, task, outcome.clipping):
        if isinstance(result, Rejection):
            outcome.rejections.append(result)
            continue
        records.append(result)
        if len(records) == job.settings.wafers_per_part:
            _write(job, number, records, outcome)
            records = []
    if records:
        _write(job, number, records, outcome)
    return outcome


def _write(job: Job, number: int, records: list[Record], outcome: Outcome) -> None:
    path = job.scratch / f"task-{number:07d}-{len(outcome.parts):05d}.parquet"
    write_part(records_table(records, job.schema), path)
    outcome.parts.append(path)
    outcome.barcodes.append([record.barcode for record in records])
    outcome.with_target += sum(bool(record.valid.any()) for record in records)


def write_part(table: pa.Table, path: Path) -> None:
    """Write one Parquet part (zstd), atomically."""
    with atomic_path(path) as scratch:
        pq.write_table(table, scratch, compression="zstd", compression_level=1)


def _results(job: Job, task: Task, clipping: Clipping) -> Iterator[Record | Rejection]:
    reader = Reader(job.survey.root, job.max_bytes)
    for entry in task:
        name = entry if isinstance(entry, str) else entry.name if isinstance(entry, RawItem) else ""
        try:
            yield from _read(entry, reader, job, clipping)
        except InputError as error:
            yield Rejection.of(name, error)
        except Exception as error:  # one bad item never stops the good ones
            remedy = "if the file is sound, report this message and the file"
            unexpected = InputError(name, "reader", f"{type(error).__name__}: {error}", remedy)
            yield Rejection.of(name, unexpected)
    reader.close()


def _read(
    entry: RawItem | str | Rejection, reader: Reader, job: Job, clipping: Clipping
) -> Iterable[Record | Rejection]:
    layout = job.survey.layout
    if isinstance(entry, Rejection):
        return [entry]
    if isinstance(entry, RawItem):
        return [entry.rejection or read_wafer(entry, reader, layout, clipping)]
    folder, _, name = entry.rpartition("/")
    return records_of(Container(folder, is_zip=False), name, reader, job.settings.marks, layout)
