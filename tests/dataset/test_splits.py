"""Whole lots go to one split; the last lots in time are the test."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from ikddit.dataset.splits import MAX_UNSEEN_SHARE, WaferKey, split_by_lot
from ikddit.errors import GateError

START = datetime(2025, 1, 1, tzinfo=UTC)


def fab(
    lots: int = 100, per_lot: int = 5, scanners: int = 4, reticles: int = 6, seed: int = 0
) -> list[WaferKey]:
    rng = np.random.default_rng(seed)
    wafers = []
    for lot in range(lots):
        scanner, reticle = f"SC{rng.integers(scanners)}", f"R{rng.integers(reticles)}"
        for slot in range(per_lot):
            time = START + timedelta(hours=lot, minutes=slot)
            wafers.append(WaferKey(f"W{lot}.{slot}", f"L{lot:03d}", time, scanner, reticle))
    rng.shuffle(wafers)  # type: ignore[arg-type]
    return wafers


def by_split(wafers: list[WaferKey], **kwargs) -> dict[str, list[WaferKey]]:
    arguments = {"val_share": 0.1, "test_share": 0.2, "unseen_combinations": 2, "seed": 0} | kwargs
    splits = split_by_lot(wafers, **arguments)
    out = defaultdict(list)
    for wafer in wafers:
        out[splits.of(wafer)].append(wafer)
    return out


def test_splits_follow_time() -> None:
    parts = by_split(fab())
    assert max(w.exposed_at for w in parts["train"]) < min(w.exposed_at for w in parts["val"])
    assert max(w.exposed_at for w in parts["val"]) < min(w.exposed_at for w in parts["test"])


def test_no_lot_is_in_two_splits() -> None:
    parts = by_split(fab())
    lots = [{w.lot_id for w in wafers} for wafers in parts.values()]
    assert sum(len(some) for some in lots) == len(set().union(*lots)) == 100


def test_shares_are_of_wafers() -> None:
    wafers = [w for w in fab(lots=60) if w.lot_id > "L030" or not w.barcode.endswith((".3", ".4"))]
    parts = by_split(wafers, unseen_combinations=0)
    assert len(parts["test"]) / len(wafers) == pytest.approx(0.2, abs=0.02)
    assert len(parts["val"]) / len(wafers) == pytest.approx(0.1, abs=0.02)


def test_unseen_combinations_are_in_no_other_split_but_their_parts_are() -> None:
    parts = by_split(fab())
    held = {(w.scanner_id, w.reticle_id) for w in parts["test_unseen"]}
    assert len(held) == 2
    for name in ("train", "val", "test"):
        assert held.isdisjoint((w.scanner_id, w.reticle_id) for w in parts[name])
    assert {s for s, _ in held} <= {w.scanner_id for w in parts["train"]}
    assert {r for _, r in held} <= {w.reticle_id for w in parts["train"]}


def test_unseen_lots_come_from_all_periods() -> None:
    times = [w.exposed_at for w in by_split(fab(lots=400))["test_unseen"]]
    assert min(times) < START + timedelta(hours=100)
    assert max(times) > START + timedelta(hours=300)


def test_unseen_combinations_depend_on_the_seed_alone() -> None:
    wafers = fab()
    drawn = {seed: split_by_lot(wafers, 0.1, 0.2, 2, seed).unseen for seed in range(6)}
    assert len({str(u) for u in drawn.values()}) > 1
    again = split_by_lot(list(reversed(wafers)), 0.1, 0.2, 2, 3)
    assert again.unseen == drawn[3]


def test_a_scanner_with_one_reticle_is_never_held_out() -> None:
    wafers = [WaferKey(f"W{i}", f"L{i:02d}", START + timedelta(hours=i), f"S{i % 3}", "R") for i in range(60)]
    splits = split_by_lot(wafers, 0.1, 0.2, 2, 0)
    assert splits.unseen == []
    assert "test_unseen" not in splits.of_lot.values()


def test_held_out_wafers_are_at_most_a_tenth() -> None:
    wafers = fab(lots=200, scanners=3, reticles=4)
    parts = by_split(wafers, unseen_combinations=12)
    assert 0 < len(parts["test_unseen"]) <= MAX_UNSEEN_SHARE * len(wafers)


def test_without_times_lots_are_split_by_hash_and_it_says_so() -> None:
    wafers = [WaferKey(w.barcode, w.lot_id, None) for w in fab()]
    splits = split_by_lot(wafers, 0.1, 0.2, 0, 0)
    assert splits.method == "hash"
    assert splits == split_by_lot(list(reversed(wafers)), 0.1, 0.2, 0, 0)
    test = [name for name, part in splits.of_lot.items() if part == "test"]
    assert len(test) == 20
    assert test != sorted(splits.of_lot)[-20:]


def test_without_lots_each_wafer_is_its_own_lot() -> None:
    wafers = [WaferKey(f"W{i}", None, START + timedelta(hours=i)) for i in range(20)]
    splits = split_by_lot(wafers, 0.1, 0.2, 0, 0)
    assert [splits.of(w) for w in wafers] == ["train"] * 14 + ["val"] * 2 + ["test"] * 4


def test_some_lots_without_time_are_an_error_that_names_them() -> None:
    wafers = [*fab(lots=10), WaferKey("W", "LX", None)]
    with pytest.raises(GateError, match=r"1 of 11 lots have no exposed_at.*LX"):
        split_by_lot(wafers, 0.1, 0.2, 0, 0)


def test_too_few_lots_are_an_error() -> None:
    with pytest.raises(GateError, match="2 lots cannot be split into 3"):
        split_by_lot(fab(lots=2), 0.1, 0.2, 0, 0)


def test_three_lots_give_one_each() -> None:
    parts = by_split(fab(lots=3), val_share=0.01, test_share=0.01)
    assert [len({w.lot_id for w in parts[n]}) for n in ("train", "val", "test")] == [1, 1, 1]


def test_val_can_be_left_out() -> None:
    parts = by_split(fab(lots=2), val_share=0.0)
    assert set(parts) == {"train", "test"}
