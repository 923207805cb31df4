"""Run-to-run control's forecast: an exponentially weighted mean map per scanner and chuck, causal in time."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int

from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.features import scanner_chuck

_CHUNK = 512

Rows = Int[np.ndarray, " k"]
Forecasts = Float32[np.ndarray, "k 2 64 64"]


def masked_mean(split: PreparedSplit, rows: Rows) -> tuple[Float32[np.ndarray, "2 64 64"], np.ndarray]:
    """Mean measured map of some wafers over their valid marks, nm, and where there is any, (64, 64)."""
    total = np.zeros(split.map.shape[1:], np.float64)
    count = np.zeros(split.valid.shape[1:], np.int64)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        inside = split.valid[part] != 0
        total += np.where(inside[:, None], split.map[part], 0).sum(axis=0, dtype=np.float64)
        count += inside.sum(axis=0)
    return (total / np.maximum(count, 1)).astype(np.float32), count > 0


@dataclass(frozen=True)
class _LotOnChuck:
    """Wafers of one lot on one scanner and chuck."""

    key: tuple[int, int]
    split: PreparedSplit
    rows: np.ndarray
    first: np.datetime64
    last: np.datetime64


def _lots_on_chucks(split: PreparedSplit, rows: Rows | None = None) -> list[_LotOnChuck]:
    """Those with a time: the wafers of a lot that lack one count with the others."""
    rows = np.arange(len(split)) if rows is None else rows
    times = split.table.column("exposed_at").to_numpy().astype("datetime64[us]")
    keys = scanner_chuck(split)
    members: dict[tuple[str, int, int], list[int]] = {}
    for row in rows.tolist():
        members.setdefault((split.lots[row], int(keys[row, 0]), int(keys[row, 1])), []).append(row)
    found = []
    for (_, scanner, chuck), group in members.items():
        known = times[group][~np.isnat(times[group])]
        if len(known):
            found.append(_LotOnChuck((scanner, chuck), split, np.array(group), known.min(), known.max()))
    return found


def ewma_forecasts(
    split: PreparedSplit,
    rows: Rows,
    history: Iterable[PreparedSplit],
    start: Float32[np.ndarray, "2 64 64"],
    weight: float,
    delay_h: float,
) -> Forecasts:
    """Exponentially weighted mean map per scanner and chuck, one update per lot, causal in time.

    state = weight x (mean map of the lot on that chuck) + (1 - weight) x state. A wafer's forecast is the
    state of its scanner and chuck when the first of its lot was exposed; a lot enters `delay_h` hours after
    its last exposure. A pixel without a valid mark in a lot keeps its state. A lot on a chuck without any time of
    exposure has no place in time: it is forecast by `start` and enters nothing.

    Args:
        split: holds the wafers to forecast.
        rows: which ones.
        history: splits whose measured maps may be used.
        start: state before the first lot, nm.
        weight: lambda, of the newest lot.
        delay_h: hours from a lot's last exposure to its measured maps.
    """
    delay = np.timedelta64(round(delay_h * 3.6e9), "us")
    updates = [lot for part in history for lot in _lots_on_chucks(part) if part.valid[lot.rows].any()]
    updates.sort(key=lambda lot: (lot.last, lot.key))
    asked = sorted(_lots_on_chucks(split, rows), key=lambda lot: (lot.first, lot.key))
    place = {row: i for i, row in enumerate(rows.tolist())}
    out = np.tile(start, (len(rows), 1, 1, 1)).astype(np.float32)
    states: dict[tuple[int, int], np.ndarray] = {}
    done = 0
    for lot in asked:
        while done < len(updates) and updates[done].last + delay <= lot.first:
            new = updates[done]
            mean, known = masked_mean(new.split, new.rows)
            state = states.get(new.key, start)
            states[new.key] = np.where(known, weight * mean + (1 - weight) * state, state).astype(np.float32)
            done += 1
        out[[place[row] for row in lot.rows.tolist()]] = states.get(lot.key, start)
    return out
