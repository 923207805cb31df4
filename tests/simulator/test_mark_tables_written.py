"""A simulated lot as mark tables becomes the records that its MPOM items become, without their 8 bits."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ikddit.errors import InputError
from ikddit.mpom.ingest import ingest
from ikddit.params import IngestParams, SimulateParams
from ikddit.simulator.constants import Fab
from ikddit.simulator.wafers import draw_lots, lot_numbers
from ikddit.simulator.writer import write_dataset


def records(raw: Path, **settings) -> list[dict]:
    out = raw.parent / f"{raw.name}-out"
    where = (out / "records", out / "quarantine", out / "report.json")
    report = ingest(raw, *where, IngestParams.model_validate({"workers": 1, **settings}))
    assert report["found"] == report["records"]
    return pq.read_table(sorted((out / "records").glob("part-*.parquet"))).to_pylist()


@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_tables_hold_the_drawn_maps_and_ids(tmp_path, layout):
    params = SimulateParams(lots=1, layout=layout)
    write_dataset(params, tmp_path / "tables", workers=1)
    write_dataset(params.model_copy(update={"layout": "zip"}), tmp_path / "items", workers=1)
    wafers = draw_lots(Fab.build(params.fab_seed), params, [int(lot_numbers(params)[0])])
    found, items = records(tmp_path / "tables"), records(tmp_path / "items")
    assert [r["barcode"] for r in found] == wafers.barcode
    for i, (record, item) in enumerate(zip(found, items, strict=True)):
        for name, mask in (("map", "valid"), ("prev_map", "prev_valid")):
            valid = getattr(wafers, mask)[i].ravel() == 1
            assert np.array_equal(np.array(record[mask]) == 1, valid)
            expected = getattr(wafers, name)[i].reshape(2, -1)[:, valid]
            np.testing.assert_allclose(
                np.array(record[name]).reshape(2, -1)[:, valid], expected, rtol=1e-6, atol=1e-6
            )
        for name in ("lot_id", "slot", "chuck_id", "prev_reticle_id", "exposed_at", "log_lines"):
            assert record[name] == item[name]
        np.testing.assert_array_equal(record["log_features"], item["log_features"])


def test_the_floor_travels_along_and_a_contradiction_is_refused(tmp_path):
    written = write_dataset(SimulateParams(lots=1, layout="parquet"), tmp_path / "raw", workers=1)
    records(tmp_path / "raw")
    described = json.loads((tmp_path / "raw-out" / "records" / "dataset.json").read_text())
    assert described["floor"] == written["floor"]
    with pytest.raises(InputError, match=r"sign: 'current_minus_previous', but ingest\.marks\.sign is"):
        records(tmp_path / "raw", marks={"sign": "previous_minus_current"})
