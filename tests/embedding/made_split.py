"""A few lots of the simulated fab as a prepared split, without files in between."""

from functools import cache

import numpy as np
import pyarrow as pa

from ikddit.dataset.arrow import PreparedSplit, array_columns, fixed_list, prepared_schema
from ikddit.dataset.vocabulary import Vocabularies, VocabularyCounter
from ikddit.mpom.schema import ID_FIELDS
from ikddit.params import SimulateParams
from ikddit.simulator.constants import Fab
from ikddit.simulator.logs import FEATURE_NAMES, features, log_lines
from ikddit.simulator.wafers import draw_lots, line_stream, lot_numbers
from ikddit.simulator.writer import ids_of

MAX_LINES, VALUES = 32, 6


@cache
def simulated(lots: int) -> tuple[PreparedSplit, Vocabularies, list[list[str]]]:
    """All wafers of `lots` lots, the vocabularies learnt from them, and their log lines."""
    params = SimulateParams(lots=lots)
    fab = Fab.build(params.fab_seed)
    parts = [draw_lots(fab, params, [int(lot)]) for lot in lot_numbers(params)]
    wafers = type(parts[0]).join(parts)
    lines = [
        log_lines(part, i, rng)
        for part in parts
        for rng in [line_stream(params, int(part.lot[0]))]
        for i in range(len(part))
    ]
    rows = [ids_of(wafers, i) for i in range(len(wafers))]
    ids = {name: [str(row[name]) for row in rows] for name in ID_FIELDS}
    counter = VocabularyCounter()
    counter.update(ids, lines)
    known = counter.finish()
    codes, values, words = known.encode_lines(lines, MAX_LINES, VALUES)
    raw, missing = features(wafers)
    raw = np.where(missing, np.nan, raw)
    z = np.nan_to_num((raw - np.nanmean(raw, 0)) / np.maximum(np.nanstd(raw, 0), 1e-6))
    arrays = {
        "ids": known.encode_ids(ids),
        "log_features": z.astype(np.float32),
        "log_missing": missing.astype(np.uint8),
        "line_templates": codes,
        "line_values": values,
        "line_words": words,
        "prev_map": (wafers.prev_map * wafers.prev_valid[:, None]).astype(np.float16),
        "prev_valid": wafers.prev_valid,
        "map": (wafers.map * wafers.valid[:, None]).astype(np.float16),
        "valid": wafers.valid,
    }
    schema = prepared_schema(list(FEATURE_NAMES), MAX_LINES, VALUES)
    assert set(arrays) == set(array_columns(schema))
    text = {
        "barcode": [row["barcode"] for row in rows],
        "lot_id": [row["lot_id"] for row in rows],
        "slot": [row["slot"] for row in rows],
        "log_lines": lines,
        **ids,
    }
    columns = [
        fixed_list(arrays[field.name], field.type)
        if field.name in arrays
        else pa.array(text[field.name], field.type)
        if field.name in text
        else pa.nulls(len(wafers), field.type)
        for field in schema
    ]
    return PreparedSplit.from_table(pa.table(columns, schema=schema)), known, lines
