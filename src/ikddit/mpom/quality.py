"""What can be measured about a record: a frame of scalars, one row per record, derived part by part.

Checks run on these scalars, never on the maps themselves: memory is about 1.5 kB per record, and Great
Expectations has no reliable checks for list columns.
"""

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, UInt8

from ikddit.mpom.parts import lists_to_numpy, read_batches
from ikddit.mpom.schema import CHANNELS, ID_FIELDS, PIXELS, log_names_of
from ikddit.overlay.grid import wafer_grid

if TYPE_CHECKING:
    import pandas as pd

MAPS = {"map": "valid", "prev_map": "prev_valid"}
"""Map columns and the columns of their masks."""
COLUMNS = ["barcode", "source", "lot_id", "slot", "exposed_at", *ID_FIELDS]
"""Taken over as they are."""
ROW, RECORD = "record_row", "record"
"""Keys of both frames: position of the record over all parts, which is unique, and its barcode."""


def measure(parts: list[Path]) -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Derive the scalars of all records.

    Args:
        parts: Parquet files in the record schema, all with the same log channels and units.

    Returns:
        Two frames with one row per record and the keys `record_row` and `record`. Records: `barcode`,
        `source`, `lot_id`, `slot`, the id fields, `exposed_year` (UTC, with its fraction), `in_time_order`,
        and per map (`map`, `prev_map`) what `map_scalars` says. Logs: one column per channel, NaN where not
        received.
    """
    import pandas as pd

    records: list[pd.DataFrame] = []
    names: list[str] = []
    # Filled batch by batch: joining the batches afterwards would hold the widest part of the frames twice.
    logs = np.zeros((0, 0), np.float32)
    done = 0
    for table in read_batches(parts, "validate: measure", [*COLUMNS, "log_features", *MAPS, *MAPS.values()]):
        if not records:
            names = log_names_of(table.schema)
            logs = np.empty((sum(pq.read_metadata(part).num_rows for part in parts), len(names)), np.float32)
        frame = table.select(COLUMNS).to_pandas()
        channels = CHANNELS["rgb" if table.schema.metadata[b"units"] == b"rgb" else "nm"]
        for name, mask in MAPS.items():
            values = lists_to_numpy(table.column(name), np.nan).reshape(-1, channels, PIXELS)
            for key, column in map_scalars(values, lists_to_numpy(table.column(mask), 0)).items():
                frame[f"{name}_{key}"] = column
        records.append(frame)
        logs[done : done + len(frame)] = lists_to_numpy(table.column("log_features"), np.nan)
        done += len(frame)
    if not records:
        return pd.DataFrame(), pd.DataFrame()
    frame = pd.concat(records, ignore_index=True)
    channels_frame = pd.DataFrame(logs, columns=names, copy=False)
    frame[ROW] = channels_frame[ROW] = np.arange(len(frame))
    frame[RECORD] = channels_frame[RECORD] = frame["barcode"]
    times = frame.pop("exposed_at")
    frame["exposed_year"] = times.dt.year + (times.dt.day_of_year - 1) / 366
    frame["in_time_order"] = _in_time_order(frame, times)
    return frame, channels_frame


def map_scalars(
    values: Float[np.ndarray, "n C 4096"], mask: UInt8[np.ndarray, "n 4096"]
) -> dict[str, np.ndarray]:
    """Scalars of n maps; NaN for a map that does not exist (no finite pixel, and a mask of zeros).

    Returns:
        `valid_px`; `valid_share` of the usable pixels (within 147 mm); `min`, `max` of the valid values, in
        the maps' unit; `disagree_px`, pixels where mask and values do not agree (valid but not finite, or a
        value where the mask is 0); `mask_other_px`, mask values beside 0 and 1.

    >>> values, mask = np.full((1, 2, 4096), 3.0), np.ones((1, 4096), np.uint8)
    >>> values[0, 0, 7] = np.nan
    >>> found = map_scalars(values, mask)
    >>> found["max"].tolist(), found["disagree_px"].tolist()
    ([3.0], [1.0])
    """
    usable = wafer_grid().usable.reshape(-1)
    finite = np.isfinite(values)
    good = finite.all(1) & (mask != 0)
    exists = finite.any((1, 2)) | (mask != 0).any(1)
    inside, some = good[:, None], good.any(1)
    lowest = np.where(inside, values, np.inf).min((1, 2)).astype(np.float64)
    highest = np.where(inside, values, -np.inf).max((1, 2)).astype(np.float64)
    out: dict[str, np.ndarray] = {
        "valid_px": good.sum(1).astype(np.float64),
        "valid_share": good[:, usable].mean(1),
        # A mark with one axis only, and a value behind the mask's back, are both contradictions.
        "disagree_px": np.where(mask != 0, ~finite.all(1), finite.any(1)).sum(1).astype(np.float64),
        "mask_other_px": (mask > 1).sum(1).astype(np.float64),
        "min": np.where(some, lowest, np.nan),
        "max": np.where(some, highest, np.nan),
    }
    return {name: np.where(exists, column, np.nan) for name, column in out.items()}


def longest_ordered(values: list[Any]) -> Bool[np.ndarray, "n"]:
    """Mark a longest non-decreasing subsequence: the rest is the fewest items that break the order.

    >>> longest_ordered([1, 2, 9, 3, 4]).tolist()
    [True, True, False, True, True]
    """
    tails: list[Any] = []
    tail_at: list[int] = []
    before: list[int] = []
    for i, value in enumerate(values):
        place = bisect_right(tails, value)
        before.append(tail_at[place - 1] if place else -1)
        if place == len(tails):
            tails.append(value)
            tail_at.append(i)
        else:
            tails[place], tail_at[place] = value, i
    keep = np.zeros(len(values), bool)
    at = tail_at[-1] if tail_at else -1
    while at >= 0:
        keep[at] = True
        at = before[at]
    return keep


def _in_time_order(frame: "pd.DataFrame", times: "pd.Series[Any]") -> Bool[np.ndarray, "n"]:
    """False for wafers whose time does not fit the slots of their lot and layer.

    A lot may run from its first slot or from its last; one in which less than half of the wafers fit either
    order was not run by slot, and is not judged, nor are wafers without lot, slot or time.
    """
    keep = np.ones(len(frame), bool)
    asked = frame[["lot_id", "layer", "slot"]].assign(time=times)
    judged = asked[asked["slot"].notna() & times.notna() & asked["lot_id"].notna()]
    for _, lot in judged.sort_values(["slot", "time"]).groupby(["lot_id", "layer"], dropna=False):
        time = lot["time"].tolist()
        up, down = longest_ordered(time), longest_ordered(time[::-1])[::-1]
        fits = down if down.sum() > up.sum() else up
        if 2 * fits.sum() >= len(fits):
            keep[lot.index] = fits
    return keep
