"""What callers send: one wafer a row of a table, or records of another fab, in the model's record schema."""

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ikddit.errors import InputError
from ikddit.mpom.schema import CHANNELS, ID_FIELDS, PIXELS, Units, log_names_of, record_schema

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ikddit")


def request_table(frame: "pd.DataFrame", log_names: list[str]) -> pa.Table:
    """Rows of a request as a table in the record schema.

    Args:
        frame: column `barcode`, and any other column of the record schema; what is absent counts as missing.
        log_names: the model's log channels, in its order.

    Raises:
        InputError: names the column that does not fit.
    """
    schema = record_schema(log_names)
    n = len(frame)
    if "barcode" not in frame:
        raise InputError("request", "barcode", "column is missing", "give every wafer a barcode")
    known = set(schema.names)
    if unknown := [str(name) for name in frame.columns if name not in known]:
        raise InputError("request", unknown[0], "unknown column", f"use {sorted(known)}")
    arrays: dict[str, Any] = {
        "barcode": [str(value) for value in frame["barcode"]],
        "source": ["request"] * n,
        "sha256": [""] * n,
    }
    sizes = {
        "log_features": (len(log_names), np.float32, np.nan),
        "prev_map": (CHANNELS["nm"] * PIXELS, np.float32, np.nan),
        "prev_valid": (PIXELS, np.uint8, 1),
    }
    for name, (size, kind, fill) in sizes.items():
        column = frame[name] if name in frame else [None] * n
        arrays[name] = [_fixed(value, name, size, kind, fill) for value in column]
    for row, (values, mask) in enumerate(zip(arrays["prev_map"], arrays["prev_valid"], strict=True)):
        finite = np.isfinite(values.reshape(2, PIXELS)).all(0)
        arrays["prev_valid"][row] = (finite & (mask > 0)).astype(np.uint8)
    lines: Any = frame["log_lines"] if "log_lines" in frame else [None] * n
    arrays["log_lines"] = [[] if _missing(value) else [str(line) for line in value] for value in lines]
    for name in ID_FIELDS:
        if name in frame:
            arrays[name] = [None if _missing(value) else str(value) for value in frame[name]]
    columns = [
        pa.array(arrays[field.name], field.type) if field.name in arrays else _absent(field, n)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def align_log_channels(table: pa.Table, names: list[str]) -> pa.Table:
    """Bring a record table's log channels into the model's order, by name.

    Channels the model does not know are dropped and those absent become NaN (missing); both are logged.
    """
    have = log_names_of(table.schema)
    if have == names:
        return table
    place = {name: i for i, name in enumerate(have)}
    shared = [name for name in names if name in place]
    log.warning(
        "log channels: %d of the model's %d are in the records; %d others are ignored",
        len(shared), len(names), len(have) - len(shared),
    )  # fmt: skip
    values = np.full((table.num_rows, len(names)), np.nan, np.float32)
    column: Any = table.column("log_features").combine_chunks()
    source = np.asarray(column.flatten(), dtype=np.float32).reshape(table.num_rows, len(have))
    for i, name in enumerate(names):
        if name in place:
            values[:, i] = source[:, place[name]]
    units: Units = "rgb" if (table.schema.metadata or {}).get(b"units") == b"rgb" else "nm"
    schema = record_schema(names, units)
    features = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), len(names))
    columns = [features if name == "log_features" else table.column(name) for name in schema.names]
    return pa.table(columns, schema=schema)


def _fixed(value: Any, name: str, size: int, kind: Any, fill: float) -> np.ndarray:
    """One row of a fixed-size column; None or an empty list (JSON tables mix no nulls with lists) is missing."""
    if _missing(value) or np.size(value) == 0:
        return np.full(size, fill, kind)
    try:
        array = np.asarray(
            [fill if v is None else v for v in np.asarray(value, dtype=object).ravel()], np.float64
        )
    except (TypeError, ValueError):
        raise InputError("request", name, "not a list of numbers", f"send {size} numbers") from None
    if array.size != size:
        raise InputError("request", name, f"{array.size} values, expected {size}", "send a flat list")
    return array.astype(kind)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _absent(field: Any, n: int) -> Any:
    """A column of missing values; fixed-size lists are zeros, so that a mask of them says invalid."""
    if pa.types.is_fixed_size_list(field.type):
        return pa.array([np.zeros(field.type.list_size)] * n, field.type)
    return pa.nulls(n, field.type)
