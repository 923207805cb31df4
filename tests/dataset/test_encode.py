"""Records become model inputs the same way in the prepare stage and at inference."""

import logging

import numpy as np
import pyarrow as pa
import pytest

from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.encode import encode_records
from ikddit.dataset.normaliser import Normaliser, NormaliserFit
from ikddit.dataset.request import warn_once
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.errors import InputError
from ikddit.mpom.parts import lists_to_numpy
from ikddit.mpom.schema import ID_FIELDS, log_names_of, record_schema

KNOWN = Vocabularies({name: ["A1", "SC1"] for name in ID_FIELDS}, ["dose <num> mJ/cm2"])


def normaliser(names: list[str]) -> Normaliser:
    n = len(names)
    return Normaliser(
        names, np.full(n, 2, np.float32), np.full(n, 4, np.float32), 1.0, np.zeros((2, 64, 64), np.float32)
    )


def encode(table: pa.Table) -> PreparedSplit:
    names = log_names_of(table.schema)
    return PreparedSplit.from_table(encode_records(table, normaliser(names), KNOWN, 4, 2))


def test_log_values_are_z_scores_and_missing_ones_zero(make_records) -> None:
    table = make_records(3, log_features=[[6, np.nan, 1e9, -1e9]] * 3)
    split = encode(table)
    assert split.log_features.tolist() == [[1, 0, 10, -10]] * 3
    assert split.log_missing.tolist() == [[0, 1, 0, 0]] * 3


def test_maps_keep_nm_and_hold_zero_where_invalid(make_records) -> None:
    table = make_records(4)
    split = encode(table)
    raw = lists_to_numpy(table.column("map"), np.nan).reshape(4, 2, 64, 64)
    assert np.isnan(raw).any()
    assert np.array_equal(split.map, np.nan_to_num(raw).astype(np.float16))
    assert np.array_equal(split.valid, np.isfinite(raw[:, 0]))
    assert np.abs(split.map - np.nan_to_num(raw)).max() < 0.004


def test_a_pixel_with_half_a_vector_is_invalid(make_records) -> None:
    maps = np.ones((1, 2, 64, 64), np.float32)
    maps[0, 1, 5, 6] = np.nan
    table = make_records(1, map=list(maps.reshape(1, -1)), valid=[np.ones(4096, np.uint8)])
    split = encode(table)
    assert split.valid[0].sum() == 4095
    assert split.map[0, :, 5, 6].tolist() == [0, 0]


@pytest.mark.parametrize("how", ["null", "nan"])
def test_missing_maps_become_zeros_with_an_empty_mask(make_records, how: str) -> None:
    if how == "nan":
        table = make_records(3, target=False)
    else:
        table = make_records(3, map=[None] * 3, valid=[None] * 3)
    split = encode(table)
    assert not split.map.any()
    assert not split.valid.any()
    assert split.prev_valid.any()


def test_one_null_map_among_others_is_the_only_one_emptied(make_records) -> None:
    full = make_records(3)
    maps = full.column("map").to_pylist()
    split = encode(make_records(3, map=[maps[0], None, maps[2]]))
    assert [bool(v.any()) for v in split.valid] == [True, False, True]
    assert np.array_equal(split.map[2], encode(full).map[2])


def test_rgb_records_are_encoded_without_their_maps_and_it_is_logged(make_records, caplog) -> None:
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="ikddit"):
        split = encode(make_records(2, units="rgb", target=False))
    assert "RGB" in caplog.text
    assert not split.prev_valid.any()
    assert not split.prev_map.any()
    assert split.log_features.any()


def test_records_with_nothing_but_a_map_are_encoded(make_records) -> None:
    nulls = {name: [None] * 2 for name in ("lot_id", "slot", "exposed_at", "log_lines", *ID_FIELDS)}
    split = encode(make_records(2, log_names=[], **nulls))
    assert not split.ids.any()
    assert not split.line_templates.any()
    assert split.log_features.shape == (2, 0)


def test_a_slice_of_a_table_and_chunks_encode_as_the_whole(make_records) -> None:
    table = make_records(6)
    whole = encode(table)
    for part in (table.slice(2, 3), pa.concat_tables([table.slice(2, 1), table.slice(3, 2)])):
        split = encode(part)
        assert np.array_equal(split.map, whole.map[2:5])
        assert np.array_equal(split.log_features, whole.log_features[2:5])
        assert np.array_equal(split.line_values, whole.line_values[2:5])


def test_no_records_encode_to_no_rows() -> None:
    empty = record_schema(["a"]).empty_table()
    assert len(encode(empty)) == 0


def test_other_log_channels_than_the_models_are_refused_by_name(make_records) -> None:
    table = make_records(1, log_names=["dose_mj_cm2", "pressure"])
    with pytest.raises(InputError, match=r"log_names.*pressure.*lens_temp_c"):
        encode_records(table, normaliser(["dose_mj_cm2", "lens_temp_c"]), KNOWN, 4, 2)


def test_normaliser_matches_numpy_over_any_batching() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal([1e4, 0, 3], [1, 5, 0], (50, 3)).astype(np.float32)
    features[rng.random(features.shape) < 0.2] = np.nan
    maps = rng.normal(0.5, 2, (50, 2, 64, 64)).astype(np.float32)
    valid = (rng.random((50, 64, 64)) < 0.7).astype(np.uint8)
    valid[:, 0, 0] = 0
    maps *= valid[:, None]
    fit = NormaliserFit(["a", "b", "c"])
    for start, end in ((0, 7), (7, 8), (8, 50)):
        fit.update(features[start:end], maps[start:end], valid[start:end])
    found = fit.finish()
    kept = np.broadcast_to(valid[:, None].astype(bool), maps.shape)
    assert found.log_mean == pytest.approx(np.nanmean(features.astype(float), 0), rel=1e-6)
    assert found.log_std == pytest.approx([*np.nanstd(features.astype(float), 0)[:2], 1.0], rel=1e-5)
    assert found.sigma_nm == pytest.approx(maps[kept].std(dtype=float), rel=1e-6)
    expected = np.ma.array(maps.astype(float), mask=~kept).mean(0).filled(0)
    assert found.mean_map == pytest.approx(expected, abs=1e-6)
    assert found.mean_map[:, 0, 0].tolist() == [0, 0]


def test_a_channel_never_received_is_harmless() -> None:
    fit = NormaliserFit(["gone"])
    fit.update(np.full((2, 1), np.nan, np.float32), np.zeros((2, 2, 64, 64)), np.zeros((2, 64, 64), np.uint8))
    found = fit.finish()
    assert (found.log_mean.tolist(), found.log_std.tolist(), found.sigma_nm) == ([0], [1], 1)


def test_normaliser_survives_json_exactly(tmp_path) -> None:
    rng = np.random.default_rng(0)
    one = Normaliser(
        ["a"],
        *rng.normal(size=(2, 1)).astype(np.float32),
        2.1,
        rng.normal(size=(2, 64, 64)).astype(np.float32),
    )
    one.save(tmp_path / "n.json")
    again = Normaliser.load(tmp_path / "n.json")
    assert np.array_equal(again.mean_map, one.mean_map)
    assert (again.log_mean, again.log_std, again.sigma_nm) == (one.log_mean, one.log_std, one.sigma_nm)


@pytest.mark.parametrize(
    "text",
    [
        '{"log_names": ["a"]}',
        '{"log_names"',
        "[" * 100_000,
        "\udcff",
        '{"log_names": ["a"], "log_mean": [0], "log_std": [1%s]}' % ("0" * 400),
    ],
)
def test_damaged_normaliser_is_refused(tmp_path, text: str) -> None:
    (tmp_path / "n.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"n\.json: normaliser"):
        Normaliser.load(tmp_path / "n.json")
