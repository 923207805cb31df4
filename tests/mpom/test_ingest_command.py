"""`ikddit ingest` shows what became of the data, and ends with a plain message where nothing can be done."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rawmpom import data_set, png_bytes, write, zip_of
from typer.testing import CliRunner

from ikddit.cli import app
from ikddit.errors import GateError, InputError, ParamsError
from ikddit.mpom.schema import log_names_of


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In a folder that has no params.yaml but the test's."""
    monkeypatch.chdir(tmp_path)


def invoke(*args: object):
    return CliRunner().invoke(app, ["ingest", *map(str, args)], catch_exceptions=False)


def test_counts_reasons_and_capabilities_are_printed(tmp_path):
    raw = data_set(tmp_path / "raw", 4)
    (raw / "overlay_000000.png").write_bytes(b"no")
    result = invoke(raw, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0
    words = [line.split() for line in result.stdout.splitlines()]
    assert words[:3] == [
        ["found", "4", "items"],
        ["records", "3", f"{tmp_path}/out/records", "(nm)"],
        ["quarantined", "1", f"{tmp_path}/out/quarantine/quarantine.jsonl"],
    ]
    assert "1  content, for example overlay_000000.png: content: not a PNG file" in result.stdout
    assert "supervised training" in result.stdout
    assert json.loads((tmp_path / "out" / "ingest.json").read_text())["records"] == 3


def test_params_file_and_options_go_together(tmp_path):
    raw = data_set(tmp_path / "raw", 2)
    (raw / "dataset.json").unlink()
    (tmp_path / "params.yaml").write_text("ingest:\n  wafers_per_part: 1\n")
    invoke(
        raw, "--out", tmp_path / "out", "--params", tmp_path / "params.yaml", "--scale-nm", 16, "--workers", 1
    )
    assert len(list((tmp_path / "out" / "records").glob("part-*.parquet"))) == 2
    assert json.loads((tmp_path / "out" / "ingest.json").read_text())["units"] == "nm"


def test_params_yaml_of_this_folder_is_taken_and_named(tmp_path):
    raw = data_set(tmp_path / "raw", 2)
    (tmp_path / "params.yaml").write_text(
        "ingest: {wafers_per_part: 1, workers: 1, engine: dask, scheduler: 'tcp://nowhere.invalid:1'}\n"
    )
    text = invoke(raw, "--engine", "processes").stdout
    assert text.startswith("settings: params.yaml\n")
    assert len(list((tmp_path / "ingested" / "records").glob("part-*.parquet"))) == 2
    with pytest.raises(ParamsError, match=r"ingest\.engine: .*'spark'"):
        invoke(raw, "--engine", "spark")
    (tmp_path / "other.yaml").write_text("ingest: {workers: 1}\n")
    assert invoke(raw, "--params", "other.yaml").stdout.startswith("settings: other.yaml\n")
    assert len(list((tmp_path / "ingested" / "records").glob("part-*.parquet"))) == 1


def test_validate_counts_what_ingest_refused_and_leaves_its_quarantine_alone(tmp_path):
    raw = data_set(tmp_path / "raw", 20)
    (raw / "overlay_000000.png").write_bytes(b"no")
    invoke(raw, "--workers", 1)
    refused = (tmp_path / "ingested/quarantine/quarantine.jsonl").read_text()
    (tmp_path / "params.yaml").write_text("validate: {min_complete_lots: 0.0, max_missing_log_share: 1.0}\n")
    command = ["validate", "ingested/records", "--out", "ingested"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "settings: params.yaml" in done.stdout
    assert f"what ingest refused, {tmp_path}/ingested/quarantine/quarantine.jsonl" in done.stdout
    assert "19 records passed, 0 quarantined, 1 refused by ingest: ingested/report/index.html" in done.stdout
    assert (tmp_path / "ingested/quarantine/quarantine.jsonl").read_text() == refused != ""
    assert (tmp_path / "ingested/quarantine/validate/quarantine.jsonl").read_text() == ""
    (tmp_path / "params.yaml").write_text("validate: {min_complete_lots: 0.0, max_quarantined_share: 0.04}\n")
    with pytest.raises(GateError, match=r"0\.05 of all items are quarantined, allowed at most 0\.04"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    (tmp_path / "small_lots.yaml").write_text(
        "validate: {min_complete_lots: 0.0, max_missing_log_share: 1.0}\n"
    )
    done = CliRunner().invoke(app, [*command, "--params", "small_lots.yaml"], catch_exceptions=False)
    assert "settings: small_lots.yaml" in done.stdout
    assert "19 records passed" in done.stdout


def test_mark_table_options(tmp_path):
    rows = "\n".join(f"A;1;{x};10;{x / 100 + 1:.3f};0.5" for x in range(-100, 100, 10))
    (tmp_path / "m.csv").write_text("Lot;Wafer;X;Y;dX;dY\n" + rows)
    aliases = {"lot_id": "Lot", "slot": "Wafer", "wafer_x_mm": "X", "wafer_y_mm": "Y", "ovl_x_nm": "dX"}
    columns = [part for pair in aliases.items() for part in ("--column", "=".join(pair))]
    invoke(
        tmp_path / "m.csv", "--out", tmp_path / "out", "--delimiter", ";", *columns, "--column", "ovl_y_nm=dY"
    )
    assert json.loads((tmp_path / "out" / "ingest.json").read_text())["records"] == 1


def public_set(folder, **files: bytes):
    """The public layout: images in any colours, features without names, one integer; nothing else."""
    for i in range(3):
        wafer = {
            f"overlay_prev_{i}.png": png_bytes(Image.new("RGB", (64, 64), (10 * i, 200, 90))),
            f"logs_{i}.json": json.dumps({"features": [0.5, float(i)]}).encode(),
            f"id_{i}.txt": str(i).encode(),
        }
        write(folder, wafer)
    return write(folder, files)


def test_the_public_layout_is_read_and_its_limits_are_said(tmp_path):
    text = invoke(public_set(tmp_path / "raw"), "--out", tmp_path / "out", "--workers", 1).stdout
    assert "not possible          figures in nm" in text
    assert "not possible          supervised training" in text
    for said in ("nothing in nm can be said", "No target maps", "kept as public_id", "called feature_000"):
        assert said in text
    (part,) = (tmp_path / "out" / "records").glob("part-*.parquet")
    records = pq.read_table(part)
    assert records["public_id"].to_pylist() == [0, 1, 2]
    assert records["barcode"].to_pylist() == ["0", "1", "2"]
    assert records.schema.metadata[b"units"] == b"rgb"
    assert records["map"].type.list_size == 3 * 64 * 64
    assert np.isnan(records["map"][0].as_py()).all()
    np.testing.assert_allclose(
        records["prev_map"][2].as_py()[::4096], np.array([20, 200, 90]) / 255, atol=1e-6
    )
    assert "sign" not in json.loads((tmp_path / "out" / "records" / "dataset.json").read_text())


def test_the_public_layout_may_get_its_channel_names_from_a_description(tmp_path):
    raw = public_set(tmp_path / "raw")
    write(raw, {"dataset.json": b'{"format": "mpom", "format_version": 1, "feature_names": ["dose", "t"]}'})
    invoke(raw, "--out", tmp_path / "out", "--workers", 1)
    (part,) = (tmp_path / "out" / "records").glob("part-*.parquet")
    assert log_names_of(pq.read_schema(part)) == ["dose", "t"]


def test_a_scale_for_images_that_are_no_maps_is_answered_with_the_way_out(tmp_path):
    raw = public_set(tmp_path / "raw")
    with pytest.raises(
        GateError, match=r"B channel holds 90 .*; .*leave ingest.scale_nm \(--scale-nm\) unset"
    ):
        invoke(raw, "--out", tmp_path / "out", "--scale-nm", 16, "--workers", 1)


HEADER = "Lot;Wafer;Tool;X;Y;dX;dY\n"


def test_what_is_not_read_of_a_table_is_said(tmp_path):
    rows = "".join(f"A;1;SC1;{x};10;{1 + x / 1000};0.5\n" for x in range(-100, 100, 10))
    (tmp_path / "m.csv").write_text(HEADER + rows)
    names = {"lot_id": "Lot", "slot": "Wafer", "wafer_x_mm": "X", "wafer_y_mm": "Y"}
    names |= {"ovl_x_nm": "dX", "ovl_y_nm": "dY"}
    columns = [part for pair in names.items() for part in ("--column", "=".join(pair))]
    text = invoke(tmp_path / "m.csv", "--out", tmp_path / "out", "--delimiter", ";", *columns).stdout
    assert "m.csv: not read: 'Tool'." in text
    assert "no column exposure" in text


def test_one_run_names_every_column_that_is_missing(tmp_path):
    (tmp_path / "m.csv").write_text(HEADER + "A;1;SC1;0;0;1;1\n")
    with pytest.raises(GateError) as caught:
        invoke(tmp_path / "m.csv", "--out", tmp_path / "out", "--delimiter", ";")
    for name in ("wafer_x_mm", "wafer_y_mm", "ovl_x_nm", "ovl_y_nm", "barcode", "'Tool'", "--column"):
        assert name in str(caught.value)


def test_field_positions_without_the_reference_are_answered_with_the_option(tmp_path):
    header = "barcode,field_x_mm,field_y_mm,mark_x_mm,mark_y_mm,ovl_x_nm,ovl_y_nm\n"
    (tmp_path / "m.csv").write_text(header + "W,0,0,1,1,1,1\n")
    with pytest.raises(GateError, match=r"--reference\) to field"):
        invoke(tmp_path / "m.csv", "--out", tmp_path / "out")


@pytest.mark.parametrize("name", ["export.txt", "export.xlsx", "export"])
def test_a_file_of_no_known_kind_is_refused_by_its_suffix(tmp_path, name):
    (tmp_path / name).write_text(HEADER)
    with pytest.raises(InputError, match=r"format: .*suffix: neither a zip .* nor a mark table"):
        invoke(tmp_path / name, "--out", tmp_path / "out")


def test_mark_tables_in_a_zip_are_answered_with_unpacking(tmp_path):
    write(tmp_path, {"m.zip": zip_of({"m.csv": HEADER.encode()})})
    with pytest.raises(GateError, match="mark tables, which are not read from a zip; unpack it"):
        invoke(tmp_path / "m.zip", "--out", tmp_path / "out")


def test_a_folder_without_anything_says_what_was_looked_for(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=r"nothing to ingest: .*no \.zip, no mark table .*; 0 other files"):
        invoke(tmp_path / "raw", "--out", tmp_path / "out")


def test_errors_are_plain(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        invoke(tmp_path / "nowhere", "--out", tmp_path / "out")
    with pytest.raises(ParamsError, match=r"ingest\.marks\.unit"):
        invoke(tmp_path, "--unit", "furlong", "--out", tmp_path / "out")
    with pytest.raises(ParamsError, match="expected canonical=name"):
        invoke(tmp_path, "--column", "X", "--out", tmp_path / "out")
