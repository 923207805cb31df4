"""What callers send becomes records of the model's channels, or is refused by its column."""

import numpy as np
import pandas as pd
import pytest

from ikddit.dataset.request import align_log_channels, request_table, warn_once
from ikddit.errors import InputError
from ikddit.mpom.schema import record_schema


def test_ids_with_gaps_are_the_whole_numbers_they_were() -> None:
    frame = pd.DataFrame(
        {"barcode": [7.0, 8.0, 9.0], "chuck_id": [1, None, 2], "layer": ["M1", np.nan, None]}
    )
    frame["reticle_id"] = pd.array([3, None, 4], "Int64")
    table = request_table(frame, [])
    assert table.column("barcode").to_pylist() == ["7", "8", "9"]
    assert table.column("chuck_id").to_pylist() == ["1", None, "2"]
    assert table.column("layer").to_pylist() == ["M1", None, None]
    assert table.column("reticle_id").to_pylist() == ["3", None, "4"]


@pytest.mark.parametrize("lines", ["one line", 5, 2.5])
def test_log_lines_that_are_no_list_are_refused(lines: object) -> None:
    with pytest.raises(InputError, match=r"request: log_lines: .* is not a list of texts"):
        request_table(pd.DataFrame({"barcode": ["a"], "log_lines": [lines]}), [])


def test_a_row_without_a_barcode_is_refused() -> None:
    with pytest.raises(InputError, match="request: barcode: missing in row 1"):
        request_table(pd.DataFrame({"barcode": ["a", None]}), [])


def test_channels_are_found_by_name_and_rows_without_any_are_missing(make_records) -> None:
    table = make_records(3, log_names=["a", "b"], log_features=[[1.0, 2.0], None, [3.0, 4.0]])
    for part in (table, table.slice(0, 3)):
        found = align_log_channels(part, ["b", "c"])
        assert found.schema == record_schema(["b", "c"])
        values = np.array(found.column("log_features").to_pylist())
        np.testing.assert_array_equal(values, [[2, np.nan], [np.nan] * 2, [4, np.nan]])


def test_a_model_and_records_without_channels_fit_all(make_records) -> None:
    bare = align_log_channels(make_records(2, log_names=["a"], log_features=[[1.0], [2.0]]), [])
    assert bare.schema == record_schema([])
    filled = align_log_channels(bare, ["a"])
    assert filled.schema == record_schema(["a"])
    assert np.isnan(np.array(filled.column("log_features").to_pylist())).all()


def test_what_holds_for_every_batch_is_said_once(make_records, caplog) -> None:
    warn_once.cache_clear()
    table = make_records(4, log_names=["a"], log_features=[[1.0]] * 4)
    for start in range(0, 4, 2):
        align_log_channels(table.slice(start, 2), ["a", "b"])
    assert caplog.messages == ["log channels: 1 of the model's 2 are in the records; 0 others are ignored"]
