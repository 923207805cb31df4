"""`ikddit ingest` shows what became of the data, and ends with a plain message where nothing can be done."""

import json

import pytest
from rawmpom import data_set
from typer.testing import CliRunner

from ikddit.cli import app
from ikddit.errors import InputError, ParamsError


def invoke(*args: object):
    return CliRunner().invoke(app, ["ingest", *map(str, args)], catch_exceptions=False)


def test_counts_reasons_and_capabilities_are_printed(tmp_path):
    raw = data_set(tmp_path / "raw", 4)
    (raw / "overlay_000000.png").write_bytes(b"no")
    result = invoke(raw, "--out", tmp_path / "out", "--workers", 1)
    assert result.exit_code == 0
    words = result.stdout.split()
    for word in ("found", "4", "records", "3", "quarantined", "1", "content", "quarantine.jsonl"):
        assert any(word in shown for shown in words), word
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


def test_mark_table_options(tmp_path):
    rows = "\n".join(f"A;1;{x};10;{x / 100 + 1:.3f};0.5" for x in range(-100, 100, 10))
    (tmp_path / "m.csv").write_text("Lot;Wafer;X;Y;dX;dY\n" + rows)
    aliases = {"lot_id": "Lot", "slot": "Wafer", "wafer_x_mm": "X", "wafer_y_mm": "Y", "ovl_x_nm": "dX"}
    columns = [part for pair in aliases.items() for part in ("--column", "=".join(pair))]
    invoke(
        tmp_path / "m.csv", "--out", tmp_path / "out", "--delimiter", ";", *columns, "--column", "ovl_y_nm=dY"
    )
    assert json.loads((tmp_path / "out" / "ingest.json").read_text())["records"] == 1


def test_errors_are_plain(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        invoke(tmp_path / "nowhere", "--out", tmp_path / "out")
    with pytest.raises(ParamsError, match=r"ingest\.marks\.unit"):
        invoke(tmp_path, "--unit", "furlong", "--out", tmp_path / "out")
    with pytest.raises(ParamsError, match="expected canonical=name"):
        invoke(tmp_path, "--column", "X", "--out", tmp_path / "out")
