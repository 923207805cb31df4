"""Records to model inputs: one function for the prepare stage and for inference."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8

from ikddit.dataset.arrow import fixed_list, prepared_schema
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.request import warn_once
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.errors import InputError
from ikddit.mpom.parts import lists_to_numpy
from ikddit.mpom.schema import ID_FIELDS, MAP_SIZE, PIXELS, log_names_of

TEXT_COLUMNS = ["barcode", "lot_id", "slot", "exposed_at", *ID_FIELDS, "log_lines"]
FLOAT16_MAX = float(np.finfo(np.float16).max)


def masked_maps(
    table: pa.Table, map_name: str, valid_name: str
) -> tuple[Float32[np.ndarray, "n 2 64 64"], UInt8[np.ndarray, "n 64 64"]]:
    """Maps in nm and masks of a record table; a pixel that is not finite is invalid and holds 0.

    Rows without a map, and all rows of RGB records (no known scale), are zero and invalid.
    """
    n = table.num_rows
    if table.schema.metadata[b"units"] != b"nm" or n == 0:
        return np.zeros((n, 2, MAP_SIZE, MAP_SIZE), np.float32), np.zeros((n, MAP_SIZE, MAP_SIZE), np.uint8)
    maps = lists_to_numpy(table.column(map_name), np.nan).reshape(n, 2, PIXELS)
    mask = lists_to_numpy(table.column(valid_name), 0).reshape(n, PIXELS)
    good = (mask != 0) & np.isfinite(maps).all(1)
    out = np.where(good[:, None], maps, np.float32(0))
    shape = (n, MAP_SIZE, MAP_SIZE)
    return out.reshape(n, 2, MAP_SIZE, MAP_SIZE), good.astype(np.uint8).reshape(shape)


def encode_records(
    table: pa.Table, normaliser: Normaliser, vocabularies: Vocabularies, max_lines: int, values_per_line: int
) -> pa.Table:
    """Turn records into model inputs, row by row and in the same order.

    Args:
        table: wafers in `ikddit.mpom.schema.record_schema`; maps in nm. Records with RGB maps can be encoded
            too: their previous map counts as missing, since a colour without a scale is no length.
        normaliser: train statistics; its log channels must be the table's.
        vocabularies: known ids and log templates.
        max_lines: log lines kept per wafer.
        values_per_line: numbers kept per log line.

    Returns:
        A table in `ikddit.dataset.arrow.prepared_schema`; missing maps (also a missing target) are zeros with
        a zero mask.

    Raises:
        InputError: the log channels are not those the normaliser was fitted on.
    """
    names = log_names_of(table.schema)
    if names != normaliser.log_names:
        unknown = [name for name in names if name not in normaliser.log_names]
        absent = [name for name in normaliser.log_names if name not in names]
        raise InputError(
            "records",
            "log_names",
            f"{len(names)} channels, the model knows {len(normaliser.log_names)}; "
            f"unknown: {unknown[:5]}, absent: {absent[:5]}",
            "use the channels of the training data, in their order (absent values may be NaN)",
        )
    if table.schema.metadata[b"units"] != b"nm":
        warn_once("previous maps are RGB without a scale in nm: they are treated as missing")
    schema = prepared_schema(names, max_lines, values_per_line)
    features, missing = normaliser.encode_logs(lists_to_numpy(table.column("log_features"), np.nan))
    templates, values, words = vocabularies.encode_lines(
        table.column("log_lines").to_pylist(), max_lines, values_per_line
    )
    prev_map, prev_valid = masked_maps(table, "prev_map", "prev_valid")
    target, valid = masked_maps(table, "map", "valid")
    arrays: dict[str, np.ndarray] = {
        "ids": vocabularies.encode_ids({name: table.column(name).to_pylist() for name in ID_FIELDS}),
        "log_features": features,
        "log_missing": missing,
        "line_templates": templates,
        "line_values": values,
        "line_words": words,
        "prev_map": np.clip(prev_map, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16),
        "prev_valid": prev_valid,
        "map": np.clip(target, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16),
        "valid": valid,
    }
    columns = [
        fixed_list(arrays[field.name], field.type) if field.name in arrays else table.column(field.name)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
