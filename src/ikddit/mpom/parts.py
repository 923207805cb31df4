"""Record parts (`part-*.parquet`): how they are written; batches in order, and list columns as arrays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikddit import atomic
from ikddit.console import progress
from ikddit.errors import InputError

BATCH = 250
"""Records held at a time, about 20 MB of maps."""
ROW_GROUP = 250
"""Wafers of one row group: fewer cost time for each of the columns, more cost memory."""
PAGE_BYTES = 128 << 10
"""What Parquet compresses at a time; of its default, 1 MiB, little stays in the processor's cache."""


def part_files(folder: Path | str) -> list[Path]:
    """The parts of a folder, in order."""
    return sorted(Path(folder).glob("part-*.parquet"))


def read_facts(folder: Path | str) -> dict[str, Any]:
    """Content of the dataset.json beside the parts: {} if there is none.

    Raises:
        InputError: it cannot be read, or is not a JSON object.
    """
    path = Path(folder) / "dataset.json"
    try:
        facts = atomic.read_json(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(
            str(path), "json", str(error), "write the records again (`dvc repro ingest`)"
        ) from None
    if not isinstance(facts, dict):
        raise InputError(str(path), "json", "not an object", "write the records again (`dvc repro ingest`)")
    return facts


def read_batches(parts: list[Path], label: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield tables of up to 250 records over all parts, in order, with the schema's metadata."""
    for part in progress(parts, label, unit="parts"):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                yield pa.Table.from_batches([batch]).replace_schema_metadata(file.schema_arrow.metadata)


def lists_to_numpy(column: Any, fill: float) -> np.ndarray:
    """Rows of a fixed-size-list column as an array (n, size); null rows hold `fill`.

    A record schema without log channels has lists of variable size there, all empty: (n, 0).
    """
    array = column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return np.zeros((len(array), 0), array.type.value_type.to_pandas_dtype())
    size = array.type.list_size
    values = array.values.to_numpy(zero_copy_only=False)[
        array.offset * size : (array.offset + len(array)) * size
    ]
    values = values.reshape(len(array), size)
    if array.null_count:
        values = values.copy()
        values[array.is_null().to_numpy(zero_copy_only=False)] = fill
    return np.asarray(values)


@contextmanager
def part_writer(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write one Parquet part into the scratch folder.

    Neither written beside nor flushed: the folder is, as a whole, when the run is complete.
    """
    heavy = {"prev_map", "prev_valid", "map", "valid"}
    # Maps: a fast codec and no dictionary; zstd with one halves the size at three times the cost.
    codecs: Any = {_leaf(column): "snappy" if column.name in heavy else "zstd" for column in schema}
    light: Any = [_leaf(column) for column in schema if column.name not in heavy]
    with pq.ParquetWriter(
        path,
        schema,
        compression=codecs,
        use_dictionary=light,
        write_statistics=light,
        data_page_size=PAGE_BYTES,
    ) as writer:
        yield writer


def _leaf(column: "pa.Field[Any]") -> str:
    return f"{column.name}.list.element" if pa.types.is_nested(column.type) else column.name
