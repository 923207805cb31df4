"""The quality gate: bad records move to quarantine, a bad data set stops the pipeline, both say why."""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ikddit.errors import GateError, InputError
from ikddit.mpom.gates import Gate
from ikddit.mpom.rules import Rule
from ikddit.mpom.validate import validate
from ikddit.overlay.grid import wafer_grid
from ikddit.params import ValidateParams

N = 150
PARAMS = ValidateParams(wafers_per_lot=5, max_quarantined_share=0.2)


@dataclass
class Outcome:
    folder: Path
    error: str | None
    metrics: dict[str, Any]

    @property
    def quarantine(self) -> dict[str, dict[str, Any]]:
        lines = (self.folder / "quarantine/quarantine.jsonl").read_text().splitlines()
        return {entry["item"]: entry for entry in map(json.loads, lines)}

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "reports/validation.json").read_text())

    @property
    def page(self) -> str:
        return (self.folder / "reports/index.html").read_text()

    @property
    def validated(self) -> list[str]:
        parts = sorted((self.folder / "validated").glob("*.parquet"))
        return [b for part in parts for b in pq.read_table(part)["barcode"].to_pylist()]


def judge(
    folder: Path, table: pa.Table, facts: dict[str, Any] | None = None, rejected: int = 0, **params
) -> Outcome:
    records = folder / "records"
    records.mkdir(parents=True)
    third = len(table) // 3
    for i, (start, size) in enumerate([(0, third), (third, third), (2 * third, len(table))]):
        if third:
            pq.write_table(table.slice(start, size), records / f"part-{i:05d}.parquet", compression="zstd")
    if facts is not None:
        (records / "dataset.json").write_text(json.dumps(facts))
    (folder / "ingest").mkdir()
    (folder / "ingest/quarantine.jsonl").write_text('{"item": "x"}\n' * rejected)
    settings = PARAMS.model_copy(update=params)
    error, metrics = None, {}
    try:
        metrics = validate(
            records,
            folder / "validated",
            folder / "quarantine",
            folder / "reports",
            settings,
            folder / "ingest",
        )
    except GateError as gate:
        error = str(gate)
    return Outcome(folder, error, metrics)


@pytest.fixture(scope="module")
def spoilt(make_records) -> pa.Table:
    """150 wafers in 30 lots; eleven of them, one per lot, are bad in one way each."""
    table = make_records(N)
    data = table.to_pydict()
    data["map"][0][2000] = 200.0
    data["prev_map"][5][2000] = -61.0
    data["valid"][10] = [0] * 4096
    data["map"][10] = [np.nan if i > 2000 else v for i, v in enumerate(data["map"][10])]
    data["valid"][15][2000] = 0
    data["barcode"][20] = data["barcode"][21]
    data["scanner_id"][25] = "SC99"
    data["exposed_at"][31] += timedelta(days=1)
    data["exposed_at"][35] = None
    data["log_features"][40][0] = 1e8
    data["log_features"][45][1] = float("inf")
    data["log_features"][50][0] = -9999.0
    return pa.table(data, schema=table.schema)


@pytest.fixture(scope="module")
def bad_rows(spoilt: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    facts = {"ids": {"scanner_id": ["SC1", "SC2"], "layer": ["A1"]}, "log_ranges": {"lens_temp_c": [0, 100]}}
    return judge(tmp_path_factory.mktemp("bad"), spoilt, facts, rejected=3)


@pytest.mark.parametrize(
    ("barcode", "field", "reason"),
    [
        ("W000000", "map", "largest value 200 nm, allowed at most 60 nm"),
        ("W000005", "prev_map", "smallest value -61 nm, allowed at least -60 nm"),
        ("W000010", "valid", "valid on 0 of the usable pixels, allowed at least 0.5"),
        ("W000015", "valid", "mask and map disagree on 1 pixels, allowed at most 0"),
        ("W000021", "barcode", "'W000021' is given to several records"),
        ("W000025", "scanner_id", "'SC99' is not a known id (SC1, SC2)"),
        ("W000031", "exposed_at", "not in the order of the slots of its lot"),
        ("W000035", "exposed_at", "missing"),
        ("W000040", "log_features.dose_mj_cm2", "1e+08, allowed"),
        ("W000045", "log_features.lens_temp_c", "inf, allowed 0 to 100"),
        ("W000050", "log_features.dose_mj_cm2", "-9999, allowed"),
    ],
)
def test_a_bad_record_is_quarantined_with_its_reason(bad_rows, barcode, field, reason) -> None:
    entry = bad_rows.quarantine[barcode]
    assert entry["field"] == field
    assert entry["reason"].startswith(reason)
    assert entry["file"].startswith("lots/L")
    assert entry["remedy"]
    assert entry["stage"] == "validate"


def test_further_reasons_of_the_same_record_are_kept(bad_rows) -> None:
    assert [also["reason"] for also in bad_rows.quarantine["W000010"]["also"]] == [
        f"mask and map disagree on {wafer_grid().usable.reshape(-1)[:2001].sum()} pixels, allowed at most 0"
    ]


def test_good_records_survive_unchanged_and_counts_add_up(bad_rows, spoilt) -> None:
    bad = [0, 5, 10, 15, 20, 21, 25, 31, 35, 40, 45, 50]
    good = spoilt.filter(pa.array([i not in bad for i in range(N)]))
    assert bad_rows.error is None
    assert bad_rows.validated == good["barcode"].to_pylist()
    parts = sorted((bad_rows.folder / "validated").glob("*.parquet"))
    read = pa.concat_tables([pq.read_table(p) for p in parts])
    # As text, since NaN equals nothing.
    assert repr(read.slice(0, 30).to_pylist()) == repr(good.slice(0, 30).to_pylist())
    assert all(pq.read_schema(p).equals(spoilt.schema) for p in parts)
    m = bad_rows.metrics
    assert (m["found"], m["quarantined_by_ingest"], m["items"]) == (N + 3, 3, N)
    assert m["items"] == m["records"] + m["quarantined"]
    assert m["quarantined"] == len(bad) == sum(m["quarantined_by_field"].values())
    assert m["quarantined_share"] == pytest.approx((3 + len(bad)) / (N + 3))


def test_parts_without_bad_records_are_copied_byte_by_byte(bad_rows) -> None:
    last = "part-00002.parquet"
    source, target = bad_rows.folder / "records" / last, bad_rows.folder / "validated" / last
    assert source.read_bytes() == target.read_bytes()


def test_a_part_that_loses_a_record_is_written_as_ingest_writes_parts(bad_rows) -> None:
    group = pq.ParquetFile(bad_rows.folder / "validated/part-00000.parquet").metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    codecs = {column.path_in_schema.partition(".")[0]: column.compression for column in columns}
    assert (codecs["map"], codecs["prev_valid"], codecs["barcode"]) == ("SNAPPY", "SNAPPY", "ZSTD")


def test_dataset_facts_travel_along(bad_rows) -> None:
    assert json.loads((bad_rows.folder / "validated/dataset.json").read_text())["ids"]["layer"] == ["A1"]


def test_the_report_lists_every_expectation_and_what_broke_it(bad_rows) -> None:
    results = {(r["suite"], r["column"], r["expectation"]): r for r in bad_rows.report["results"]}
    broken = results["records", "map_max", "expect_column_values_to_be_between"]
    assert (broken["success"], broken["broken_by"]) == (False, 1)
    assert results["records", "barcode", "expect_column_values_to_be_unique"]["broken_by"] == 2
    assert {r["suite"] for r in bad_rows.report["results"]} == {
        "records", "tool_logs", "log_channels", "lots", "data_set",
    }  # fmt: skip
    assert bad_rows.report["passed"]


def pages(folder: Path) -> list[Path]:
    found = sorted((folder / "reports").rglob("*.html"))
    assert len(found) == 12
    return found


def test_pages_are_readable_offline(bad_rows) -> None:
    for page in pages(bad_rows.folder):
        text = page.read_text()
        assert not re.search(r"https?://|@import|url\(", text), page
        assert not re.search(r"<(script|img|link|iframe)\b[^>]*\b(src|href)=", text), page
        for link in re.findall(r'href="([^"#]+)"', text):
            assert (page.parent / link).resolve().is_file(), (page, link)


def test_data_docs_show_the_failures(bad_rows) -> None:
    (page,) = (bad_rows.folder / "reports/data_docs/validations/records").rglob("*.html")
    text = page.read_text()
    assert "1 unexpected values found" in text
    assert "W000000" in text
    assert "largest value 200 nm" in bad_rows.page


def test_the_same_records_give_the_same_bytes(bad_rows, spoilt, tmp_path) -> None:
    facts = json.loads((bad_rows.folder / "records/dataset.json").read_text())
    again = judge(tmp_path / "again", spoilt, facts, rejected=3)

    def digests(folder: Path) -> dict[str, str]:
        files = [
            p for name in ("validated", "quarantine", "reports") for p in sorted((folder / name).rglob("*"))
        ]
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in files
            if p.is_file()
        }

    assert digests(again.folder) == digests(bad_rows.folder)


@pytest.fixture(scope="module")
def bad_set(make_records, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Half of the lots have lost most wafers, a channel is dead, and ingest rejected much."""
    table = make_records(60)
    data = table.filter(
        pa.array(
            [
                lot < "L0006" or slot == 1
                for lot, slot in zip(table["lot_id"].to_pylist(), table["slot"].to_pylist(), strict=True)
            ]
        )
    ).to_pydict()
    for row in data["log_features"]:
        row[2] = float("nan")
    return judge(tmp_path_factory.mktemp("set"), pa.table(data, schema=table.schema), rejected=30)


def test_a_bad_data_set_stops_with_every_failed_expectation_and_the_observed_value(bad_set) -> None:
    assert bad_set.error is not None
    assert "missing share of align_tx_nm 1, allowed at most 0.5" in bad_set.error
    assert "share of complete lots 0.5, allowed at least 0.9" in bad_set.error
    assert "0.454545 of all items are quarantined, allowed at most 0.2" in bad_set.error


def test_a_stopped_gate_leaves_its_report_but_no_records(bad_set) -> None:
    assert not (bad_set.folder / "validated").exists()
    assert bad_set.report["passed"] is False
    assert len(bad_set.report["failed"]) == 3
    assert 'Quality gate: <span class="bad">stopped' in bad_set.page
    assert (bad_set.folder / "quarantine/quarantine.jsonl").read_text() == ""


def test_no_records_at_all_stop_the_pipeline(make_records, tmp_path) -> None:
    outcome = judge(tmp_path / "none", make_records(1).slice(0, 0), rejected=4)
    assert outcome.error is not None
    assert "0 records are left, allowed at least 1" in outcome.error
    assert "1 of all items are quarantined" in outcome.error


def test_a_stopped_gate_empties_what_a_link_leads_to(make_records, tmp_path) -> None:
    elsewhere, link = tmp_path / "larger_disk", tmp_path / "out" / "validated"
    elsewhere.mkdir()
    link.parent.mkdir()
    link.symlink_to(elsewhere)
    assert judge(tmp_path / "out", make_records(3), min_valid_share=1.0, rejected=9).error is not None
    assert link.is_symlink()
    assert not elsewhere.exists()


def test_a_stopped_gate_says_why_most_records_were_rejected(make_records, tmp_path) -> None:
    data = make_records(6).to_pydict()
    for row in range(6):
        data["valid"][row] = [1 if i == 2000 else 0 for i in range(4096)]
        data["map"][row] = [v if i % 4096 == 2000 else np.nan for i, v in enumerate(data["map"][row])]
    data["barcode"][5] = data["barcode"][4]
    outcome = judge(tmp_path / "sparse", pa.table(data, schema=make_records(1).schema))
    assert outcome.error is not None
    assert "4 records for valid, for example W000000: valid on 0.000323834 of the usable" in outcome.error
    assert "set ingest.marks.interpolate (--interpolate), or lower validate.min_valid_share" in outcome.error


def test_foreign_rgb_records_without_ids_logs_and_targets_pass_and_it_is_said(make_records, tmp_path) -> None:
    nothing = {name: [None] * 6 for name in ("slot", "layer", "scanner_id", "log_lines")}
    table = make_records(6, units="rgb", target=False, times=False, lots=False, log_names=[], **nothing)
    outcome = judge(tmp_path / "rgb", table)
    assert outcome.error is None
    assert outcome.metrics["records"] == 6
    assert outcome.report["notes"] == [
        "Maps are RGB without a scale: no statement in nm was checked.",
        "No record has lot_id: lot completeness not judged.",
        "No record has exposed_at: time order not judged.",
        "No record has a target map: only generation with a trained model is possible.",
    ]


def test_a_broken_check_is_no_verdict_on_the_data() -> None:
    frame = pd.DataFrame({"record_row": [0], "record": ["W"], "text": ["a"]})
    gate = Gate()
    with pytest.raises(
        GateError, match=r"check one/.*\(absent\) is broken, which says nothing about the data"
    ):
        gate.run("one", frame, [Rule("absent", "", present=True)])
    with pytest.raises(GateError, match=r"check two/.*\(text\) is broken"):
        gate.run("two", frame, [Rule("text", "", low=0.0, high=1.0)])


def test_great_expectations_draws_no_progress_bars(capfd) -> None:
    Gate().run(
        "quiet", pd.DataFrame({"record_row": [0], "record": ["W"]}), [Rule("record", "", present=True)]
    )
    assert capfd.readouterr().err == ""


def test_parts_that_are_not_records_are_refused(tmp_path, make_records) -> None:
    (tmp_path / "r").mkdir()
    pq.write_table(make_records(2).drop_columns(["valid"]), tmp_path / "r/part-00000.parquet")
    arguments = (tmp_path / "v", tmp_path / "q", tmp_path / "reports", PARAMS)
    with pytest.raises(GateError, match=r"part-00000\.parquet: not the record schema.*\['valid'\]"):
        validate(tmp_path / "r", *arguments)
    pq.write_table(make_records(2, log_names=["a", "a"]), tmp_path / "r/part-00000.parquet")
    with pytest.raises(GateError, match=r"named twice: \['a'\]"):
        validate(tmp_path / "r", *arguments)
    pq.write_table(make_records(2), tmp_path / "r/part-00000.parquet")
    pq.write_table(make_records(2, log_names=["a"]), tmp_path / "r/part-00001.parquet")
    with pytest.raises(GateError, match=r"part-00001\.parquet: other log channels"):
        validate(tmp_path / "r", *arguments)


@pytest.mark.parametrize("text", ["{", "[1]", "\x80"])
def test_a_description_that_is_no_json_object_is_refused_by_name(tmp_path, text) -> None:
    (tmp_path / "dataset.json").write_text(text, encoding="latin-1")
    arguments = (tmp_path / "v", tmp_path / "q", tmp_path / "reports", PARAMS)
    with pytest.raises(InputError, match=r"dataset\.json: json: .*; write the records again"):
        validate(tmp_path, *arguments)


@pytest.mark.parametrize(
    "facts", [{"ids": ["A1"]}, {"log_ranges": {"a": 3}}, {"log_ranges": {"a": ["x", 1]}}]
)
def test_malformed_declarations_are_refused_by_name(make_records, tmp_path, facts) -> None:
    outcome = judge(tmp_path / "facts", make_records(3), facts)
    assert outcome.error is not None
    assert "dataset.json: ids must be" in outcome.error
