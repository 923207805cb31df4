"""The prepare stage, from validated parts to splits."""

import hashlib
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.encode import encode_records
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.prepare import prepare
from ikddit.dataset.splits import SPLITS
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.errors import GateError, InputError
from ikddit.params import PrepareParams

PARAMS = PrepareParams(val_share=0.1, test_share=0.2, unseen_combinations=1, max_lines=4, values_per_line=3)


def parts(folder, table: pa.Table, cuts=(0.4,)):
    folder.mkdir(parents=True)
    edges = [0, *(int(c * len(table)) for c in cuts), len(table)]
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        pq.write_table(table.slice(start, end - start), folder / f"part-{i:05d}.parquet", compression="zstd")
    return folder


@pytest.fixture
def table(make_records) -> pa.Table:
    # Scanner x reticle change with the lot, so that a combination can be held out.
    return make_records(120, wafers_per_lot=3, scanners=4, reticles=3)


def splits_of(folder) -> dict[str, PreparedSplit]:
    return {name: PreparedSplit.open(folder / f"{name}.arrow") for name in SPLITS}


def test_every_wafer_is_in_exactly_one_split_in_order_of_exposure(tmp_path, table) -> None:
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    summary = prepare(parts(tmp_path / "v", shuffled), tmp_path / "p", PARAMS, 0)
    splits = splits_of(tmp_path / "p")
    barcodes = [b for split in splits.values() for b in split.barcode]
    assert sorted(barcodes) == sorted(table.column("barcode").to_pylist())
    for name, split in splits.items():
        keys = list(zip(split.table["exposed_at"].to_pylist(), split.barcode, strict=True))
        assert keys == sorted(keys)
        assert len(split) == summary["splits"][name]["wafers"] > 0
        assert {summary["lots"][lot] for lot in split.table["lot_id"].to_pylist()} == {name}
    assert json.loads((tmp_path / "p/splits.json").read_text()) == summary
    assert (summary["records"], summary["without_target"], summary["method"]) == (120, 0, "time")


def test_rows_are_what_encode_records_gives(tmp_path, table) -> None:
    prepare(parts(tmp_path / "v", table), tmp_path / "p", PARAMS, 0)
    encoded = encode_records(
        table,
        Normaliser.load(tmp_path / "p/normaliser.json"),
        Vocabularies.load(tmp_path / "p/vocabularies.json"),
        PARAMS.max_lines,
        PARAMS.values_per_line,
    )
    row = {barcode: i for i, barcode in enumerate(encoded.column("barcode").to_pylist())}
    for split in splits_of(tmp_path / "p").values():
        assert split.table.equals(encoded.take([row[b] for b in split.barcode]), check_metadata=True)


def test_normaliser_and_vocabularies_come_from_train_alone(tmp_path, table) -> None:
    summary = prepare(parts(tmp_path / "a", table), tmp_path / "pa", PARAMS, 0)
    train = [summary["lots"][lot] == "train" for lot in table.column("lot_id").to_pylist()]
    changed = table.to_pydict()
    for i, in_train in enumerate(train):
        if not in_train:
            changed["map"][i] = [v * 100 for v in changed["map"][i]]
            changed["log_features"][i] = [999.0] * 4
            changed["log_lines"][i] = [f"SURPRISE {i}"] * 5
            changed["chamber_id"][i] = "NEW"
    other = pa.table(changed, schema=table.schema)
    prepare(parts(tmp_path / "b", other), tmp_path / "pb", PARAMS, 0)
    for name in ("normaliser.json", "vocabularies.json"):
        assert (tmp_path / "pa" / name).read_bytes() == (tmp_path / "pb" / name).read_bytes()
    test = PreparedSplit.open(tmp_path / "pb/test.arrow")
    assert set(test.line_templates[test.line_templates > 0]) == {1}
    assert np.array_equal(splits_of(tmp_path / "pa")["train"].map, splits_of(tmp_path / "pb")["train"].map)


def test_normaliser_is_that_of_the_train_rows(tmp_path, table) -> None:
    summary = prepare(parts(tmp_path / "v", table), tmp_path / "p", PARAMS, 0)
    keep = [summary["lots"][lot] == "train" for lot in table.column("lot_id").to_pylist()]
    train = table.filter(pa.array(keep))
    maps = np.array(train.column("map").to_pylist()).reshape(-1, 2, 64, 64)
    found = Normaliser.load(tmp_path / "p/normaliser.json")
    assert found.sigma_nm == pytest.approx(np.nanstd(maps), rel=1e-6)
    logs = np.array(train.column("log_features").to_pylist())
    assert found.log_mean == pytest.approx(np.nanmean(logs, 0), rel=1e-5)


def test_the_same_seed_gives_the_same_bytes(tmp_path, table) -> None:
    digests = []
    for name, cuts in (("a", (0.4,)), ("b", (0.1, 0.7))):
        prepare(parts(tmp_path / name, table, cuts), tmp_path / f"p{name}", PARAMS, 0)
        digests.append(
            {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / f"p{name}").iterdir()}
        )
    assert digests[0] == digests[1]
    assert set(digests[0]) == {
        "train.arrow", "val.arrow", "test.arrow", "test_unseen.arrow",
        "normaliser.json", "vocabularies.json", "tokenizer.json", "splits.json", "dataset.json",
    }  # fmt: skip


def test_dataset_facts_travel_along(tmp_path, table) -> None:
    source = parts(tmp_path / "v", table)
    (source / "dataset.json").write_text('{"seeds": {"fab_seed": 3}}')
    prepare(source, tmp_path / "p", PARAMS, 0)
    assert json.loads((tmp_path / "p/dataset.json").read_text()) == {"seeds": {"fab_seed": 3}}


def test_what_prepare_did_not_write_is_named_with_the_way_out(tmp_path) -> None:
    for load, name in (
        (Normaliser.load, "normaliser.json"),
        (Vocabularies.load, "vocabularies.json"),
        (PreparedSplit.open, "train.arrow"),
    ):
        with pytest.raises(InputError, match=rf"{name}: .*; run `dvc repro prepare`"):
            load(tmp_path / name)


def test_records_without_target_are_left_out_and_counted(tmp_path, table) -> None:
    columns = table.to_pydict()
    for i in range(0, 120, 10):
        columns["map"][i], columns["valid"][i] = [np.nan] * 8192, [0] * 4096
    summary = prepare(
        parts(tmp_path / "v", pa.table(columns, schema=table.schema)), tmp_path / "p", PARAMS, 0
    )
    assert summary["without_target"] == 12
    assert sum(part["wafers"] for part in summary["splits"].values()) == 108


def test_records_without_any_target_cannot_be_learned_from(tmp_path, make_records) -> None:
    with pytest.raises(GateError, match=r"none of the 6 records has a target map.*ikddit generate"):
        prepare(parts(tmp_path / "v", make_records(6, target=False)), tmp_path / "p", PARAMS, 0)
    assert not (tmp_path / "p").exists()


def test_rgb_records_cannot_be_learned_from(tmp_path, make_records) -> None:
    with pytest.raises(GateError, match=r"RGB images without a scale in nm.*ingest\.scale_nm"):
        prepare(parts(tmp_path / "v", make_records(6, units="rgb")), tmp_path / "p", PARAMS, 0)


def test_an_empty_folder_is_refused(tmp_path) -> None:
    with pytest.raises(GateError, match=r"no part-\*\.parquet"):
        prepare(tmp_path, tmp_path / "p", PARAMS, 0)


def test_parts_that_do_not_fit_together_are_refused(tmp_path, make_records) -> None:
    source = parts(tmp_path / "v", make_records(6))
    pq.write_table(make_records(2, log_names=["other"]), source / "part-00009.parquet")
    with pytest.raises(GateError, match=r"part-00009\.parquet has another schema"):
        prepare(source, tmp_path / "p", PARAMS, 0)


def test_foreign_records_without_lots_and_times_are_split_by_hash(tmp_path, make_records) -> None:
    table = make_records(40, lots=False, times=False)
    summary = prepare(parts(tmp_path / "v", table), tmp_path / "p", PARAMS, 0)
    assert summary["method"] == "hash"
    assert summary["splits"]["train"]["from"] is None
    assert [summary["splits"][n]["wafers"] for n in ("val", "test")] == [4, 8]


def test_a_failed_run_leaves_the_previous_result(tmp_path, table, make_records) -> None:
    prepare(parts(tmp_path / "v", table), tmp_path / "p", PARAMS, 0)
    before = (tmp_path / "p/train.arrow").read_bytes()
    with pytest.raises(GateError):
        prepare(parts(tmp_path / "w", make_records(6, target=False)), tmp_path / "p", PARAMS, 0)
    assert (tmp_path / "p/train.arrow").read_bytes() == before


def test_wafers_that_lose_log_lines_are_counted(tmp_path, table) -> None:
    lines = table.column("log_lines").to_pylist()
    lines[3] = [f"line {i}" for i in range(5)]
    lines[4] = None
    place = table.schema.get_field_index("log_lines")
    field = table.schema.field("log_lines")
    summary = prepare(
        parts(tmp_path / "v", table.set_column(place, field, pa.array(lines, field.type))),
        tmp_path / "p",
        PARAMS,
        0,
    )
    assert summary["with_lines_cut"] == 1
