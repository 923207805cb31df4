"""Inception features of measured maps: by barcode, those of the maps in a split, and absent with a reason."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fid_fakes import made_state

from ikddit.errors import ModelError
from ikddit.evaluation.fid.inception import InceptionFeatures
from ikddit.evaluation.fid.measured import MeasuredFeatures, write_measured
from ikddit.evaluation.fid.weights import NoWeights, Weights
from ikddit.mpom.parts import lists_to_numpy
from ikddit.params import FidParams

PARAMS = FidParams(dims=[64], device="cpu", dtype="fp32", batch=4)
NOT_MEASURED = 3


@pytest.fixture(scope="module")
def weights():
    return Weights(made_state(), "made.pth", "ab" * 32)


@pytest.fixture
def table(make_records):
    """Eleven wafers, of which one has no map."""
    table = make_records(11, seed=4)
    index = table.schema.get_field_index("valid")
    valid = lists_to_numpy(table["valid"], 0).copy()
    valid[NOT_MEASURED] = 0
    column = pa.FixedSizeListArray.from_arrays(pa.array(valid.ravel()), type=table.schema.field(index).type)
    return table.set_column(index, table.schema.field(index), column)


@pytest.fixture
def records(table, tmp_path):
    """The same in two parts."""
    folder = tmp_path / "validated"
    folder.mkdir()
    pq.write_table(table.slice(0, 6), folder / "part-00000.parquet")
    pq.write_table(table.slice(6), folder / "part-00001.parquet")
    (folder / "dataset.json").write_text(json.dumps({"units": "nm", "scale_nm": 8.0}))
    return folder


def test_features_are_found_by_barcode_whatever_the_order(table, records, weights, tmp_path):
    write_measured(records, PARAMS, weights, tmp_path / "measured")
    found = MeasuredFeatures.open(tmp_path / "measured")
    assert found.facts == {
        "weights": {"source": "made.pth", "sha256": "ab" * 32},
        "scale_nm": 8.0,
        "dtype": "fp32",
        "missing": {},
        "spaces": ["inception_64"],
        "n": 10,
    }
    rows = [9, 0, 7]
    valid = lists_to_numpy(table["valid"], 0).reshape(-1, 64, 64)[rows]
    maps = lists_to_numpy(table["map"], np.nan).reshape(-1, 2, 64, 64)[rows]
    alone = InceptionFeatures(weights, [64], 8.0)(np.where(valid[:, None] != 0, maps, 0), valid)
    codes = [table["barcode"][row].as_py() for row in rows]
    np.testing.assert_allclose(found.of(codes)["inception_64"], alone["inception_64"], rtol=1e-5)
    with pytest.raises(ModelError, match=r"no map of wafer .*dvc repro fid_measured"):
        found.of([table["barcode"][NOT_MEASURED].as_py()])


def test_without_weights_nothing_is_computed_and_the_reason_is_kept(records, tmp_path):
    write_measured(records, PARAMS, NoWeights("no network"), tmp_path / "measured")
    found = MeasuredFeatures.open(tmp_path / "measured")
    assert found.facts["weights"] == {"reason": "no network"}
    assert found.facts["missing"] == {"inception_64": "no weights"}
    assert found.of(["anybody"]) == {}


def test_maps_without_a_unit_have_no_images(records, weights, tmp_path):
    (records / "dataset.json").write_text(json.dumps({"units": "rgb"}))
    write_measured(records, PARAMS, weights, tmp_path / "measured")
    assert "rgb" in MeasuredFeatures.open(tmp_path / "measured").facts["weights"]["reason"]


def test_without_a_scale_the_range_is_six_sd_of_the_measured_marks(table, records, tmp_path):
    (records / "dataset.json").write_text(json.dumps({"units": "nm"}))
    write_measured(records, PARAMS, NoWeights("none"), tmp_path / "measured")
    valid = np.broadcast_to(lists_to_numpy(table["valid"], 0).reshape(11, 1, -1) != 0, (11, 2, 4096))
    expected = 6 * np.std(lists_to_numpy(table["map"], np.nan).reshape(11, 2, -1)[valid].astype(np.float64))
    assert MeasuredFeatures.open(tmp_path / "measured").facts["scale_nm"] == pytest.approx(expected)


def test_a_damaged_folder_is_named_with_the_way_out(records, tmp_path):
    write_measured(records, PARAMS, NoWeights("none"), tmp_path / "measured")
    (tmp_path / "measured" / "barcodes.npy").write_bytes(b"cut")
    with pytest.raises(ModelError, match="dvc repro fid_measured"):
        MeasuredFeatures.open(tmp_path / "measured")
