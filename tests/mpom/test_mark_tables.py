"""Mark tables: any column names, declared units, sign and reference; what contradicts physics is refused."""

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingested import maps_of, settings
from rawmpom import AXIS_MM, NAMES, USABLE, make_map, write

from ikddit.errors import InputError, ParamsError
from ikddit.mpom.ingest import ingest
from ikddit.mpom.tables import wafers_of
from ikddit.params import MarksParams

X_MM, Y_MM = np.meshgrid(AXIS_MM, AXIS_MM[::-1])
ALIASES = {
    "lot_id": "Lot",
    "slot": "Wafer",
    "wafer_x_mm": "X",
    "wafer_y_mm": "Y",
    "ovl_x_nm": "dX",
    "ovl_y_nm": "dY",
}


def marks(barcode: str, seed: int, exposure: str | None = None, **columns) -> pd.DataFrame:
    """One mark in the centre of each usable pixel."""
    truth = make_map(seed)
    frame = pd.DataFrame(
        {
            "barcode": barcode,
            "wafer_x_mm": X_MM[USABLE],
            "wafer_y_mm": Y_MM[USABLE],
            "ovl_x_nm": truth[0][USABLE],
            "ovl_y_nm": truth[1][USABLE],
        }
    )
    if exposure:
        frame["exposure"] = exposure
    return frame.assign(**columns)


def lot(lot_id: str, seeds) -> pd.DataFrame:
    """The simulator's table of a lot: two exposures of each wafer, ids, a validity flag."""
    frames = []
    for seed in seeds:
        ids = {
            "lot_id": lot_id,
            "slot": seed + 1,
            "layer": "M2",
            "scanner_id": "SC1",
            "chuck_id": seed % 2 + 1,
        }
        ids |= {"prev_layer": "M1", "exposed_at": f"2026-01-{seed + 1:02d}T12:00:00Z", "valid": 1}
        for exposure, shift in (("current", 1), ("previous", 0)):
            frames.append(marks(f"{lot_id}W{seed:02d}", 2 * seed + shift, exposure, **ids))
    return pd.concat(frames, ignore_index=True)


def save(frame: pd.DataFrame, path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, **options)


def check_maps(records, seeds, tolerance=1e-5) -> None:
    for name, shift in (("map", 1), ("prev_map", 0)):
        maps = maps_of(records, name)
        for row, seed in enumerate(seeds):
            truth = make_map(2 * seed + shift)
            np.testing.assert_allclose(maps[row][:, USABLE], truth[:, USABLE], atol=tolerance)
            assert np.isnan(maps[row][:, ~USABLE]).all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_simulators_tables_become_records(tmp_path, run_ingest, suffix):
    for number in range(2):
        save(
            lot(f"L{number}", range(2 * number, 2 * number + 2)),
            tmp_path / "raw" / f"marks_L{number}{suffix}",
        )
    done = run_ingest(tmp_path / "raw", wafers_per_part=3)
    assert done.report["format"] == "marks"
    assert done.records["barcode"].to_pylist() == ["L0W00", "L0W01", "L1W02", "L1W03"]
    check_maps(done.records, range(4))
    record = done.records.slice(1, 1).to_pylist()[0]
    assert (record["slot"], record["chuck_id"], record["prev_layer"]) == (2, "2", "M1")
    assert record["exposed_at"].isoformat() == "2026-01-02T12:00:00+00:00"
    assert record["source"] == f"marks_L0{suffix}#L0W01"
    assert sum(record["mark_count"]) == USABLE.sum()
    assert done.report["capabilities"] == {"nm": True, "supervised": True, "generation": True}
    assert len(list((done.out / "records").glob("*.parquet"))) == 2


def users_table() -> pd.DataFrame:
    frame = pd.concat([marks("", 1, Lot="A7", Wafer=3), marks("", 3, Lot="A7", Wafer=12)])
    frame = frame.rename(columns={"wafer_x_mm": "X", "wafer_y_mm": "Y", "ovl_x_nm": "dX", "ovl_y_nm": "dY"})
    return frame[["Lot", "Wafer", "X", "Y", "dX", "dY"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_users_own_table_is_read_with_an_alias_map(tmp_path, run_ingest, delimiter):
    save(users_table(), tmp_path / "export.csv", sep=delimiter)
    done = run_ingest(tmp_path / "export.csv", marks={"columns": ALIASES, "delimiter": delimiter})
    assert done.records["barcode"].to_pylist() == ["A7-03", "A7-12"]
    np.testing.assert_allclose(maps_of(done.records, "map")[1][:, USABLE], make_map(3)[:, USABLE], atol=1e-5)
    assert np.isnan(maps_of(done.records, "prev_map")).all()


def test_spaces_after_the_delimiter_and_rows_in_any_order_do_not_matter(tmp_path, run_ingest):
    frame = users_table().sample(frac=1.0, random_state=0)
    text = frame.to_csv(index=False).replace(",", ", ")
    write(tmp_path, {"export.csv": text.encode("utf-8-sig")})
    done = run_ingest(tmp_path / "export.csv", marks={"columns": ALIASES})
    assert sorted(done.records["barcode"].to_pylist()) == ["A7-03", "A7-12"]


def test_micrometres_sign_and_field_reference_are_applied(tmp_path, run_ingest):
    frame = marks("W1", 1)
    frame["field_x_mm"] = 26.0 * np.round(frame["wafer_x_mm"] / 26.0)
    frame["field_y_mm"] = 33.0 * np.round(frame["wafer_y_mm"] / 33.0)
    frame["mark_x_mm"] = frame.pop("wafer_x_mm") - frame["field_x_mm"]
    frame["mark_y_mm"] = frame.pop("wafer_y_mm") - frame["field_y_mm"]
    frame[["ovl_x_nm", "ovl_y_nm"]] /= 1000.0
    save(frame, tmp_path / "m.csv")
    declared = {"unit": "um", "sign": "previous_minus_current", "reference": "field"}
    done = run_ingest(tmp_path / "m.csv", marks=declared)
    np.testing.assert_allclose(maps_of(done.records, "map")[0][:, USABLE], -make_map(1)[:, USABLE], atol=1e-4)


def test_invalid_and_empty_marks_are_left_out(tmp_path, run_ingest):
    frame = marks("W1", 1, valid=1)
    frame.loc[0, "valid"] = 0
    frame.loc[1, "ovl_x_nm"] = np.nan
    frame.loc[0, "ovl_y_nm"] = 1e9
    save(frame, tmp_path / "m.csv")
    done = run_ingest(tmp_path / "m.csv")
    assert sum(done.records["valid"][0].as_py()) == USABLE.sum() - 2


def test_interpolation_only_when_asked_and_marked(tmp_path, run_ingest):
    save(marks("W1", 1).iloc[::3], tmp_path / "m.csv")
    plain = run_ingest(tmp_path / "m.csv")
    filled = run_ingest(tmp_path / "m.csv", marks={"interpolate": True})
    counts = np.array(filled.records["mark_count"][0].as_py())
    valid = np.array(filled.records["valid"][0].as_py())
    assert sum(plain.records["valid"][0].as_py()) == (counts > 0).sum() < valid.sum()
    assert any("interpolated" in note for note in filled.report["notes"])


def test_logs_beside_the_table_are_taken_along(tmp_path, run_ingest):
    save(lot("L0", [0, 1]), tmp_path / "raw" / "marks_L0.csv")
    logs = {
        "features": [1, 2, 3],
        "feature_names": NAMES,
        "lines": ["T 22.0 degC"],
        "ids": {"reticle_id": "R9"},
    }
    write(tmp_path / "raw", {"logs_L0W00.json": json.dumps(logs).encode()})
    first, second = run_ingest(tmp_path / "raw").records.to_pylist()
    assert (first["log_features"], first["log_lines"], first["reticle_id"]) == (
        [1, 2, 3],
        ["T 22.0 degC"],
        "R9",
    )
    assert first["scanner_id"] == "SC1"
    assert np.isnan(second["log_features"]).all()


def test_wafers_whose_logs_have_another_name_are_counted(tmp_path, run_ingest):
    save(lot("L0", [0, 1, 2]), tmp_path / "raw" / "marks_L0.csv")
    logs = json.dumps({"features": [1, 2, 3], "feature_names": NAMES}).encode()
    write(tmp_path / "raw", {"logs_L0W00.json": logs, "logs_L0-W01.json": logs, "logs_L0-W02.json": logs})
    told = "2 wafers without logs, for example L0W01: no logs_L0W01.json beside their table."
    assert told in run_ingest(tmp_path / "raw").report["notes"]
    for wafer in ("L0W01", "L0W02"):
        write(tmp_path / "raw", {f"logs_{wafer}.json": logs})
    assert not any("without logs" in note for note in run_ingest(tmp_path / "raw").report["notes"])


def test_logs_beside_a_lone_table_are_taken_along_whatever_its_barcodes(tmp_path, run_ingest):
    frame = pd.concat([marks("W 1", 1), marks("../W2", 3)])
    save(frame, tmp_path / "raw" / "m.csv")
    logs = json.dumps({"features": [1, 2, 3], "feature_names": NAMES}).encode()
    write(tmp_path / "raw", {"logs_W 1.json": logs, "logs_../W2.json": logs})
    done = run_ingest(tmp_path / "raw" / "m.csv")
    first, second = done.records.to_pylist()
    assert (first["source"], first["log_features"]) == ("m.csv#W 1", [1, 2, 3])
    assert np.isnan(second["log_features"]).all()
    assert not any("No logs" in note for note in done.report["notes"])


def test_logs_of_a_table_that_lead_elsewhere_cost_their_wafer(tmp_path, run_ingest):
    save(lot("L0", [0, 1]), tmp_path / "raw" / "m.csv")
    logs = json.dumps({"features": [1, 2, 3], "feature_names": NAMES}).encode()
    write(tmp_path, {"secret.json": logs, "raw/logs_L0W01.json": logs})
    (tmp_path / "raw" / "logs_L0W00.json").symlink_to(tmp_path / "secret.json")
    done = run_ingest(tmp_path / "raw" / "m.csv")
    assert done.records["barcode"].to_pylist() == ["L0W01"]
    assert "leads outside" in done.rejected("m.csv#L0W00")["reason"]


def test_interleaved_wafers_of_a_large_table_are_refused_and_sorted_ones_streamed(tmp_path):
    frame = pd.concat([marks("W1", 1), marks("W2", 3)], ignore_index=True)
    for suffix in (".csv", ".parquet"):
        path = tmp_path / f"m{suffix}"
        save(frame, path)
        whole = list(wafers_of(path, "m", MarksParams()))
        streamed = list(wafers_of(path, "m", MarksParams(), whole_bytes=0))
        assert [name for name, _ in streamed] == [name for name, _ in whole] == ["W1", "W2"]
        for (_, a), (_, b) in zip(whole, streamed, strict=True):
            assert a["ovl_x_nm"].cast("float64").to_pylist() == b["ovl_x_nm"].cast("float64").to_pylist()
        save(frame.sample(frac=1.0, random_state=0), path)
        with pytest.raises(InputError, match="scattered over a table too large"):
            list(wafers_of(path, "m", MarksParams(), whole_bytes=0))


def test_scattered_rows_without_a_barcode_are_one_item_of_a_large_table_too(tmp_path):
    frame = pd.concat([marks("W1", 1), marks("W2", 3)], ignore_index=True)
    frame.loc[[5, 900, len(frame) - 1], "barcode"] = None
    save(frame, tmp_path / "m.csv")
    whole, streamed = (list(wafers_of(tmp_path / "m.csv", "m", MarksParams(), size)) for size in (1 << 30, 0))
    assert [(name, len(rows)) for name, rows in streamed[1:]] == [(name, len(r)) for name, r in whole[1:]]
    assert [str(items[0][1]) for items in (whole, streamed)] == [str(whole[0][1])] * 2
    assert "3 rows without barcode" in str(whole[0][1])


def broken(change) -> pd.DataFrame:
    frame = lot("L0", [0, 1])
    change(frame, frame["barcode"] == "L0W00")
    return frame


def setting(column, value):
    def change(frame, rows):
        frame[column] = frame[column].astype(object)
        frame.loc[rows, column] = value

    return change


def swap(a, b):
    def change(frame, rows):
        frame.loc[rows, [a, b]] = frame.loc[rows, [b, a]].to_numpy()

    return change


def scaled(columns, factor):
    def change(frame, rows):
        frame.loc[rows, columns] *= factor

    return change


OVERLAY, POSITION = ["ovl_x_nm", "ovl_y_nm"], ["wafer_x_mm", "wafer_y_mm"]


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (scaled(OVERLAY, 1e-3), "unit", "below 0.05: less than metrology noise"),
        (scaled(OVERLAY, 1e4), "unit", "above 150: more than any overlay"),
        (scaled("ovl_y_nm", 0.0), "ovl_y_nm", "0 on all"),
        (swap("wafer_x_mm", "ovl_x_nm"), "ovl_x_nm", "median |ovl_x|"),
        (swap("wafer_y_mm", "ovl_y_nm"), "ovl_y_nm", "median |ovl_y|"),
        (scaled(POSITION, 1e3), "wafer_x_mm, wafer_y_mm", "wafer ends at 150 mm"),
        (scaled(POSITION, 1e-3), "wafer_x_mm, wafer_y_mm", "of the centre"),
        (setting("ovl_x_nm", "1,5"), "ovl_x_nm", "1,5"),
        (setting("ovl_x_nm", np.inf), "ovl_x_nm, ovl_y_nm", "infinite"),
        (setting("ovl_x_nm", np.nan), "valid", "no valid mark"),
        (setting("wafer_x_mm", np.nan), "wafer_x_mm, wafer_y_mm", "without a position"),
        (setting("valid", 0), "valid", "no valid mark"),
        (setting("valid", 2), "valid", "expected 1 or 0"),
        (setting("valid", np.nan), "valid", "expected 1 or 0"),
        (setting("exposure", "next"), "exposure", "'next'"),
        (setting("slot", "A"), "slot", "whole number"),
        (setting("exposed_at", "2026-01-01 12:00"), "exposed_at", "time zone"),
        (
            lambda frame, rows: frame.__setitem__("layer", ["M2", "M3"] * (len(frame) // 2)),
            "layer",
            "2 values",
        ),
    ],
)
def test_what_contradicts_physics_or_itself_costs_its_wafer_only(tmp_path, run_ingest, change, field, reason):
    frame = broken(change)
    if field == "layer":
        frame.loc[frame["barcode"] != "L0W00", "layer"] = "M2"
    save(frame, tmp_path / "m.csv")
    done = run_ingest(tmp_path / "m.csv")
    assert (done.report["found"], done.report["records"]) == (2, 1)
    line = done.rejected("m.csv#L0W00")
    assert line["field"] == field
    assert reason in line["reason"]
    assert done.records["barcode"].to_pylist() == ["L0W01"]


def test_rows_without_a_wafer_are_one_item(tmp_path, run_ingest):
    frame = lot("L0", [0, 1])
    frame.loc[frame["barcode"] == "L0W00", "barcode"] = None
    save(frame, tmp_path / "m.csv")
    assert "rows without barcode" in run_ingest(tmp_path / "m.csv").rejected("m.csv#?")["reason"]


GOOD = lot("L0", [0])
TEXT = GOOD.to_csv(index=False)


@pytest.mark.parametrize(
    ("name", "data", "field", "reason"),
    [
        ("b.csv", TEXT.replace(",", ";").encode(), "delimiter", "one single column"),
        ("b.csv", TEXT[: len(TEXT) // 2].rpartition(",")[0].encode(), "content", "columns"),
        ("b.csv", TEXT.replace("ovl_x_nm", "dX").encode(), "columns", "no column 'ovl_x_nm'"),
        ("b.csv", TEXT.replace("barcode,", "name,").replace("lot_id", "l").encode(), "columns", "barcode"),
        ("b.csv", b"Lot;X\n1;2\n", "delimiter", "one single column 'Lot;X'"),
        (
            "b.csv",
            b"Lot,X\n1,2\n",
            "columns",
            "'wafer_x_mm', 'wafer_y_mm', 'ovl_x_nm', 'ovl_y_nm', 'barcode'",
        ),
        ("b.csv", TEXT.replace("chuck_id", "slot").encode(), "columns", "'slot' occurs twice"),
        ("b.csv", "Lös".encode("latin-1"), "content", "not UTF-8"),
        ("b.csv", b"", "content", "no header"),
        ("b.csv", TEXT.partition("\n")[0].encode(), "content", ""),
        ("b.csv", b"\0\0\0\0", "content", "not a text file"),
        ("b.parquet", b"PAR1 and no more", "content", ""),
        ("b.parquet", b"", "content", ""),
    ],
)
def test_an_unreadable_table_is_one_quarantined_item(tmp_path, run_ingest, name, data, field, reason):
    save(GOOD, tmp_path / "a.csv")
    write(tmp_path, {name: data})
    done = run_ingest(tmp_path)
    assert (done.report["found"], done.report["records"]) == (2, 1)
    assert done.rejected(name)["field"] == field
    assert reason in done.rejected(name)["reason"]


def test_a_parquet_column_whose_name_is_not_utf8_costs_its_table_only(tmp_path, run_ingest):
    good = marks("W1", 1).head(12)
    write(tmp_path / "raw", {"good.csv": good.to_csv(index=False).encode()})
    table = pa.Table.from_pandas(good.assign(barcode="W2"), preserve_index=False).replace_schema_metadata(
        None
    )
    path = tmp_path / "raw" / "a.parquet"
    pq.write_table(table, path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"ovl_y_nm", b"ovl_y_n\xff"))
    assert run_ingest(tmp_path / "raw").rejected("a.parquet")["field"] == "content"


@pytest.mark.parametrize("name", ["exposure", "barcode", "wafer_x_mm", "exposed_at", "layer"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet_text_that_is_not_utf8_costs_its_table_only(tmp_path, run_ingest, name, dictionary):
    good = marks("W1", 1).head(12)
    write(tmp_path / "raw", {"good.csv": good.to_csv(index=False).encode()})
    table = pa.Table.from_pandas(good.assign(barcode="W2"), preserve_index=False)
    raw = pa.array([b"c\xffrrent"] * 12)
    text = pa.Array.from_buffers(pa.string(), 12, raw.buffers())
    values = text.dictionary_encode() if dictionary else text
    at = table.schema.get_field_index(name)
    table = table.set_column(at, name, values) if at >= 0 else table.append_column(name, values)
    pq.write_table(table, tmp_path / "raw" / "a.parquet")
    line = run_ingest(tmp_path / "raw").rejected("a.parquet")
    assert (line["field"], "UTF" in line["reason"]) == (name, True)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("wafer_x_mm", pa.array([0] * 12, pa.timestamp("us"))),
        ("ovl_x_nm", pa.array([[1.0]] * 12)),
        ("exposed_at", pa.array([2**62] * 12, pa.timestamp("us"))),
        ("exposed_at", pa.array([0] * 12, pa.timestamp("us", tz="Mars/Base"))),
        ("exposed_at", pa.array([[1]] * 12)),
    ],
)
def test_a_parquet_column_of_another_type_is_named(tmp_path, run_ingest, name, values):
    good = marks("W1", 1).head(12)
    write(tmp_path / "raw", {"good.csv": good.to_csv(index=False).encode()})
    table = pa.Table.from_pandas(good.assign(barcode="W2"), preserve_index=False)
    at = table.schema.get_field_index(name)
    table = table.set_column(at, name, values) if at >= 0 else table.append_column(name, values)
    pq.write_table(table, tmp_path / "raw" / "a.parquet")
    assert run_ingest(tmp_path / "raw").rejected("a.parquet#W2")["field"] == name


def test_a_parquet_column_of_fractions_where_an_id_belongs_is_named(tmp_path, run_ingest):
    good = marks("W1", 1).head(12)
    save(good.assign(barcode="W2", slot=1.5), tmp_path / "raw" / "a.parquet")
    gap = pa.array(np.array([1.0, np.nan] * 6))  # a number that is none, and not a null
    table = pa.Table.from_pandas(good, preserve_index=False).append_column("slot", gap)
    pq.write_table(table, tmp_path / "raw" / "gap.parquet")
    done = run_ingest(tmp_path / "raw")
    assert (done.rejected("a.parquet")["field"], done.report["quarantined"]) == ("slot", 1)
    assert done.records["slot"].to_pylist() == [1]


def test_a_delimiter_that_is_wrong_is_answered_with_the_right_one(tmp_path, run_ingest):
    save(GOOD, tmp_path / "a.csv")
    save(GOOD, tmp_path / "b.csv", sep=";")
    assert "to ';'" in run_ingest(tmp_path).rejected("b.csv")["remedy"]


def test_a_wafer_in_two_tables_is_kept_once(tmp_path, run_ingest):
    save(GOOD, tmp_path / "a.csv")
    save(GOOD, tmp_path / "b.csv")
    done = run_ingest(tmp_path)
    assert "first met in a.csv#L0W00 with the same content" in done.rejected("b.csv#L0W00")["reason"]


def test_a_table_that_is_a_link_to_elsewhere_is_quarantined(tmp_path, run_ingest):
    save(GOOD, tmp_path / "raw" / "a.csv")
    save(GOOD, tmp_path / "secret.csv")
    (tmp_path / "raw" / "b.csv").symlink_to(tmp_path / "secret.csv")
    assert run_ingest(tmp_path / "raw").rejected("b.csv")["field"] == "path"


def test_an_alias_for_no_canonical_column_is_refused_before_anything_is_read(tmp_path):
    save(GOOD, tmp_path / "a.csv")
    with pytest.raises(ParamsError, match="'dx' is not a canonical column"):
        ingest(
            tmp_path / "a.csv",
            tmp_path / "r",
            tmp_path / "q",
            tmp_path / "i.json",
            settings(marks={"columns": {"dx": "dX"}}),
        )


@given(
    st.lists(
        st.tuples(st.sampled_from(["W1", "W2", "W 3"]), st.floats(-100, 100), st.floats(-9, 9).filter(bool)),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([",", ";", "\t", "|"]),
    st.booleans(),
)
def test_csv_rows_come_back_as_pandas_reads_them(tmp_path_factory, rows, delimiter, quoted):
    path = tmp_path_factory.mktemp("csv") / "m.csv"
    frame = pd.DataFrame(
        {
            "barcode": [row[0] for row in rows],
            "wafer_x_mm": [row[1] for row in rows],
            "wafer_y_mm": 0.0,
            "ovl_x_nm": [row[2] for row in rows],
            "ovl_y_nm": 1.0,
        }
    )
    frame.to_csv(path, index=False, sep=delimiter, quoting=1 if quoted else 0)
    expected = pd.read_csv(io.StringIO(path.read_text()), sep=delimiter)
    found = dict(wafers_of(path, "m.csv", MarksParams(delimiter=delimiter)))
    assert list(found) == list(dict.fromkeys(expected["barcode"]))
    for barcode, wafer in found.items():
        mine = expected[expected["barcode"] == barcode]
        np.testing.assert_allclose(wafer["wafer_x_mm"].to_numpy(), mine["wafer_x_mm"], rtol=1e-12)
        np.testing.assert_allclose(wafer["ovl_x_nm"].to_numpy(), mine["ovl_x_nm"], rtol=1e-12)
