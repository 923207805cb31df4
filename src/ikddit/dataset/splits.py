"""Who trains, who tests: whole lots in order of time, and combinations of equipment not seen in train."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from ikddit.console import log
from ikddit.errors import GateError

SPLITS = ("train", "val", "test", "test_unseen")
MAX_UNSEEN_SHARE = 0.1
"""Wafers held out as unseen combinations, at most, as a share of all."""


@dataclass(frozen=True)
class WaferKey:
    """What of a wafer decides its split; anything but the barcode may be unknown in foreign data."""

    barcode: str
    lot_id: str | None
    exposed_at: datetime | None
    scanner_id: str | None = None
    reticle_id: str | None = None


@dataclass
class _Lot:
    name: str
    wafers: int = 0
    start: datetime | None = None
    combinations: set[tuple[str, str]] = field(default_factory=set)


@dataclass(frozen=True)
class Splits:
    """Split of each lot, and how it came about."""

    of_lot: dict[str, str]
    """Lot name (the barcode, for a wafer without lot) -> split."""
    method: str
    """`time`, or `hash` where no record has a time of exposure."""
    unseen: list[dict[str, Any]]
    """Held-out combinations: scanner_id, reticle_id, lots, wafers."""

    def of(self, wafer: WaferKey) -> str:
        """Split of a wafer."""
        return self.of_lot[_lot_name(wafer)]


def split_by_lot(
    wafers: Sequence[WaferKey], val_share: float, test_share: float, unseen_combinations: int, seed: int
) -> Splits:
    """Split whole lots: the last in time are test, those before val, the rest train.

    Shares are of wafers. Before that, `unseen_combinations` scanner x reticle combinations are drawn (seeded)
    and every lot that has one of them, whenever it ran, goes to `test_unseen`. A combination is only drawn
    when its scanner and its reticle remain in train, each with other partners, and when at most 10 % of the
    wafers are held out; fewer are held out where fewer qualify.

    A wafer without lot is a lot of its own. Where no record has `exposed_at`, lots are ordered by a seeded
    hash of their name instead of by time (`method="hash"`).

    Raises:
        GateError: some lots have a time and others have none, or there are too few lots.
    """
    lots, method = _order(_gather(wafers), seed)
    total = sum(lot.wafers for lot in lots)
    need = 3 if val_share > 0 else 2
    if len(lots) < need:
        raise GateError(
            f"prepare: {len(lots)} lots cannot be split into {need} parts by lot; provide more lots, "
            "or set prepare.val_share to 0"
        )
    held: set[str] = set()
    unseen: list[dict[str, Any]] = []
    for combination in _shuffled(lots, seed):
        if len(unseen) == unseen_combinations:
            break
        own = [lot for lot in lots if combination in lot.combinations and lot.name not in held]
        trial = held | {lot.name for lot in own}
        rest = [lot for lot in lots if lot.name not in trial]
        if not own or sum(lot.wafers for lot in lots if lot.name in trial) > MAX_UNSEEN_SHARE * total:
            continue
        if len(rest) < need:
            continue
        assigned = _cut(rest, val_share, test_share)
        train = [pair for lot in rest if assigned[lot.name] == "train" for pair in lot.combinations]
        pairs = [*((u["scanner_id"], u["reticle_id"]) for u in unseen), combination]
        if all(any(s == t for t, _ in train) and any(r == t for _, t in train) for s, r in pairs):
            held = trial
            scanner, reticle = combination
            wafers_held = sum(lot.wafers for lot in own)
            unseen.append(
                {"scanner_id": scanner, "reticle_id": reticle, "lots": len(own), "wafers": wafers_held}
            )
    if len(unseen) < unseen_combinations:
        log.warning(
            "prepare: %d of %d unseen scanner x reticle combinations could be held out (each must leave its "
            "scanner and reticle in train, and 90 %% of the wafers)",
            len(unseen),
            unseen_combinations,
        )
    assigned = _cut([lot for lot in lots if lot.name not in held], val_share, test_share)
    return Splits({**assigned, **dict.fromkeys(sorted(held), "test_unseen")}, method, unseen)


def _lot_name(wafer: WaferKey) -> str:
    return wafer.lot_id if wafer.lot_id else wafer.barcode


def _gather(wafers: Sequence[WaferKey]) -> list[_Lot]:
    lots: dict[str, _Lot] = {}
    for wafer in wafers:
        lot = lots.setdefault(_lot_name(wafer), _Lot(_lot_name(wafer)))
        lot.wafers += 1
        if wafer.exposed_at is not None and (lot.start is None or wafer.exposed_at < lot.start):
            lot.start = wafer.exposed_at
        if wafer.scanner_id and wafer.reticle_id:
            lot.combinations.add((wafer.scanner_id, wafer.reticle_id))
    return list(lots.values())


def _order(lots: list[_Lot], seed: int) -> tuple[list[_Lot], str]:
    timeless = [lot.name for lot in lots if lot.start is None]
    if not timeless:
        return sorted(lots, key=lambda lot: (lot.start, lot.name)), "time"
    if len(timeless) < len(lots):
        raise GateError(
            f"prepare: {len(timeless)} of {len(lots)} lots have no exposed_at, such as "
            f"{', '.join(sorted(timeless)[:5])}; they have no place in time: add ids.exposed_at to "
            "their logs, or leave them out"
        )
    log.warning("prepare: no record has exposed_at: lots are split by a hash of their name, not by time")
    return sorted(lots, key=lambda lot: hashlib.sha256(f"{seed}:{lot.name}".encode()).hexdigest()), "hash"


def _shuffled(lots: list[_Lot], seed: int) -> list[tuple[str, str]]:
    combinations = sorted(set().union(*(lot.combinations for lot in lots)))
    return [combinations[i] for i in np.random.default_rng(seed).permutation(len(combinations))]


def _cut(lots: list[_Lot], val_share: float, test_share: float) -> dict[str, str]:
    """Cut ordered lots into train, val, test where the shares of wafers come closest, none empty."""
    n = len(lots)
    from_end = np.cumsum([lot.wafers for lot in reversed(lots)])

    def lots_nearest(share: float) -> int:
        return int(np.argmin(np.abs(from_end - share * from_end[-1]))) + 1

    test = min(lots_nearest(test_share), n - 2 if val_share > 0 else n - 1)
    val = max(min(lots_nearest(test_share + val_share), n - 1) - test, 1) if val_share > 0 else 0
    names = ["train"] * (n - val - test) + ["val"] * val + ["test"] * test
    return {lot.name: split for lot, split in zip(lots, names, strict=True)}
