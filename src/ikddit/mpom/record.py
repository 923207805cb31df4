"""A record in memory, and many of them as an Arrow table in the canonical schema."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8, UInt16

from ikddit.mpom.logs import Ids
from ikddit.mpom.schema import ID_FIELDS


@dataclass(slots=True)
class Record:
    """One wafer exposure; see `ikddit.mpom.schema.record_schema` for units and conventions.

    Maps are float32 (2, 64, 64) in nm or (3, 64, 64) in [0, 1], NaN where the mask is 0.
    """

    barcode: str
    ids: Ids
    public_id: int | None
    log_lines: list[str] | None
    log_features: Float32[np.ndarray, " channels"]
    prev_map: Float32[np.ndarray, "c 64 64"]
    prev_valid: UInt8[np.ndarray, "64 64"]
    map: Float32[np.ndarray, "c 64 64"]
    valid: UInt8[np.ndarray, "64 64"]
    source: str
    sha256: str
    mark_count: UInt16[np.ndarray, "64 64"] | None = None
    mark_spread_nm: Float32[np.ndarray, "2 64 64"] | None = None


class RecordBuffer:
    """Collects records and gives them as one table; its map buffers are allocated once and used again.

    Fresh buffers of this size come from the system page by page, which costs more than decoding into them.
    """

    def __init__(self, capacity: int, schema: pa.Schema) -> None:
        """Take up to `capacity` records of `schema` (from `record_schema`) at a time."""
        self._capacity, self._schema = capacity, schema
        self._records: list[Record] = []
        self._maps: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Records collected since the last `take`."""
        return len(self._records)

    @property
    def is_full(self) -> bool:
        """Whether `take` must come before the next `add`."""
        return len(self._records) == self._capacity

    def add(self, record: Record) -> None:
        """Copy a record's maps into the buffers."""
        row = len(self._records)
        for name in _MAPS:
            values = getattr(record, name)
            if name not in self._maps:
                self._maps[name] = np.empty((self._capacity, values.size), values.dtype)
            self._maps[name][row] = values.reshape(-1)
            setattr(record, name, None)
        self._records.append(record)

    def take(self) -> pa.Table:
        """All records since the last `take`; the table is valid until the next `add`."""
        records, self._records = self._records, []
        count = len(records)
        columns: dict[str, Any] = {
            "barcode": [r.barcode for r in records],
            **{name: [r.ids.get(name) for r in records] for name in _IDS},
            "public_id": [r.public_id for r in records],
            "log_lines": [r.log_lines for r in records],
            "log_features": [r.log_features for r in records],
            "mark_count": [None if r.mark_count is None else r.mark_count.reshape(-1) for r in records],
            "mark_spread_nm": [
                None if r.mark_spread_nm is None else r.mark_spread_nm.reshape(-1) for r in records
            ],
            "source": [r.source for r in records],
            "sha256": [r.sha256 for r in records],
        }
        arrays: list["pa.Array[Any] | pa.ChunkedArray[Any]"] = []
        for field in self._schema:
            if field.name in self._maps:
                buffer = self._maps[field.name][:count]
                flat = pa.array(buffer.reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
                chunks = [column[i : i + _CHUNK] for i in range(0, count, _CHUNK)]
                arrays.append(pa.chunked_array(chunks, field.type))
            else:
                arrays.append(pa.array(columns[field.name], field.type))
        return pa.Table.from_arrays(arrays, schema=self._schema)


_CHUNK = 10
"""Maps of one chunk: Parquet's writer goes from chunk to chunk, and so few stay in the processor's cache."""
_MAPS = ("prev_map", "prev_valid", "map", "valid")
_IDS = ("lot_id", "wafer_id", "slot", *ID_FIELDS, "exposed_at")
