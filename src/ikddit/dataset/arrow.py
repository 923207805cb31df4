"""Prepared splits as uncompressed Arrow IPC files: one batch, contiguous columns, read without copies."""

import mmap
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from jaxtyping import Float16, Float32, Int16, Int32, UInt8

from ikddit.dataset.tokenizer import WORDS_PER_LINE
from ikddit.errors import InputError
from ikddit.mpom.schema import ID_FIELDS, MAP_SIZE, PIXELS

PREPARED_VERSION = "2"
SHAPES: dict[str, tuple[int, ...]] = {
    "prev_map": (2, MAP_SIZE, MAP_SIZE),
    "prev_valid": (MAP_SIZE, MAP_SIZE),
    "map": (2, MAP_SIZE, MAP_SIZE),
    "valid": (MAP_SIZE, MAP_SIZE),
}


def prepared_schema(log_names: list[str], max_lines: int, values_per_line: int) -> pa.Schema:
    """Build the schema of `data/prepared/*.arrow`.

    Text columns are as in the record. The rest are fixed-size lists without nulls: `ids` int32[10],
    `log_features` float32[F] (z-scores, 0 where missing), `log_missing` uint8[F], `line_templates` int32[L],
    `line_values` float32[L*V] (raw numbers), `line_words` int16[L*24] (of unknown templates), `prev_map` and
    `map` float16[2*64*64] in nm (0 where invalid), `prev_valid` and `valid` uint8[64*64].

    >>> prepared_schema(["dose"], 32, 6).field("line_values").type.list_size
    192
    """
    channels = len(log_names)
    arrays = {
        "ids": pa.list_(pa.int32(), len(ID_FIELDS)),
        "log_features": pa.list_(pa.float32(), channels),
        "log_missing": pa.list_(pa.uint8(), channels),
        "line_templates": pa.list_(pa.int32(), max_lines),
        "line_values": pa.list_(pa.float32(), max_lines * values_per_line),
        "line_words": pa.list_(pa.int16(), max_lines * WORDS_PER_LINE),
        "prev_map": pa.list_(pa.float16(), 2 * PIXELS),
        "prev_valid": pa.list_(pa.uint8(), PIXELS),
        "map": pa.list_(pa.float16(), 2 * PIXELS),
        "valid": pa.list_(pa.uint8(), PIXELS),
    }
    fields = [
        pa.field("barcode", pa.string(), nullable=False),
        pa.field("lot_id", pa.string()),
        pa.field("slot", pa.int16()),
        pa.field("exposed_at", pa.timestamp("us", tz="UTC")),
        *(pa.field(name, pa.string()) for name in ID_FIELDS),
        pa.field("log_lines", pa.list_(pa.string())),
        *(pa.field(name, kind, nullable=False) for name, kind in arrays.items()),
    ]
    metadata: dict[bytes | str, bytes | str] = {
        "prepared_version": PREPARED_VERSION,
        "units": "nm",
        "log_names": "\n".join(log_names),
        "max_lines": str(max_lines),
        "values_per_line": str(values_per_line),
    }
    return pa.schema(fields, metadata=metadata)


def array_columns(schema: pa.Schema) -> list[str]:
    """Names of the fixed-size columns: those that numpy can view."""
    return [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]


def fixed_list(values: np.ndarray, kind: Any) -> Any:
    """View a C-ordered array of shape (n, ...) as n fixed-size lists, without a copy."""
    flat = np.ascontiguousarray(values).reshape(-1)
    inner = pa.Array.from_buffers(kind.value_type, flat.size, [None, pa.py_buffer(flat.data)])
    return pa.Array.from_buffers(kind, len(values), [None], children=[inner])


@dataclass(frozen=True)
class PreparedSplit:
    """One split: the table and numpy views of its columns, N wafers in order of exposure.

    The views share memory with the table (with the file, if opened): nothing is read before it is used, and
    forked data loaders share the pages. They are read-only.
    """

    table: pa.Table
    ids: Int32[np.ndarray, "N 10"]
    """0 is unknown or missing, else 1 + index in the vocabulary; columns as `ID_FIELDS`."""
    log_features: Float32[np.ndarray, "N F"]
    """z-scores of train, clipped to +-10, 0 where missing."""
    log_missing: UInt8[np.ndarray, "N F"]
    line_templates: Int32[np.ndarray, "N L"]
    """0 pads, 1 is a template unknown to train."""
    line_values: Float32[np.ndarray, "N L V"]
    """Raw numbers of the line in order, padded with 0."""
    line_words: Int16[np.ndarray, "N L W"]
    """Word codes of lines whose template is unknown to train, 0 for all others."""
    prev_map: Float16[np.ndarray, "N 2 64 64"]
    """nm, 0 where invalid."""
    prev_valid: UInt8[np.ndarray, "N 64 64"]
    map: Float16[np.ndarray, "N 2 64 64"]
    """nm, 0 where invalid; all 0 with `valid` 0 for records without a target."""
    valid: UInt8[np.ndarray, "N 64 64"]

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Memory-map a prepared file.

        Raises:
            InputError: not an Arrow file, or not one that `prepare` wrote.
        """
        try:
            with pa.ipc.open_file(pa.memory_map(str(path), "r")) as reader:
                table = reader.read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                str(path), "file", f"not a readable Arrow file: {error}", "run `dvc repro prepare`"
            ) from None
        if (table.schema.metadata or {}).get(b"prepared_version") != PREPARED_VERSION.encode():
            raise InputError(
                str(path), "prepared_version", f"expected {PREPARED_VERSION}", "run `dvc repro prepare`"
            )
        return cls.from_table(table)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """View a table in the prepared schema; copies only if a column comes in several chunks."""
        table = table.combine_chunks() if table.column(0).num_chunks > 1 else table
        n = table.num_rows
        values_per_line = int(table.schema.metadata[b"values_per_line"])
        views: dict[str, Any] = {}
        for name in array_columns(table.schema):
            kind = table.schema.field(name).type
            column: Any = table.column(name)
            if n == 0:
                flat = np.empty(0, kind.value_type.to_pandas_dtype())
            else:
                flat = column.chunk(0).flatten().to_numpy(zero_copy_only=True)
            flat = flat.view()
            flat.flags.writeable = False
            shape = SHAPES.get(name, (kind.list_size,))
            if name == "line_values":
                shape = (kind.list_size // values_per_line, values_per_line)
            elif name == "line_words":
                shape = (kind.list_size // WORDS_PER_LINE, WORDS_PER_LINE)
            views[name] = flat.reshape(n, *shape)
        return cls(table=table, **views)

    def __len__(self) -> int:
        """Count the wafers."""
        return self.table.num_rows

    @property
    def log_names(self) -> list[str]:
        """Names of the log channels."""
        text = self.table.schema.metadata[b"log_names"].decode()
        return text.split("\n") if text else []

    @cached_property
    def barcode(self) -> list[str]:
        """Barcodes, one per wafer."""
        return [str(text) for text in self.table.column("barcode").to_pylist()]

    @cached_property
    def lots(self) -> list[str]:
        """Lot of each wafer; a wafer without one is a lot of its own, named by its barcode."""
        lots = self.table.column("lot_id").to_pylist()
        return [str(lot or barcode) for lot, barcode in zip(lots, self.barcode, strict=True)]


class SplitWriter:
    """Writes a prepared file of known length, rows in any order, without holding its maps.

    A file of zeros with all text columns in place is written first (Arrow does the layout); then each batch
    is written straight to its rows' places in that file. Memory: the text columns, and one batch.

    Args:
        path: file to write; use a scratch path and rename it (`ikddit.atomic`).
        text: the text columns of the prepared schema, rows in their final order.
        schema: the prepared schema.
    """

    def __init__(self, path: Path, text: pa.Table, schema: pa.Schema) -> None:
        """Write the file with zeros for all arrays."""
        n = text.num_rows
        kinds = [schema.field(name).type for name in array_columns(schema)]
        widest = max(kind.list_size * kind.value_type.bit_width // 8 for kind in kinds)
        # Anonymous pages that are only read are all the kernel's one page of zeros: they take no memory.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        zeros = pa.py_buffer(mmap.mmap(-1, max(n * widest, 1), flags=private, prot=mmap.PROT_READ))

        def blank(kind: Any) -> Any:
            inner = pa.Array.from_buffers(kind.value_type, n * kind.list_size, [None, zeros])
            return pa.Array.from_buffers(kind, n, [None], children=[inner])

        arrays = [
            blank(field.type)
            if pa.types.is_fixed_size_list(field.type)
            else _one_chunk(text.column(field.name))
            for field in schema
        ]
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=schema))
        self._offsets = _column_offsets(path) if n else {}
        self._names = array_columns(schema)
        self._handle = os.open(path, os.O_RDWR)

    def write(self, rows: np.ndarray, batch: pa.Table) -> None:
        """Put a batch's fixed-size columns at `rows` (distinct positions in the split)."""
        order = np.argsort(rows)
        runs = np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1)
        for name in self._names:
            column: Any = batch.column(name).combine_chunks()
            values = column.flatten().to_numpy(zero_copy_only=True).reshape(len(rows), -1)
            for run in runs:
                data = np.ascontiguousarray(values[run]).view(np.uint8).reshape(-1)
                _write_at(self._handle, data, self._offsets[name] + int(rows[run[0]]) * values[0].nbytes)

    def close(self) -> None:
        """Flush to disk and close."""
        os.fsync(self._handle)
        os.close(self._handle)


def _one_chunk(column: Any) -> Any:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _column_offsets(path: Path) -> dict[str, int]:
    """Byte position in the file of each fixed-size column's values."""
    with pa.memory_map(str(path), "r") as source:
        start = source.read_buffer().address
        source.seek(0)
        batch: Any = pa.ipc.open_file(source).get_batch(0)
        names = array_columns(batch.schema)
        # An empty list type (no log channels) has no place in the file and nothing to write.
        buffers = {name: batch.column(name).values.buffers()[1] for name in names}
        return {name: buffer.address - start if buffer else 0 for name, buffer in buffers.items()}


def _write_at(handle: int, data: np.ndarray, position: int) -> None:
    view = data.data
    while view:
        written = os.pwrite(handle, view, position)
        view, position = view[written:], position + written
