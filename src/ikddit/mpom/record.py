"""A record in memory, and many of them as one Arrow table in the canonical schema."""

from collections.abc import Sequence
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


def _stacked(arrays: Sequence[np.ndarray], kind: pa.DataType) -> "pa.Array[Any]":
    values = np.concatenate(arrays, axis=None)
    if isinstance(kind, pa.FixedSizeListType):
        return pa.FixedSizeListArray.from_arrays(pa.array(values), kind.list_size).cast(kind)
    return pa.array([a.reshape(-1) for a in arrays], kind)


def records_table(records: Sequence[Record], schema: pa.Schema) -> pa.Table:
    """Put records into one table of `schema` (from `record_schema`), in their order."""
    columns: dict[str, Any] = {
        "barcode": [r.barcode for r in records],
        **{
            n: [r.ids.get(n) for r in records]
            for n in ("lot_id", "wafer_id", "slot", *ID_FIELDS, "exposed_at")
        },
        "public_id": [r.public_id for r in records],
        "log_lines": [r.log_lines for r in records],
        "mark_count": [None if r.mark_count is None else r.mark_count.reshape(-1) for r in records],
        "mark_spread_nm": [
            None if r.mark_spread_nm is None else r.mark_spread_nm.reshape(-1) for r in records
        ],
        "source": [r.source for r in records],
        "sha256": [r.sha256 for r in records],
    }
    arrays: list["pa.Array[Any]"] = []
    for field in schema:
        if field.name in columns:
            arrays.append(pa.array(columns[field.name], field.type))
        else:
            arrays.append(_stacked([getattr(r, field.name) for r in records], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)
