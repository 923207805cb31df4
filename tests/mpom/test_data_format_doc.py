"""docs/data-format.md is true: it names what the code reads and writes, and its example prints what it says."""

import doctest
import json
import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
from rawmpom import SCALE_NM, data_set
from typer.testing import CliRunner

from ikddit.cli import app
from ikddit.errors import GateError
from ikddit.mpom import archive, marks, survey, tables
from ikddit.mpom.encoding import nm_from_rgb, rgb_from_nm
from ikddit.mpom.schema import record_schema
from ikddit.mpom.source import ROLES, classify
from ikddit.overlay.grid import wafer_grid
from ikddit.params import IngestParams, MarksParams, SimulateParams
from ikddit.simulator import writer

DOC = (Path(__file__).parents[2] / "docs" / "data-format.md").read_text(encoding="utf-8")
SCHEMA = record_schema(["dose_mj_cm2", "lens_temp_c"])


def section(title: str) -> str:
    """Text of a section, up to the next one of the same level."""
    level = title.partition(" ")[0]
    return DOC.split(f"\n{title}\n")[1].split(f"\n{level} ")[0]


def named(text: str) -> set[str]:
    return set(re.findall(r"`([\w.]+)`", text))


def test_every_field_of_a_record_has_its_row_and_no_other():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section("## Records"), re.MULTILINE)
    assert [name for name, _ in rows] == SCHEMA.names
    for name, kind in rows:
        field = SCHEMA.field(name)
        assert ("never null" in kind) == (not field.nullable), name
        size = getattr(field.type, "list_size", None)
        if name != "log_features" and size is not None:
            assert f"[{size}]" in kind, name
        value = getattr(field.type, "value_type", field.type)
        assert str(value).partition("[")[0] in kind, name


def test_the_schemas_metadata_are_named():
    assert {key.decode() for key in SCHEMA.metadata} <= named(section("## Records"))


def test_every_column_of_a_mark_table_is_named_and_every_setting():
    text = section("## Mark tables")
    assert {*tables.NUMBERS, *tables.TEXTS, *tables.UNUSED} <= named(text)
    assert set(MarksParams.model_fields) <= named(text)
    for cell in tables.NULLS:
        assert not cell or f"`{cell}`" in text
    for bound in (marks.MAX_MEDIAN_NM, marks.MIN_MEDIAN_NM, marks.MAX_MARK_NM, marks._POSITION_LIKE_NM):
        assert f"{bound:g}" in text


def test_every_file_of_an_item_is_named():
    for name in re.findall(r"^\| `(\w+_<key>\.\w+)` \|", section("## MPOM folder"), re.MULTILINE):
        assert classify(name.replace("<key>", "000001")) is not None
    for role in ROLES:
        assert f"| `{role}_<key>." in DOC


def test_what_the_simulator_writes_is_named(tmp_path):
    params = SimulateParams(lots=1, npz=True)
    written = writer.write_dataset(params, tmp_path / "raw", workers=1)
    keys = {*written, *(key for key, _, _ in survey._KEYS), "log_ranges", "pitch_mm"}
    assert keys <= named(section("### dataset.json"))
    raw = survey.survey(tmp_path / "raw", IngestParams())
    (lot,) = (tmp_path / "raw" / "lots").glob("*.zip")
    with lot.open("rb") as handle:
        archived = archive.open_zip(handle, lot.name)
        logs = json.loads(archived.read(next(n for n in archived.namelist() if n.endswith(".json"))))
    text = named(section("## MPOM folder"))
    assert {*logs, *logs["ids"]} <= text
    assert raw.layout.scale_nm == params.scale_nm


def test_every_layout_of_the_simulator_is_named():
    layouts = get_args(SimulateParams.model_fields["layout"].annotation)
    assert {*layouts, "simulate.layout"} <= named(DOC)


def test_the_formula_is_the_codes():
    grid = wafer_grid().usable.astype("uint8")
    dx = 3.3
    code = round(127.5 + dx * 127.5 / SCALE_NM)
    rgb = rgb_from_nm(grid * dx * [[[1.0]], [[0.0]]], grid, SCALE_NM)
    assert tuple(rgb[32, 32]) == (code, 128, 255)
    assert tuple(rgb[0, 0]) == (0, 0, 0)
    nm, _ = nm_from_rgb(rgb, SCALE_NM, "a.png")
    assert nm[0, 32, 32] == pytest.approx((code - 127.5) * SCALE_NM / 127.5)
    assert int(grid.sum()) == 3088
    assert "R = round(127.5 + dx * 127.5 / scale_nm)" in DOC
    assert f"({int(grid.sum()):,} of them)" in DOC


def test_quarantine_lines_and_counts_are_named(tmp_path):
    raw = data_set(tmp_path / "raw", 2)
    (raw / "overlay_000000.png").write_bytes(b"no")
    done = CliRunner().invoke(app, ["ingest", str(raw), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert done.exit_code == 0
    line = json.loads((tmp_path / "out/quarantine/quarantine.jsonl").read_text())
    text = section("## Quarantine and counts")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert rows == [*line, "also"]
    assert list(json.loads(re.search(r"```json\n(.*?)\n```", text, re.DOTALL)[1])) == list(line)
    assert {"found", "records", "quarantined", "quarantined_by_field"} <= named(text)


def test_the_worked_example_prints_what_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = section("### Worked example")
    Path("overlay_export.csv").write_text(re.search(r"```csv\n(.*?)```", text, re.DOTALL)[1])
    steps = re.findall(r"^\$ ikddit (.*)\n((?:(?!\$ |```).*\n)*)", text, re.MULTILINE)
    assert len(steps) == 2
    (bad, refused), (good, shown) = steps
    with pytest.raises(GateError) as caught:
        CliRunner().invoke(app, shlex.split(bad), catch_exceptions=False)
    assert f"GateError: {caught.value}" == refused.strip()
    line = Path("ingested/quarantine/quarantine.jsonl").read_text().splitlines()[0]
    assert line in section("## Quarantine and counts")
    done = CliRunner().invoke(app, shlex.split(good), catch_exceptions=False)
    assert done.stdout.strip() == shown.strip()
    session = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    test = doctest.DocTestParser().get_doctest(session, {}, "worked example", None, 0)
    result = doctest.DocTestRunner().run(test)
    assert (result.attempted, result.failed) == (6, 0)
