"""logs_<key>.json and id_<key>.txt are read strictly: what is not plain numbers and text is refused by name."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ikddit.errors import InputError
from ikddit.mpom.logs import parse_logs, parse_public_id, strict_json


def refuse(value: object) -> InputError:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(InputError) as caught:
        parse_logs(data, "logs_1.json")
    assert caught.value.file == "logs_1.json"
    return caught.value


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20))
def test_features_come_back_as_written(values):
    assert parse_logs(json.dumps({"features": values}).encode(), "a").features.tolist() == values


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_refused(constant):
    error = refuse(b'{"features": [1.0, %s]}' % constant.encode())
    assert error.field == "json"
    assert constant in error.reason


@pytest.mark.parametrize("number", ["1e999", "-1e39", "1" + "0" * 400])
def test_numbers_beyond_float32_are_refused(number):
    assert refuse(b'{"features": [1.0, %s]}' % number.encode()).field == "features"


SOUND = json.dumps({"features": [1.5, 2], "lines": ["a\u00fc"], "ids": {"barcode": "b"}}).encode()


@given(st.integers(0, len(SOUND) - 1))
def test_json_cut_anywhere_is_refused(length):
    assert refuse(SOUND[:length]).field == "json"


def test_a_cut_is_called_a_cut():
    assert "ends early" in refuse(SOUND[:20]).reason


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([1, 2], "json"),
        ({}, "features"),
        ({"features": None}, "features"),
        ({"features": "1,2"}, "features"),
        ({"features": [1, None]}, "features"),
        ({"features": [1, True]}, "features"),
        ({"features": [1, "2"]}, "features"),
        ({"features": [[1]]}, "features"),
        ({"features": [1], "feature_names": ["a", "b"]}, "features"),
        ({"features": [1, 2], "feature_names": ["a", "a"]}, "feature_names"),
        ({"features": [1], "feature_names": [7]}, "feature_names"),
        ({"features": [1], "feature_names": ["a"], "missing": ["b"]}, "missing"),
        ({"features": [1], "lines": "text"}, "lines"),
        ({"features": [1], "lines": [1]}, "lines"),
        ({"features": [1], "lines": ["\ud800"]}, "lines"),
        ({"features": [1], "ids": ["x"]}, "ids"),
        ({"features": [1], "ids": {"barcode": 1.5}}, "ids.barcode"),
        ({"features": [1], "ids": {"barcode": "\udfff"}}, "ids.barcode"),
        ({"features": [1], "ids": {"slot": "1"}}, "ids.slot"),
        ({"features": [1], "ids": {"slot": -1}}, "ids.slot"),
        ({"features": [1], "ids": {"slot": 2**15}}, "ids.slot"),
        ({"features": [1], "ids": {"exposed_at": "yesterday"}}, "ids.exposed_at"),
        ({"features": [1], "ids": {"exposed_at": 1700000000}}, "ids.exposed_at"),
        ({"features": [1], "ids": {"exposed_at": "2026-01-01T00:00:00"}}, "ids.exposed_at"),
        ({"features": [1], "ids": {"exposed_at": "9999-12-31T23:59:59-14:00"}}, "ids.exposed_at"),
        (b"\xff\xfe{}", "json"),
        (b'{"a": "\xed\xa0\x80"}', "json"),
        (b"[" * 100_000, "json"),
    ],
)
def test_wrong_content_is_refused_by_name(value, field):
    assert refuse(value).field == field


def test_what_is_optional_may_be_absent():
    logs = parse_logs(b'{"features": [1, 2]}', "a")
    assert (logs.names, logs.missing, logs.lines, logs.ids) == (None, [], None, None)


def test_ids_are_text_and_times_are_utc():
    ids = {
        "barcode": "B1",
        "chuck_id": 2,
        "lot_id": " L1 ",
        "layer": "",
        "exposed_at": "2026-01-01T02:00:00+02:00",
    }
    logs = parse_logs(json.dumps({"features": [], "ids": ids, "other": 1}).encode(), "a")
    assert logs.ids is not None
    assert (logs.ids["chuck_id"], logs.ids["lot_id"], logs.ids["layer"]) == ("2", "L1", None)
    assert logs.ids["exposed_at"] == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_byte_order_mark_is_allowed():
    assert strict_json(b"\xef\xbb\xbf[1]", "a") == [1]


@pytest.mark.parametrize("data", [b"", b"1000", b"-1", b"1.0", b"1 2", b"\xff", "²".encode(), b"9" * 5000])
def test_public_id_is_one_whole_number_below_1000(data):
    with pytest.raises(InputError, match=r"id_1\.txt: id"):
        parse_public_id(data, "id_1.txt")


def test_public_id_may_end_in_a_newline():
    assert parse_public_id(b"999\r\n", "id_1.txt") == 999
