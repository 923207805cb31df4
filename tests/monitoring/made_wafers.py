"""Prepared splits with just what drift looks at, made from a few numbers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ikddit.dataset.arrow import PreparedSplit, array_columns, fixed_list, prepared_schema
from ikddit.mpom.schema import ID_FIELDS

CHANNELS = ("dose", "heat", "drift")


def made_split(
    scanner: Sequence[str],
    lot: Sequence[str],
    logs: np.ndarray,
    maps: np.ndarray | None = None,
    missing: np.ndarray | None = None,
    unknown_reticle: np.ndarray | None = None,
) -> PreparedSplit:
    """Wafers by scanner, lot, log z-scores (n, 3) and maps in nm; masks are all valid."""
    n = len(lot)
    schema = prepared_schema(list(CHANNELS), 2, 2)
    ids = np.ones((n, len(ID_FIELDS)), np.int32)
    if unknown_reticle is not None:
        ids[unknown_reticle, ID_FIELDS.index("reticle_id")] = 0
    given = {
        "ids": ids,
        "log_features": logs.astype(np.float32),
        "log_missing": np.zeros((n, 3), np.uint8) if missing is None else missing.astype(np.uint8),
        "map": np.zeros((n, 2, 64, 64), np.float16) if maps is None else maps.astype(np.float16),
        "valid": np.ones((n, 64, 64), np.uint8),
    }
    text = {
        "barcode": [f"{name}W{i}" for i, name in enumerate(lot)],
        "lot_id": list(lot),
        "scanner_id": list(scanner),
        "chuck_id": ["CHK1"] * n,
        "reticle_id": ["RTC001"] * n,
    }
    columns = []
    for field in schema:
        if field.name in array_columns(schema):
            blank = np.zeros((n, field.type.list_size), field.type.value_type.to_pandas_dtype())
            columns.append(fixed_list(given.get(field.name, blank), field.type))
        elif field.name in text:
            columns.append(pa.array(text[field.name], field.type))
        else:
            columns.append(pa.nulls(n, field.type))
    return PreparedSplit.from_table(pa.table(columns, schema=schema))
