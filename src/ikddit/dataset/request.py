"""What callers send: one wafer a row of a table, or records of another fab, in the model's record schema."""

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ikddit.errors import InputError
from ikddit.mpom.parts import lists_to_numpy
from ikddit.mpom.schema import CHANNELS, ID_FIELDS, PIXELS, Units, log_names_of, record_schema

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("ikddit")


@lru_cache
def warn_once(text: str) -> None:
    """Log a warning the first time only: what is true of a run's records is true of each of its batches."""
    log.warning(text)


def request_table(frame: "pd.DataFrame", log_names: list[str]) -> pa.Table:
    """Rows of a request as a table in the record schema.

    Args:
        frame: column `barcode`, and any other column of the record schema; what is absent counts as missing.
            Read are barcode, `log_features`, `log_lines`, `prev_map`, `prev_valid` and the fields of `ID_FIELDS`;
            others (a target, times, lots) may stand there and count as missing.
        log_names: the model's log channels, in its order.

    Raises:
        InputError: names the column that does not fit.
    """
    schema = record_schema(log_names)
    n = len(frame)
    barcodes = [_text(value) for value in _column(frame, "barcode")]
    if None in barcodes or "barcode" not in frame:
        reason = f"missing in row {barcodes.index(None)}" if "barcode" in frame else "column is missing"
        raise InputError("request", "barcode", reason, "give every wafer a barcode")
    known = set(schema.names)
    if unknown := [str(name) for name in frame.columns if name not in known]:
        raise InputError("request", unknown[0], "unknown column", f"use {sorted(known)}")
    arrays: dict[str, Any] = {
        "barcode": barcodes,
        "source": ["request"] * n,
        "sha256": [""] * n,
    }
    sizes = {
        "log_features": (len(log_names), np.float32, np.nan),
        "prev_map": (CHANNELS["nm"] * PIXELS, np.float32, np.nan),
        "prev_valid": (PIXELS, np.uint8, 1),
    }
    for name, (size, kind, fill) in sizes.items():
        arrays[name] = [_fixed(value, name, size, kind, fill) for value in _column(frame, name)]
    for row, (values, mask) in enumerate(zip(arrays["prev_map"], arrays["prev_valid"], strict=True)):
        finite = np.isfinite(values.reshape(2, PIXELS)).all(0)
        arrays["prev_valid"][row] = (finite & (mask > 0)).astype(np.uint8)
    arrays["log_lines"] = [_lines(value) for value in _column(frame, "log_lines")]
    for name in ID_FIELDS:
        arrays[name] = [_text(value) for value in _column(frame, name)]
    columns = [
        pa.array(arrays[field.name], field.type) if field.name in arrays else _absent(field, n)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def align_log_channels(table: pa.Table, names: list[str]) -> pa.Table:
    """Bring a record table's log channels into the model's order, by name.

    Channels the model does not know are dropped and those absent become NaN (missing); both are logged, once.
    """
    have = log_names_of(table.schema)
    if have == names:
        return table
    place = {name: i for i, name in enumerate(have)}
    shared = [name for name in names if name in place]
    warn_once(
        f"log channels: {len(shared)} of the model's {len(names)} are in the records; "
        f"{len(have) - len(shared)} others are ignored"
    )
    values = np.full((table.num_rows, len(names)), np.nan, np.float32)
    source = lists_to_numpy(table.column("log_features"), np.nan)
    for i, name in enumerate(names):
        if name in place:
            values[:, i] = source[:, place[name]]
    units: Units = "rgb" if (table.schema.metadata or {}).get(b"units") == b"rgb" else "nm"
    schema = record_schema(names, units)
    features = pa.array(list(values), schema.field("log_features").type)
    columns = [features if name == "log_features" else table.column(name) for name in schema.names]
    return pa.table(columns, schema=schema)


def _fixed(value: Any, name: str, size: int, kind: Any, fill: float) -> np.ndarray:
    """One row of a fixed-size column; None or an empty list (JSON tables mix no nulls with lists) is missing."""
    if value is None or np.size(value) == 0:
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


def _text(value: Any) -> str | None:
    """An id as text; pandas turns whole numbers with a gap into floats."""
    if value is None:
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _lines(value: Any) -> list[str]:
    """Log lines of one row."""
    if value is None:
        return []
    if not isinstance(value, list | tuple | np.ndarray):
        raise InputError(
            "request", "log_lines", f"{value!r:.60} is not a list of texts", "send a list of lines"
        )
    return [str(line) for line in value]


def _column(frame: "pd.DataFrame", name: str) -> list[Any]:
    """Values of a column; None where one is missing, or the column is."""
    if name not in frame:
        return [None] * len(frame)
    return [None if gone else value for value, gone in zip(frame[name], frame[name].isna(), strict=True)]


def _absent(field: Any, n: int) -> Any:
    """A column of missing values; fixed-size lists are zeros, so that a mask of them says invalid."""
    if pa.types.is_fixed_size_list(field.type):
        return pa.array([np.zeros(field.type.list_size)] * n, field.type)
    return pa.nulls(n, field.type)
