"""A tiny fab as prepared splits, from numpy arrays, with effects that each baseline can or cannot see."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ikddit.dataset.arrow import PreparedSplit, fixed_list, prepared_schema
from ikddit.dataset.tokenizer import WORDS_PER_LINE
from ikddit.mpom.schema import ID_FIELDS
from ikddit.overlay.grid import wafer_grid

GRID = wafer_grid()
LINES = 4
CHANNELS = ["dose", "drift", "idle"]
SHAPES = {
    "ids": (len(ID_FIELDS),),
    "log_features": (len(CHANNELS),),
    "log_missing": (len(CHANNELS),),
    "line_templates": (LINES,),
    "line_values": (LINES, 2),
    "line_words": (LINES, WORDS_PER_LINE),
    "prev_map": (2, 64, 64),
    "prev_valid": (64, 64),
    "map": (2, 64, 64),
    "valid": (64, 64),
}


def make_split(
    count: int,
    hours: Sequence[float] | np.ndarray | None = None,
    lots: Sequence[str | None] | None = None,
    barcodes: Sequence[str] | None = None,
    **arrays: np.ndarray,
) -> PreparedSplit:
    """A split of `count` wafers; arrays not given are zero, masks not given are the usable wafer."""
    schema = prepared_schema(CHANNELS, LINES, 2)
    hours = np.arange(count) if hours is None else np.asarray(hours)
    text: dict[str, pa.Array] = {
        "barcode": pa.array(barcodes if barcodes is not None else [f"W{i:04d}" for i in range(count)]),
        "lot_id": pa.array(lots if lots is not None else [f"L{i // 10:03d}" for i in range(count)]),
        "slot": pa.array([i % 10 for i in range(count)], pa.int16()),
        "exposed_at": pa.array((hours * 3.6e9).astype(np.int64), pa.timestamp("us", tz="UTC")),
        "log_lines": pa.array([["INFO lot started"]] * count),
    }
    columns = []
    for field in schema:
        if field.name in SHAPES:
            blank = np.zeros((count, *SHAPES[field.name]))
            if field.name.endswith("valid"):
                blank[:] = GRID.usable
            kind = field.type.value_type.to_pandas_dtype()
            columns.append(fixed_list(np.asarray(arrays.get(field.name, blank), kind), field.type))
        else:
            columns.append(text.get(field.name, pa.nulls(count, field.type)))
    return PreparedSplit.from_table(pa.table(columns, schema=schema))


def ids(**codes: np.ndarray) -> np.ndarray:
    """Id codes by field, 0 elsewhere."""
    count = len(next(iter(codes.values())))
    out = np.zeros((count, len(ID_FIELDS)), np.int32)
    for name, values in codes.items():
        out[:, ID_FIELDS.index(name)] = values
    return out


def patterns(count: int, seed: int = 1) -> np.ndarray:
    """Smooth patterns with a root mean square of 1 nm over the usable wafer, (count, 2, 64, 64)."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(0, 0.02, (count, 2, 2, 1, 1))
    phase = rng.uniform(0, 6, (count, 2, 1, 1))
    maps = np.sin(waves[:, :, 0] * GRID.x_mm + waves[:, :, 1] * GRID.y_mm + phase)
    return maps / np.sqrt((maps[:, :, GRID.usable] ** 2).mean(axis=(1, 2)))[:, None, None, None]


def small_fab(count: int, seed: int, noise_nm: float = 0.3, first_hour: float = 0.0) -> PreparedSplit:
    """map = scanner x chuck effect + drift log - 0.8 x previous map + chamber x drift + noise.

    Each part moves the map by 1 nm RMS; wafers come in lots of ten, lots 20 h apart, chucks alternate.
    """
    rng = np.random.default_rng(seed)
    base = patterns(12)
    lot = np.arange(count) // 10
    scanner, chuck = rng.integers(1, 4, lot.max() + 1)[lot], np.arange(count) % 2 + 1
    chamber = rng.integers(1, 3, count)
    drift, weight = rng.normal(size=count), rng.normal(size=count)
    maps = base[2 * (scanner - 1) + chuck - 1] + drift[:, None, None, None] * base[6]
    previous = weight[:, None, None, None] * base[7]
    maps = maps - 0.8 * previous + (drift * np.where(chamber == 1, 1, -1))[:, None, None, None] * base[8]
    valid = ((rng.random((count, 64, 64)) < 0.95) & GRID.usable).astype(np.uint8)
    maps = (maps + noise_nm * rng.normal(size=maps.shape)) * valid[:, None]
    features = np.stack([rng.normal(size=count), drift, np.zeros(count)], axis=1)
    return make_split(
        count,
        hours=first_hour + 20.0 * lot + 0.1 * (np.arange(count) % 10),
        lots=[f"S{seed}L{i:03d}" for i in lot],
        ids=ids(scanner_id=scanner, chuck_id=chuck, chamber_id=chamber),
        log_features=features,
        line_templates=np.tile([2, 3, 0, 0], (count, 1)),
        prev_map=previous + 0.1 * rng.normal(size=maps.shape),
        map=maps,
        valid=valid,
    )


def ensemble(
    wafers: int = 8, samples: int = 15, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples, truth and mask, 70 % of the usable pixels.

    Truth and samples are drawn from N(centre, 1) and N(centre, spread^2).
    """
    rng = np.random.default_rng(seed)
    centre = rng.normal(0, 2, (wafers, 2, 64, 64))
    measured = (centre + rng.normal(size=centre.shape)).astype(np.float32)
    drawn = centre[:, None] + spread * rng.normal(size=(wafers, samples, 2, 64, 64))
    valid = ((rng.random((wafers, 64, 64)) < 0.7) & GRID.usable).astype(np.uint8)
    measured[np.broadcast_to(valid[:, None] == 0, measured.shape)] = np.nan
    return drawn.astype(np.float32), measured, valid
