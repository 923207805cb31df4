"""Fab baselines on a fab small enough to know what each can see."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from evaluation_fakes import GRID, ids, make_split, patterns, small_fab

from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.baseline_maps import BaselineMaps
from ikddit.evaluation.baselines import NAMES, Baselines
from ikddit.evaluation.ewma import ewma_forecasts
from ikddit.evaluation.features import IdFeatures, LogFeatures, MapCodes
from ikddit.evaluation.inputs import take
from ikddit.evaluation.scores import evaluation_subset
from ikddit.evaluation.table import baseline_table
from ikddit.overlay import kpi
from ikddit.params import BaselineParams, SimulateParams
from ikddit.simulator.constants import SIMULATOR_VERSION, Fab
from ikddit.simulator.wafers import draw_lots, lot_numbers

SETTINGS = BaselineParams(
    ewma_lambda=0.25, metrology_delay_h=12.0, components=20, ridge_alphas=[1.0, 10.0, 100.0]
)
FEW = SETTINGS.model_copy(update={"components": 3})
"""Where the number of components, each with its trees, changes nothing that is asserted."""
ZERO_MAP = np.zeros((2, 64, 64), np.float32)


@pytest.fixture(scope="module")
def fab() -> dict:
    return {
        "train": small_fab(400, seed=0),
        "val": small_fab(60, seed=1, first_hour=800.0),
        "test": small_fab(120, seed=2, first_hour=1000.0),
    }


@pytest.fixture(scope="module")
def baselines(fab: dict) -> Baselines:
    return Baselines(fab["train"], fab["val"], SETTINGS)


def rmse(baselines: Baselines, name: str, fab: dict) -> float:
    test = fab["test"]
    predicted = baselines.predict(name, test, np.arange(len(test)), history=list(fab.values()))
    assert predicted.shape == test.map.shape
    assert predicted.dtype == np.float32
    return kpi.rmse_nm(predicted, test.map, test.valid)


def test_each_baseline_sees_what_it_is_given(baselines: Baselines, fab: dict) -> None:
    found = {name: rmse(baselines, name, fab) for name in NAMES}
    # Parts of 1 nm RMS each: scanner x chuck, drift log, 0.8 x previous map, chamber x drift; noise 0.3.
    assert found["ridge_ids"] == pytest.approx(found["chuck_mean"], rel=0.03)
    assert found["persistence"] > found["zero"]  # it enters with a minus sign
    assert found["chuck_mean"] < found["zero"]
    assert found["ridge_logs"] < found["zero"]
    assert found["ridge_logs_ids"] < min(found["ridge_logs"], found["ridge_ids"]) - 0.1
    assert found["ridge_all"] < found["ridge_logs_ids"] - 0.1
    assert found["gbm"] < found["ridge_all"] - 0.1  # only trees see chamber x drift
    assert found["gbm"] > 0.3


def test_zero_and_persistence_copy_what_they_say(baselines: Baselines, fab: dict) -> None:
    test, rows = fab["test"], np.array([3, 5])
    assert not baselines.predict("zero", test, rows).any()
    prev = baselines.predict("persistence", test, rows)
    np.testing.assert_array_equal(prev[1], test.prev_map[5] * test.prev_valid[5])


def test_chuck_mean_is_the_masked_mean_of_the_training_maps(baselines: Baselines, fab: dict) -> None:
    train, test = fab["train"], fab["test"]
    own = (train.ids == test.ids[7])[:, [1, 2]].all(axis=1)
    weight = train.valid[own].sum(axis=0)
    expected = train.map[own].astype(np.float64).sum(axis=0)[:, weight > 0] / weight[weight > 0]
    found = baselines.predict("chuck_mean", test, np.array([7]))[0]
    np.testing.assert_allclose(found[:, weight > 0], expected, atol=1e-5)


def test_an_unknown_chuck_gets_the_mean_of_all(baselines: Baselines) -> None:
    stranger = make_split(1, ids=ids(scanner_id=np.array([0]), chuck_id=np.array([0])))
    found = baselines.predict("chuck_mean", stranger, np.array([0]))[0]
    np.testing.assert_array_equal(found, baselines.codes.mean_map)


def test_ridge_in_components_equals_ridge_on_pixels(baselines: Baselines, fab: dict) -> None:
    train, test = fab["train"], fab["test"]
    features = [np.hstack([LogFeatures.of(train)(s), IdFeatures(train)(s)]) for s in (train, test)]
    scale = features[0].std(axis=0)
    x, x_test = ((f - features[0].mean(axis=0))[:, scale > 0] / scale[scale > 0] for f in features)
    target = (train.map - baselines.codes.mean_map) * train.valid[:, None]
    pixels = target.reshape(len(train), -1).astype(np.float64)
    alpha = 10.0
    weights = np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), x.T @ (pixels - pixels.mean(axis=0)))
    direct = (pixels.mean(axis=0) + x_test @ weights).reshape(-1, 2, 64, 64) + baselines.codes.mean_map
    only = Baselines(train, fab["val"], SETTINGS.model_copy(update={"ridge_alphas": [alpha]}))
    found = only.predict("ridge_logs_ids", test, np.arange(len(test)))
    assert only.alpha("ridge_logs_ids") == alpha
    # What separates them is the noise that 20 components leave out of the pixels' forecast.
    direct_rmse = kpi.rmse_nm(direct, test.map, test.valid)
    assert kpi.rmse_nm(found, test.map, test.valid) == pytest.approx(direct_rmse, rel=0.01)
    assert kpi.rmse_nm(found, direct, test.valid) < 0.1 * direct_rmse


def test_alpha_is_the_one_that_val_likes_best(fab: dict) -> None:
    alphas = [1.0, 1e3, 1e6]
    chosen = Baselines(fab["train"], fab["val"], SETTINGS.model_copy(update={"ridge_alphas": alphas}))
    rows = np.arange(len(fab["val"]))
    chosen.predict("ridge_logs_ids", fab["val"], rows)
    errors = []
    for alpha in alphas:
        one = Baselines(fab["train"], fab["val"], SETTINGS.model_copy(update={"ridge_alphas": [alpha]}))
        predicted = one.predict("ridge_logs_ids", fab["val"], rows)
        errors.append(kpi.rmse_nm(predicted, fab["val"].map, fab["val"].valid))
    assert chosen.alpha("ridge_logs_ids") == alphas[int(np.argmin(errors))]


def test_without_val_the_ridge_chooses_by_leave_one_out(fab: dict) -> None:
    empty = small_fab(10, seed=5).table.slice(0, 0)
    val = type(fab["train"]).from_table(empty)
    alone = Baselines(fab["train"], val, SETTINGS)
    assert rmse(alone, "gbm", fab) < rmse(alone, "ridge_logs", fab)
    assert alone.alpha("ridge_all") in SETTINGS.ridge_alphas


def test_same_seed_gives_the_same_forecasts(fab: dict) -> None:
    rows = np.arange(len(fab["test"]))
    first, second = (
        Baselines(fab["train"], fab["val"], FEW, seed=3).predict("gbm", fab["test"], rows) for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


def test_ids_unknown_to_train_are_no_error(baselines: Baselines, fab: dict) -> None:
    stranger = make_split(2, ids=np.zeros((2, 10), np.int32), line_templates=np.full((2, 4), 99))
    predicted = baselines.predict("gbm", stranger, np.arange(2))
    assert np.isfinite(predicted).all()


def test_baselines_that_the_data_cannot_have_are_named_with_the_reason() -> None:
    rng = np.random.default_rng(0)
    bare = make_split(30, map=rng.normal(size=(30, 2, 64, 64)), prev_valid=np.zeros((30, 64, 64)))
    baselines = Baselines(bare, bare, SETTINGS)
    missing = baselines.unavailable()
    assert missing["ewma"] == "the data have no scanner and chuck ids"
    assert missing["persistence"] == "the data have no previous maps"
    assert set(missing) >= {"chuck_mean", "ridge_ids", "ridge_logs_ids", "ridge_all", "gbm"}
    assert "zero" not in missing
    with pytest.raises(ValueError, match="ewma is not possible: the data have no scanner"):
        baselines.predict("ewma", bare, np.arange(3))
    with pytest.raises(ValueError, match="unknown baseline 'kriging'"):
        baselines.predict("kriging", bare, np.arange(3))


# EWMA ----------------------------------------------------------------------------------------------------


def constant_wafers(values: list[float], hours: list[float], chucks: list[int], lots: list[str]) -> object:
    """Wafers whose map is one number everywhere, on scanner 1."""
    maps = np.array(values)[:, None, None, None] * np.ones((1, 2, 64, 64))
    codes = ids(scanner_id=np.ones(len(values), int), chuck_id=np.array(chucks))
    return make_split(len(values), hours=hours, lots=lots, ids=codes, map=maps)


def test_ewma_updates_once_per_lot_with_its_mean_after_the_delay() -> None:
    wafers = constant_wafers(
        values=[4.0, 8.0, 2.0, 5.0, 7.0],
        hours=[0.0, 1.0, 12.0, 14.0, 40.0],
        chucks=[1, 1, 1, 1, 1],
        lots=["A", "A", "B", "C", "D"],
    )
    found = ewma_forecasts(wafers, np.arange(5), [wafers], ZERO_MAP, weight=0.5, delay_h=12.0)
    # Lot A (mean 6) is measured at 13 h: C at 14 h knows it, B at 12 h does not; D knows A, B and C.
    assert found[:, 0, 32, 32].tolist() == [0.0, 0.0, 0.0, 3.0, ((0 + 3) + 2) / 4 + 2.5]


def without_times(split: PreparedSplit, rows: list[int]) -> PreparedSplit:
    times = split.table.column("exposed_at").to_pylist()
    column = pa.array(
        [None if i in rows else time for i, time in enumerate(times)], pa.timestamp("us", tz="UTC")
    )
    table = split.table
    return PreparedSplit.from_table(
        table.set_column(table.schema.get_field_index("exposed_at"), table.schema.field("exposed_at"), column)
    )


def test_ewma_takes_a_lots_known_times_and_leaves_out_lots_without_one() -> None:
    wafers = constant_wafers(
        values=[4.0, 8.0, 2.0, 5.0, 7.0],
        hours=[0.0, 1.0, 12.0, 14.0, 40.0],
        chucks=[1, 1, 1, 1, 1],
        lots=["A", "A", "B", "C", "D"],
    )
    some = without_times(wafers, [0, 2])
    found = ewma_forecasts(some, np.arange(5), [some], ZERO_MAP, weight=0.5, delay_h=12.0)
    # as with all times, but that nobody knows when lot B was exposed: it is no part of the state, nor has it one
    assert found[:, 0, 32, 32].tolist() == [0.0, 0.0, 0.0, 3.0, 3.0 / 2 + 2.5]
    assert "ewma" not in Baselines(some, some, SETTINGS).unavailable()
    none = without_times(wafers, [0, 1, 2, 3, 4])
    assert Baselines(none, none, SETTINGS).unavailable()["ewma"] == "the exposures have no time"


def test_ewma_keeps_chucks_apart() -> None:
    wafers = constant_wafers([4.0, 8.0, 0.0, 0.0], [0.0, 0.1, 30.0, 30.1], [1, 2, 1, 2], ["A", "A", "B", "B"])
    found = ewma_forecasts(wafers, np.array([2, 3]), [wafers], ZERO_MAP, weight=1.0, delay_h=12.0)
    assert found[:, 1, 32, 32].tolist() == [4.0, 8.0]


def test_ewma_never_looks_ahead(fab: dict) -> None:
    test = fab["test"]
    rows = np.arange(60)
    before = ewma_forecasts(test, rows, list(fab.values()), ZERO_MAP, 0.25, 12.0)
    changed = np.array(test.map)
    changed[50:] += 100.0
    table = test.table
    later = make_split(
        len(test),
        hours=np.array([t.timestamp() / 3600 for t in table.column("exposed_at").to_pylist()]),
        lots=table.column("lot_id").to_pylist(),
        ids=test.ids,
        map=changed,
        valid=test.valid,
    )
    after = ewma_forecasts(later, rows, [fab["train"], fab["val"], later], ZERO_MAP, 0.25, 12.0)
    np.testing.assert_array_equal(before, after)
    last = ewma_forecasts(later, np.arange(119, 120), [fab["train"], fab["val"], later], ZERO_MAP, 0.25, 12.0)
    assert last.max() > 20.0  # but lots of the test period itself are used once measured


def test_ewma_keeps_the_state_of_a_pixel_without_a_valid_mark() -> None:
    wafers = constant_wafers([4.0, 8.0, 0.0], [0.0, 20.0, 40.0], [1, 1, 1], ["A", "B", "C"])
    valid = np.array(wafers.valid)
    valid[1, 32, 32] = 0
    masked = make_split(
        3, hours=[0.0, 20.0, 40.0], lots=["A", "B", "C"], ids=wafers.ids, map=wafers.map, valid=valid
    )
    found = ewma_forecasts(masked, np.array([2]), [masked], ZERO_MAP, weight=1.0, delay_h=12.0)
    assert (found[0, 0, 32, 32], found[0, 0, 32, 33]) == (4.0, 8.0)


# Features ------------------------------------------------------------------------------------------------


def test_map_codes_give_back_maps_of_few_patterns() -> None:
    weights = np.random.default_rng(0).normal(size=(50, 3))
    maps = np.einsum("nk,kahw->nahw", weights, patterns(3)).astype(np.float32) * GRID.usable
    valid = np.repeat(GRID.usable[None], 50, axis=0)
    codes = MapCodes(maps, valid, components=5, seed=0)
    rebuilt = codes.decode(codes.encode(maps, valid))
    np.testing.assert_allclose(rebuilt[:, :, GRID.usable], maps[:, :, GRID.usable], atol=1e-4)
    # Orthonormal: a squared error of coefficients is one of pixels.
    moved = codes.encode(maps, valid)
    moved[0, 0] += 2.0
    error = ((codes.decode(moved) - rebuilt)[0] ** 2).sum()
    assert error == pytest.approx(4.0, rel=1e-4)


def test_map_codes_ignore_what_lies_under_the_mask() -> None:
    fab = small_fab(60, seed=0)
    wild = np.where(fab.valid[:, None] != 0, fab.map, 500.0).astype(np.float32)
    clean = MapCodes(fab.map.astype(np.float32), fab.valid, 10, 0)
    dirty = MapCodes(wild, fab.valid, 10, 0)
    np.testing.assert_array_equal(
        clean.encode(fab.map.astype(np.float32), fab.valid), dirty.encode(wild, fab.valid)
    )


def test_log_lines_are_counted_by_template_without_the_padding() -> None:
    counts = LogFeatures(templates=3).counts(np.array([[2, 2, 1, 0], [3, 9, 0, 0]], np.int32))
    # columns: unknown (1), 2, 3; a code beyond train's last counts with the last
    assert counts.tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 2.0]]


# Table ---------------------------------------------------------------------------------------------------


def test_the_table_scores_every_baseline_on_the_same_wafers(fab: dict) -> None:
    splits = {**fab, "test_unseen": small_fab(20, seed=7, first_hour=500.0)}
    mean_map = fab["train"].map.mean(axis=0, dtype=np.float64)
    table = baseline_table(splits, mean_map, {}, FEW, wafers=50, tau_nm=1.5)
    assert table["test"]["n"] == 50
    assert table["test_unseen"]["n"] == 20
    for name in NAMES:
        assert {"rmse_nm", "r2", "m3s_error_nm", "ome_1p5"} <= set(table["test"][name])
        assert all(np.isfinite(value) for value in table["test"][name].values())
    assert table["test"]["ridge_all"]["alpha"] in SETTINGS.ridge_alphas
    assert "oracle" not in table["test"]
    assert "floor_rmse_nm" not in table
    assert "not simulated" in table["not_computed"]["oracle"]


def test_marks_off_the_usable_wafer_do_not_count(fab: dict) -> None:
    test = fab["test"]
    off = np.where(GRID.usable, test.map, 50.0)
    everywhere = make_split(len(test), ids=test.ids, map=off, valid=np.where(GRID.usable, test.valid, 1))
    tables = [
        baseline_table({**fab, "test": s}, ZERO_MAP, {}, FEW, wafers=10, tau_nm=2.0)
        for s in (test, everywhere)
    ]
    assert tables[0]["test"]["zero"] == tables[1]["test"]["zero"]


def test_the_table_does_without_a_split_of_unseen_combinations(fab: dict) -> None:
    table = baseline_table(fab, ZERO_MAP, {}, FEW, wafers=10, tau_nm=2.0)
    assert "test_unseen" not in table
    assert "ome_2" in table["test"]["zero"]


@pytest.mark.parametrize("unflagged", [False, True])
def test_the_oracle_stands_at_the_floor_of_simulated_data(fab: dict, unflagged: bool, tmp_path: Path) -> None:
    params = SimulateParams(lots=6, days=60.0, unflagged_flyers=unflagged)
    drawn = draw_lots(Fab.build(params.fab_seed), params, list(lot_numbers(params)))
    count = len(drawn)
    test = make_split(
        count,
        barcodes=drawn.barcode,
        ids=np.zeros((count, 10)),
        map=drawn.map * drawn.valid[:, None],
        valid=drawn.valid,
    )
    assert not drawn.valid[:, ~GRID.usable].any()  # figures are of the usable wafer: here that is every mark
    dataset = {"seeds": params.model_dump(), "simulator_version": SIMULATOR_VERSION}
    splits = {**fab, "test": test}
    table = baseline_table(splits, ZERO_MAP, dataset, FEW, wafers=40, tau_nm=1.5, maps=tmp_path)
    oracle = table["test"]["oracle"]
    names = [name for name, value in table["test"].items() if isinstance(value, dict)]
    part = take(test, evaluation_subset(test, 40))
    kept = BaselineMaps.open(tmp_path, names, part.barcode)
    for name in names:  # the maps that are kept are those that were scored
        rmse = kpi.rmse_nm(kept.maps[name], part.map, part.valid)
        assert rmse == pytest.approx(table["test"][name]["rmse_nm"], rel=1e-3)
    assert kept.oracle_samples.shape == (40, 8, 2, 64, 64)
    spread = kept.oracle_samples.astype(np.float32).var(1, ddof=1)[:, :, part.valid[0] != 0]
    exact = kept.oracle_sd.astype(np.float32)[:, :, part.valid[0] != 0] ** 2
    assert spread.mean() == pytest.approx(exact.mean(), rel=0.1)
    assert table["test"]["n"] == 40
    assert oracle["rmse_nm"] < table["test"]["zero"]["rmse_nm"]
    if unflagged:  # the simulator's law does not hold for flyers, so no floor is claimed
        assert "floor_rmse_nm" not in table
        assert "unflagged" in table["not_computed"]["floor"]
    else:
        assert oracle["rmse_nm"] == pytest.approx(table["floor_rmse_nm"], rel=0.06)
        assert oracle["ome_1p5"] == pytest.approx(table["floor_ome_1p5"], abs=0.015)
        assert oracle["m3s_error_sampled_nm"] < oracle["m3s_error_nm"]
        # of a normal law with standard deviation s it is s / sqrt(pi)
        assert oracle["crps_nm"] == pytest.approx(table["floor_rmse_nm"] / np.sqrt(np.pi), rel=0.06)
        assert table["floor_rmse_nm"] == table["test"]["floor_rmse_nm"]
