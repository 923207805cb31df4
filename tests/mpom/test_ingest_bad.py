"""Bad input goes to quarantine with file, field and reason; good items survive; counts add up."""

import io
import json
import os
import zipfile

import numpy as np
import pytest
from ingested import RunIngest, ingest_into, settings
from PIL import Image
from rawmpom import (
    NAMES,
    USABLE,
    data_set,
    description,
    item,
    make_map,
    npz,
    png,
    png_bytes,
    write,
    zip_of,
)

from ikddit.errors import GateError, InputError
from ikddit.mpom.survey import check_description

SOUND = png(make_map(1))
FLOATS = {name: make_map(seed).astype(np.float32) for name, seed in (("prev_map", 0), ("map", 1))}
MASKS = {name: USABLE.astype(np.uint8) for name in ("prev_valid", "valid")}
MAPS = {**FLOATS, **MASKS}
TABLE = "barcode,wafer_x_mm,wafer_y_mm,ovl_x_nm,ovl_y_nm\nW1,0,0,1,2\nW1,9,0,1,2\n"


@pytest.mark.parametrize(
    ("name", "data", "field"),
    [
        ("overlay_000000.png", SOUND[:-20], "content"),
        ("overlay_prev_000000.png", SOUND[: len(SOUND) // 2], "content"),
        ("overlay_000000.png", b"", "content"),
        ("overlay_000000.png", png_bytes(Image.new("RGB", (63, 64))), "size"),
        ("overlay_000000.png", png_bytes(Image.new("I;16", (64, 64))), "mode"),
        ("overlay_000000.png", png_bytes(Image.new("P", (64, 64))), "mode"),
        ("overlay_000000.png", png_bytes(Image.new("RGB", (64, 64), (9, 9, 128))), "mask"),
        ("logs_000000.json", b'{"features": [1.0, 2.0', "json"),
        ("logs_000000.json", b'{"features": [1, NaN, 3]}', "json"),
        ("logs_000000.json", b'{"features": [1, -Infinity, 3]}', "json"),
        ("logs_000000.json", b'{"features": [1, 2]}', "features"),
        ("logs_000000.json", b'{"features": [1, 2, 3], "feature_names": ["a", "b", "c"]}', "feature_names"),
        (
            "logs_000000.json",
            b'{"features": [1, 2, 3], "feature_names": ["a", "b\\nc", "d"]}',
            "feature_names",
        ),
        ("logs_000000.json", b'{"features": [1, 2, 3], "feature_names": ["a", "", "d"]}', "feature_names"),
        ("id_000000.txt", b"1000", "id"),
        ("maps_000000.npz", b"not a zip", "zip"),
        ("maps_000000.npz", npz(map=FLOATS["map"], valid=MASKS["valid"]), "maps.prev_map"),
        ("maps_000000.npz", npz(**{**MAPS, "map": FLOATS["map"][:, :32]}), "maps.map"),
        ("maps_000000.npz", npz(**{**MAPS, "map": FLOATS["map"] + 1}), "maps.map"),
        ("maps_000000.npz", npz(**{**MAPS, "valid": 1 - MASKS["valid"]}), "maps.map"),
        ("maps_000000.npz", npz(**{**MAPS, "valid": MASKS["valid"] * 3}), "maps.valid"),
        ("maps_000000.npz", npz(**{**MAPS, "map": FLOATS["map"] * np.float32(np.nan)}), "maps.map"),
        ("maps_000000.npz", npz(**{**MAPS, "map": np.full((2, 64, 64), None)}), "maps.map"),
    ],
)
@pytest.mark.parametrize("layout", ["flat", "zip"])
def test_one_bad_file_costs_its_wafer_only(tmp_path, run_ingest: RunIngest, layout, name, data, field):
    raw = data_set(tmp_path / "raw", 4, layout)
    if layout == "zip":
        write(raw / "lots", {"L1.zip": zip_of({**item("000000"), **item("000001", 1), name: data})})
        where, key = f"lots/L1.zip!{name}", "lots/L1.zip!000000"
    else:
        write(raw, {name: data})
        where, key = name, "000000"
    done = run_ingest(raw)
    assert (done.report["found"], done.report["quarantined"]) == (4, 1)
    line = done.rejected(key)
    assert (line["file"], line["field"], line["stage"]) == (where, field, "ingest")
    assert line["reason"]
    assert line["remedy"]


@pytest.mark.parametrize(
    ("missing", "field"),
    [
        ("overlay_prev_000000.png", "overlay_prev"),
        ("overlay_000000.png", "overlay"),
        ("logs_000000.json", "logs"),
    ],
)
def test_missing_partner_is_quarantined(tmp_path, run_ingest, missing, field):
    raw = data_set(tmp_path / "raw", 4)
    (raw / missing).unlink()
    done = run_ingest(raw)
    assert done.report["found"] == 4
    assert done.rejected("000000")["field"] == field
    assert "missing partner" in done.rejected("000000")["reason"]


def test_id_file_may_be_missing_only_beside_ids_in_the_logs(tmp_path, run_ingest):
    raw = data_set(tmp_path / "raw", 4)
    (raw / "id_000000.txt").unlink()
    (raw / "id_000001.txt").unlink()
    write(raw, {"logs_000001.json": json.dumps({"features": [1, 2, 3], "feature_names": NAMES}).encode()})
    done = run_ingest(raw)
    assert done.report["records"] == 3
    assert done.rejected("000001")["field"] == "id"


@pytest.mark.parametrize("per_part", [1, 2, 100])
def test_duplicate_barcode_keeps_the_first_only(tmp_path, run_ingest, per_part):
    raw = data_set(tmp_path / "raw", 4, "nested")
    write(raw / "lots" / "L2", item("000099", 99, "L2", ids={"barcode": "L1-000000"}))
    write(raw / "lots" / "L1", item("000098", 98, "L1", ids={"barcode": "L1-000000"}))
    write(raw / "lots" / "L3", item("000000", 0, "L1"))
    done = run_ingest(raw, wafers_per_part=per_part)
    assert (done.report["found"], done.report["records"]) == (7, 4)
    assert done.report["quarantined_by_field"] == {"barcode": 3}
    assert done.records["source"].to_pylist()[0] == "lots/L1/000000"
    assert "first met in lots/L1/000000" in done.rejected("lots/L2/000099")["reason"]
    assert "same content" in done.rejected("lots/L3/000000")["reason"]
    assert done.report["with_target"] == 4
    parts = sorted(path.name for path in (done.out / "records").glob("*.parquet"))
    assert parts == [f"part-{number:05d}.parquet" for number in range(len(parts))]


def test_two_files_for_one_role_are_not_chosen_between(tmp_path, run_ingest):
    raw = data_set(tmp_path / "raw", 4)
    write(raw, {"overlay_prev000000.png": SOUND})
    assert "both overlay_prev" in run_ingest(raw).rejected("000000")["reason"]


# Zips -------------------------------------------------------------------------------------------------------


def with_zip(tmp_path, data: bytes):
    raw = data_set(tmp_path / "raw", 4, "zip")
    return write(raw, {"lots/L3.zip": data})


@pytest.mark.parametrize(
    "name",
    [
        "../../overlay_prev_7.png",
        "/etc/overlay_prev_7.png",
        "a/../../overlay_prev_7.png",
        "..\\overlay_prev_7.png",
        "C:/overlay_prev_7.png",
        "../../../etc/passwd",
    ],
)
def test_path_tricks_in_a_zip_are_quarantined_and_write_nothing(tmp_path, run_ingest, name):
    raw = with_zip(tmp_path, zip_of({**item("000005", 5, "L3"), name: SOUND}))
    before = sorted(tmp_path.rglob("*"))
    done = run_ingest(raw)
    assert (done.report["found"], done.report["records"]) == (6, 5)
    assert done.report["quarantined_by_field"] == {"path": 1}
    assert sorted(tmp_path.rglob("*")) == before


def test_member_without_a_name_in_a_zip_is_quarantined(tmp_path, run_ingest):
    data = bytearray(zip_of({**item("000005", 5, "L3"), "x": b""}))
    for signature, length, name in ((b"PK\x03\x04", 26, 30), (b"PK\x01\x02", 28, 46)):
        at = data.rfind(signature)
        data[at + length] = 0
        del data[at + name]
    end = data.rfind(b"PK\x05\x06")
    for field in (12, 16):  # the directory is a byte shorter and begins a byte earlier
        data[end + field : end + field + 4] = (
            int.from_bytes(data[end + field : end + field + 4], "little") - 1
        ).to_bytes(4, "little")
    done = run_ingest(with_zip(tmp_path, bytes(data)))
    assert (done.report["found"], done.report["records"]) == (6, 5)
    assert "empty name" in done.quarantine[0]["reason"]


def test_symbolic_link_in_a_zip_is_quarantined(tmp_path, run_ingest):
    link = zipfile.ZipInfo("overlay_prev_7.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "L.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    raw = with_zip(tmp_path, (tmp_path / "L.zip").read_bytes())
    assert "symbolic link" in run_ingest(raw).quarantine[0]["reason"]


def test_zip_bomb_is_quarantined_undecompressed(tmp_path, run_ingest):
    bomb = zip_of({**item("000005", 5, "L3"), "overlay_000005.png": bytes(40 << 20)})
    assert len(bomb) < 1 << 20
    done = run_ingest(with_zip(tmp_path, bomb), max_member_mb=1.0)
    assert done.report["quarantined_by_field"] == {"size": 1}
    assert "40.0 MiB when decompressed" in done.quarantine[0]["reason"]


def test_zip_bomb_that_lies_about_its_size_is_quarantined(tmp_path, run_ingest):
    files = {**item("000005", 5, "L3"), "overlay_000005.png": bytes(8 << 20)}
    bomb = zip_of(files).replace((8 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    done = run_ingest(with_zip(tmp_path, bomb), max_member_mb=1.0)
    assert done.report["quarantined_by_field"] == {"zip": 1}


def test_npz_bomb_is_quarantined(tmp_path, run_ingest):
    raw = data_set(tmp_path / "raw", 4)
    write(raw, {"maps_000000.npz": npz(**{**MAPS, "map": np.zeros((2, 2048, 2048), np.float32)})})
    done = run_ingest(raw, max_member_mb=1.0)
    assert done.rejected("000000")["field"] == "size"


def test_npz_that_promises_a_huge_array_is_not_believed(tmp_path, run_ingest):
    raw = data_set(tmp_path / "raw", 4)
    data = npz(**MAPS)
    with zipfile.ZipFile(raw / "maps_000000.npz", "w") as archive:
        for name in MAPS:
            body = zipfile.ZipFile(io.BytesIO(data)).read(f"{name}.npy")
            archive.writestr(f"{name}.npy", body.replace(b"(2, 64, 64), }    ", b"(2, 64, 64000000),}"))
    assert run_ingest(raw).rejected("000000")["field"] == "maps.map"


@pytest.mark.parametrize(
    "header", [b"{'descr': '<f4'", b"((((((", b"-" * 9000 + b"1", b"{[]: 1}", b"\0"], ids=range(5)
)
def test_npy_header_that_is_no_literal_is_a_damaged_array(tmp_path, run_ingest, header):
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    raw = write(data_set(tmp_path / "raw", 4), {"maps_000000.npz": zip_of({"map.npy": body})})
    assert run_ingest(raw).rejected("000000")["field"] == "maps.map"


def test_pickle_in_an_npz_is_never_loaded(tmp_path, run_ingest):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    raw = data_set(tmp_path / "raw", 4)
    trap = np.empty((2, 64, 64), object)
    trap[0, 0, 0] = Trap()
    write(raw, {"maps_000000.npz": npz(**{**MAPS, "map": trap})})
    assert run_ingest(raw).rejected("000000")["field"] == "maps.map"
    assert not (tmp_path / "sprung").exists()


def test_encrypted_member_is_quarantined(tmp_path, run_ingest):
    data = bytearray(zip_of(item("000005", 5, "L3")))
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= 1
    done = run_ingest(with_zip(tmp_path, bytes(data)))
    assert done.quarantine[0]["reason"] == "encrypted"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_a_bound_is_quarantined(tmp_path, run_ingest, method):
    done = run_ingest(with_zip(tmp_path, zip_of(item("000005", 5, "L3"), method)))
    assert "compression method" in done.quarantine[0]["reason"]


def test_duplicate_name_in_a_zip_is_quarantined(tmp_path, run_ingest):
    # Same length, so that the directory stays sound.
    data = zip_of({**item("000005", 5, "L3"), "id_00000X.txt": b"7"}).replace(b"id_00000X", b"id_000005")
    done = run_ingest(with_zip(tmp_path, data))
    assert "2 times" in done.rejected("lots/L3.zip!000005")["reason"]


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04 and nothing else", zip_of(item("000005"))[:-30], zip_of({}), zip_of({"a.txt": b""})],
    ids=["empty", "signature", "cut", "no member", "no item"],  # a zip holds the time at which it was made
)
def test_zip_without_readable_items_is_one_quarantined_item(tmp_path, run_ingest, data):
    done = run_ingest(with_zip(tmp_path, data))
    assert (done.report["found"], done.report["records"]) == (5, 4)
    assert done.rejected("lots/L3.zip")["field"] == "zip"


def test_zip_of_too_many_files_is_quarantined(tmp_path, run_ingest, monkeypatch):
    monkeypatch.setattr("ikddit.mpom.archive.MAX_MEMBERS", 10)
    done = run_ingest(with_zip(tmp_path, zip_of({f"id_{i}.txt": b"1" for i in range(11)})))
    assert "more than 10 files" in done.rejected("lots/L3.zip")["reason"]


def test_third_zip_inside_one_another_is_quarantined(tmp_path, run_ingest):
    data = zip_of({"b.zip": zip_of({"c.zip": zip_of(item("000005", 5, "L3")), **item("000006", 6, "L3")})})
    done = run_ingest(with_zip(tmp_path, data))
    assert done.rejected("lots/L3.zip!b.zip!c.zip")["field"] == "zip"
    assert done.report["records"] == 5


# Files ------------------------------------------------------------------------------------------------------


def test_things_that_are_no_files_are_quarantined(tmp_path, run_ingest):
    raw = data_set(tmp_path / "raw", 8)
    outside = write(tmp_path, {"secret.png": SOUND}) / "secret.png"
    for key, make in (
        ("000000", lambda path: path.mkdir()),
        ("000001", lambda path: path.symlink_to("nowhere")),
        ("000002", lambda path: path.symlink_to(outside)),
        ("000003", os.mkfifo),
    ):
        (raw / f"overlay_{key}.png").unlink()
        make(raw / f"overlay_{key}.png")
    (raw / "overlay_000004.png").rename(raw / "kept.png")
    (raw / "overlay_000004.png").symlink_to("kept.png")
    done = run_ingest(raw)
    assert (done.report["found"], done.report["records"]) == (8, 4)
    assert "a folder where a file" in done.rejected("000000")["reason"]
    assert "leads to no file" in done.rejected("000001")["reason"]
    assert "outside the data set" in done.rejected("000002")["reason"]
    assert "not a regular file" in done.rejected("000003")["reason"]


def test_file_name_that_is_not_utf8_is_quarantined(tmp_path, run_ingest):
    raw = data_set(tmp_path / "raw", 4)
    for name, data in item("x", 7).items():
        with open(os.path.join(os.fsencode(raw), os.fsencode(name).replace(b"x", b"\xff")), "wb") as handle:
            handle.write(data)
    assert "not UTF-8" in run_ingest(raw).quarantine[0]["reason"]


def test_tables_zips_and_folders_of_names_that_are_not_utf8_are_quarantined(tmp_path, run_ingest):
    raw = os.fsencode(data_set(tmp_path / "raw", 2))
    os.mkdir(raw + b"/\xfe")
    for name in (b"/\xff.zip", b"/\xfe/id_1.txt", b"/\xfe/b.zip"):
        with open(raw + name, "wb") as handle:
            handle.write(b"no zip")
    assert run_ingest(tmp_path / "raw").report["quarantined"] == 3
    tables = os.fsencode(write(tmp_path / "tables", {"good.csv": TABLE.encode()}))
    for name in (b"/\xff.csv", b"/\xff.parquet"):
        with open(tables + name, "wb") as handle:
            handle.write(TABLE.encode())
    done = run_ingest(tmp_path / "tables")
    assert done.report["records"] == 1
    assert [line["reason"] for line in done.quarantine] == ["file name is not UTF-8"] * 2


def test_file_larger_than_the_bound_is_quarantined(tmp_path, run_ingest):
    raw = data_set(tmp_path / "raw", 4)
    write(raw, {"overlay_000000.png": SOUND + bytes(2 << 20)})
    assert run_ingest(raw, max_member_mb=1.0).rejected("000000")["field"] == "size"


def test_an_error_nobody_thought_of_costs_its_wafer_only(tmp_path, run_ingest, monkeypatch):
    from ikddit.mpom import wafer

    def fail(data, file):
        if "000000" in file:
            raise KeyError("surprise")
        return 1

    monkeypatch.setattr(wafer, "parse_public_id", fail)
    line = run_ingest(data_set(tmp_path / "raw", 4)).rejected("000000")
    assert (line["field"], "surprise" in line["reason"]) == ("reader", True)


@pytest.mark.parametrize("data", [TABLE.replace("\n", "\r").encode(), b"barcode," + b"x" * 200_000 + b"\n"])
def test_csv_header_that_cannot_be_split_costs_its_table_only(tmp_path, run_ingest, data):
    done = run_ingest(write(tmp_path / "raw", {"a.csv": data, "b.csv": TABLE.encode()}))
    assert done.report["records"] == 1
    assert "header line not readable" in done.rejected("a.csv")["reason"]


# Whole data sets --------------------------------------------------------------------------------------------


def test_empty_folder_is_said_to_be_empty(tmp_path):
    with pytest.raises(InputError, match="nothing to ingest"):
        ingest_into(tmp_path / "out", write(tmp_path / "raw", {"README.md": b""}))
    assert not (tmp_path / "out").exists()


def test_missing_path_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        ingest_into(tmp_path / "out", tmp_path / "raw")


def test_nothing_usable_stops_with_the_reasons_and_keeps_the_quarantine(tmp_path):
    raw = data_set(tmp_path / "raw", 2)
    for path in raw.glob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(GateError, match=r"none of 2 items is usable \(content: 2\)"):
        ingest_into(tmp_path / "out", raw)
    assert len((tmp_path / "out" / "quarantine" / "quarantine.jsonl").read_text().splitlines()) == 2
    assert not (tmp_path / "out" / "records").exists()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"units": "furlong"}, "units"),
        ({"units": "um"}, "units"),
        ({"units": None}, "units"),
        ({"scale_nm": 0}, "scale_nm"),
        ({"scale_nm": -16.0}, "scale_nm"),
        ({"scale_nm": "16"}, "scale_nm"),
        ({"scale_nm": None}, "scale_nm"),
        ({"encoding": "jet"}, "encoding"),
        ({"encoding": None}, "encoding"),
        ({"sign": "plus"}, "sign"),
        ({"reference": "field"}, "reference"),
        ({"format": "hdf"}, "format"),
        ({"format": None}, "format"),
        ({"format_version": 2}, "format_version"),
        ({"scale_nm": 10**400}, "scale_nm"),
        ({"scale_nm": 1e39}, "scale_nm"),
        ({"pitch_mm": 1.0}, "pitch_mm"),
        ({"pitch_mm": 10**400}, "pitch_mm"),
        ({"feature_names": ["a", "a"]}, "feature_names"),
        ({"feature_names": "abc"}, "feature_names"),
        ({"feature_names": ["a", ""]}, "feature_names"),
        ({"feature_names": ["a", "b\nc"]}, "feature_names"),
    ],
)
def test_unusable_description_is_refused_by_its_key(changes, field):
    with pytest.raises(InputError) as caught:
        check_description(description(**changes), settings())
    assert (caught.value.file, caught.value.field) == ("dataset.json", field)


def test_scale_declared_twice_must_agree():
    assert check_description(description(), settings(scale_nm=16.0))[0] == 16.0
    with pytest.raises(InputError, match=r"ingest\.scale_nm says 8\.0"):
        check_description(description(), settings(scale_nm=8.0))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        "NaN",
        '{"format": "mpom", "scale_nm": NaN}',
        '{"format": "mpom", "format_version": 1, "note": 1e999}',
        '{"format": "mpom", "format_version": 1, "note": "\\ud800"}',
        '{"format": "mpom", "format_version": 1, "note": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_broken_description_stops_ingest(tmp_path, text):
    raw = data_set(tmp_path / "raw", 2)
    (raw / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json"):
        ingest_into(tmp_path / "out", raw)


def test_a_folder_of_data_sets_is_not_taken_for_one(tmp_path):
    data_set(tmp_path / "raw" / "march", 2)
    with pytest.raises(InputError, match=r"march/dataset\.json"):
        ingest_into(tmp_path / "out", tmp_path / "raw")


def test_output_never_replaces_what_is_not_ours(tmp_path):
    raw = data_set(tmp_path / "raw", 2)
    precious = write(tmp_path / "out" / "records", {"thesis.tex": b"x"}) / "thesis.tex"
    with pytest.raises(InputError, match=r"thesis\.tex"):
        ingest_into(tmp_path / "out", raw)
    assert precious.exists()
    with pytest.raises(InputError, match="inside the raw data"):
        ingest_into(raw / "out", raw)
