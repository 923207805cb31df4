"""Scalars of records, and the rules that judge them."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikddit.mpom.quality import longest_ordered, map_scalars, measure
from ikddit.mpom.rules import Rule, log_rules, record_rules, robust_range
from ikddit.overlay.grid import wafer_grid
from ikddit.params import ValidateParams

USABLE = wafer_grid().usable.reshape(-1)


def one(values: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    return {name: float(v[0]) for name, v in map_scalars(values[None], mask[None].astype(np.uint8)).items()}


def good_map(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(seed).normal(0, 2, (2, 4096)).astype(np.float32)
    return np.where(USABLE, values, np.nan).astype(np.float32), USABLE


def test_statistics_of_a_map_are_those_of_its_valid_values() -> None:
    values, mask = good_map()
    found = one(values, mask)
    valid = values[:, mask].astype(float)
    assert found["valid_px"] == mask.sum()
    assert found["valid_share"] == 1
    assert found["min"] == valid.min()
    assert found["max"] == valid.max()
    assert found["disagree_px"] == found["mask_other_px"] == 0


def test_flyers_behind_the_mask_are_a_disagreement_and_not_in_the_range() -> None:
    values, mask = good_map()
    mask = mask.copy()
    mask[np.flatnonzero(USABLE)[:3]] = False
    values[0, np.flatnonzero(USABLE)[:3]] = 500.0
    found = one(values, mask)
    assert found["disagree_px"] == 3
    assert found["max"] < 20


def test_a_valid_mark_without_value_is_a_disagreement() -> None:
    values, mask = good_map()
    values[1, np.flatnonzero(USABLE)[7]] = np.nan
    values[:, np.flatnonzero(USABLE)[9]] = np.inf
    assert one(values, mask)["disagree_px"] == 2


def test_masks_are_zero_or_one() -> None:
    values, mask = good_map()
    found = map_scalars(values[None], (mask * 255).astype(np.uint8)[None])
    assert found["mask_other_px"].tolist() == [USABLE.sum()]


def test_half_a_wafer_has_half_the_share() -> None:
    values, mask = good_map()
    half = mask & (wafer_grid().x_mm.reshape(-1) > 0)
    found = one(np.where(half, values, np.nan), half)
    assert found["valid_share"] == pytest.approx(0.5)


def test_a_map_that_does_not_exist_is_not_judged() -> None:
    found = one(np.full((2, 4096), np.nan), np.zeros(4096))
    assert all(np.isnan(value) for value in found.values())


def test_a_map_with_an_empty_mask_but_values_is_judged() -> None:
    found = one(good_map()[0], np.zeros(4096))
    assert found["valid_share"] == 0
    assert found["disagree_px"] == USABLE.sum()


@given(st.lists(st.integers(0, 20), max_size=12))
def test_longest_order_is_as_long_as_any_found_by_trying_all(values: list[int]) -> None:
    keep = longest_ordered(values)
    kept = [v for v, k in zip(values, keep, strict=True) if k]
    assert kept == sorted(kept)
    best = [0] * len(values)
    for i, v in enumerate(values):
        best[i] = 1 + max((best[j] for j in range(i) if values[j] <= v), default=0)
    assert len(kept) == max(best, default=0)


def measured(tmp_path, table):
    pq.write_table(table, tmp_path / "part-00000.parquet")
    return measure([tmp_path / "part-00000.parquet"])


def test_frames_have_one_row_per_record_over_all_parts(tmp_path, make_records) -> None:
    table = make_records(700, log_names=["a", "b"])
    pq.write_table(table.slice(0, 300), tmp_path / "part-00000.parquet")
    pq.write_table(table.slice(300), tmp_path / "part-00001.parquet")
    records, logs = measure(sorted(tmp_path.glob("*.parquet")))
    assert records["barcode"].tolist() == logs["record"].tolist() == table["barcode"].to_pylist()
    assert records["record_row"].tolist() == list(range(700))
    np.testing.assert_array_equal(logs[["a", "b"]], table["log_features"].to_pylist())
    assert records["exposed_year"].between(2025, 2026).all()


def times(*minutes: int | None) -> list[datetime | None]:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    return [None if m is None else start + timedelta(minutes=m) for m in minutes]


@pytest.mark.parametrize(
    ("minutes", "fits"),
    [
        ((1, 2, 3, 4, 5), [1, 1, 1, 1, 1]),
        ((1, 1, 1, 1, 1), [1, 1, 1, 1, 1]),
        ((5, 4, 3, 2, 1), [1, 1, 1, 1, 1]),
        ((1, 99, 3, 4, 5), [1, 0, 1, 1, 1]),
        ((5, 4, 0, 2, 1), [1, 1, 0, 1, 1]),
    ],
)
def test_the_wafer_out_of_time_is_found_whichever_way_the_lot_ran(
    tmp_path, make_records, minutes, fits
) -> None:
    records, _ = measured(tmp_path, make_records(5, exposed_at=times(*minutes)))
    assert records["in_time_order"].astype(int).tolist() == fits


def test_a_wafer_without_time_is_not_judged_by_its_order(tmp_path, make_records) -> None:
    records, _ = measured(tmp_path, make_records(5, exposed_at=times(1, None, 3, 2, 5)))
    assert records["in_time_order"][1]
    assert records["in_time_order"].sum() == 4


def test_a_lot_that_did_not_run_by_slot_is_not_judged(tmp_path, make_records) -> None:
    shuffled = np.random.default_rng(0).permutation(25)
    records, _ = measured(
        tmp_path, make_records(25, wafers_per_lot=25, exposed_at=times(*map(int, shuffled)))
    )
    assert records["in_time_order"].all()


def test_robust_range_keeps_every_setting_and_drops_sentinels_and_wrong_units() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(30, 0.5, 500), rng.normal(45, 0.5, 80), [-9999.0, 30_000.0, np.nan]])
    low, high = robust_range(values)
    assert low < 30 - 10 < 45 + 10 < high
    assert low > -9999
    assert high < 30_000


def test_flags_constants_and_short_channels_keep_the_wide_range() -> None:
    for values in (np.repeat([0.0, 1.0], [900, 100]), np.full(500, 5.0), np.arange(50.0), np.full(9, np.nan)):
        assert robust_range(values) == (-1e6, 1e6)


def test_declared_ranges_win(tmp_path, make_records) -> None:
    _, logs = measured(tmp_path, make_records(5, log_names=["a", "b"]))
    rules = {rule.column: (rule.low, rule.high) for rule in log_rules(logs, {"a": (0.0, 2.0)})}
    assert rules == {"a": (0.0, 2.0), "b": (-1e6, 1e6)}


def test_foreign_records_are_not_asked_for_what_none_of_them_has(tmp_path, make_records) -> None:
    foreign = make_records(4, target=False, times=False, lots=False, slot=[None] * 4)
    records, _ = measured(tmp_path, foreign)
    asked = {rule.name for rule in record_rules(records, ValidateParams(), "nm", {}) if rule.present}
    assert asked == {"barcode"}
    columns = {rule.column for rule in record_rules(records, ValidateParams(), "nm", {})}
    assert "prev_map_max" in columns
    assert "map_max" not in columns


def test_rgb_records_are_held_to_colours_not_to_nm(tmp_path, make_records) -> None:
    records, _ = measured(tmp_path, make_records(2, units="rgb"))
    bounds = {r.column: r.bounds for r in record_rules(records, ValidateParams(), "rgb", {})}
    assert bounds["map_max"] == "at most 1"
    assert bounds["map_min"] == "at least 0"


def test_reasons_give_the_value_and_the_bound() -> None:
    assert Rule("x", "", low=-60, high=60, unit=" nm").reason(73.25) == "73.25 nm, allowed -60 nm to 60 nm"
    assert Rule("x", "", high=0, says="{value} pixels").reason(3) == "3 pixels, allowed at most 0"
    assert Rule("x", "", known=("A", "B")).reason("C") == "'C' is not a known id (A, B)"
    assert Rule("x", "", present=True).reason(None) == "missing"
