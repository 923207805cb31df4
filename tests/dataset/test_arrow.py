"""Prepared files are mapped, not copied, and damaged ones are refused."""

import numpy as np
import pyarrow as pa
import pytest

from ikddit.dataset.arrow import PreparedSplit, SplitWriter, array_columns, prepared_schema
from ikddit.dataset.encode import encode_records
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.errors import InputError
from ikddit.mpom.schema import ID_FIELDS, log_names_of


def encode(table: pa.Table, max_lines: int = 4, values_per_line: int = 3) -> pa.Table:
    names = log_names_of(table.schema)
    zeros = np.zeros(len(names), np.float32)
    normaliser = Normaliser(names, zeros, zeros + 1, 1.0, np.zeros((2, 64, 64), np.float32))
    known = Vocabularies({name: ["A1"] for name in ID_FIELDS}, ["dose <num> mJ/cm2"])
    return encode_records(table, normaliser, known, max_lines, values_per_line)


def write(path, table: pa.Table, order: np.ndarray, batch: int = 3) -> None:
    """Write the rows of `table`, `order[i]` being the place of row i."""
    writer = SplitWriter(path, table.take(np.argsort(order)), table.schema)
    for start in range(0, len(table), batch):
        writer.write(order[start : start + batch], table.slice(start, batch))
    writer.close()


@pytest.fixture
def written(tmp_path, make_records):
    table = encode(make_records(10))
    order = np.random.default_rng(0).permutation(10)
    write(tmp_path / "a.arrow", table, order)
    return tmp_path / "a.arrow", table.take(np.argsort(order))


def test_rows_written_in_any_order_read_back_as_one_batch(written) -> None:
    path, expected = written
    with pa.ipc.open_file(path) as reader:
        assert reader.num_record_batches == 1
        read = reader.read_all()
    read.validate(full=True)
    assert read.equals(expected, check_metadata=True)


def test_views_have_the_promised_shapes_and_values(written) -> None:
    path, expected = written
    split = PreparedSplit.open(path)
    assert len(split) == 10
    assert split.barcode == expected.column("barcode").to_pylist()
    assert split.log_names == ["dose_mj_cm2", "lens_temp_c", "align_tx_nm", "constant"]
    shapes = {
        "ids": (10, 10), "log_features": (10, 4), "log_missing": (10, 4), "line_templates": (10, 4),
        "line_values": (10, 4, 3), "prev_map": (10, 2, 64, 64), "prev_valid": (10, 64, 64),
        "map": (10, 2, 64, 64), "valid": (10, 64, 64),
    }  # fmt: skip
    for name, shape in shapes.items():
        view = getattr(split, name)
        assert view.shape == shape
        assert view.reshape(10, -1).tolist() == expected.column(name).to_pylist()


def test_opening_and_viewing_copies_nothing(written) -> None:
    path, _ = written
    before = pa.total_allocated_bytes()
    with pa.memory_map(str(path)) as source:
        whole = source.read_buffer()
        split = PreparedSplit.open(path)
        views = [getattr(split, name) for name in array_columns(split.table.schema)]
        assert pa.total_allocated_bytes() == before
    assert whole.size == path.stat().st_size
    for name, view in zip(array_columns(split.table.schema), views, strict=True):
        buffer = split.table.column(name).chunk(0).values.buffers()[1]
        assert view.ctypes.data == buffer.address
        assert np.shares_memory(view, np.frombuffer(buffer, np.uint8))
        assert not view.flags.owndata


def test_views_lie_inside_the_mapped_file(written) -> None:
    path, _ = written
    split = PreparedSplit.open(path)
    with open("/proc/self/maps") as maps:
        ranges = [line.split() for line in maps if str(path) in line]
    spans = [tuple(int(x, 16) for x in fields[0].split("-")) for fields in ranges]
    for name in array_columns(split.table.schema):
        view = getattr(split, name)
        start, end = view.ctypes.data, view.ctypes.data + view.nbytes
        assert any(low <= start and end <= high for low, high in spans), name


def test_views_are_read_only(written) -> None:
    split = PreparedSplit.open(written[0])
    with pytest.raises(ValueError, match="read-only"):
        split.map[0, 0, 0, 0] = 1


def test_a_table_in_memory_is_viewed_too_and_slices_keep_their_place(make_records) -> None:
    table = encode(make_records(6))
    whole, part = PreparedSplit.from_table(table), PreparedSplit.from_table(table.slice(2, 3))
    assert np.array_equal(whole.map[2:5], part.map)
    assert np.shares_memory(whole.map, part.map)


def test_a_split_without_wafers_opens(tmp_path, make_records) -> None:
    table = encode(make_records(3)).slice(0, 0)
    write(tmp_path / "none.arrow", table, np.array([], np.int64))
    split = PreparedSplit.open(tmp_path / "none.arrow")
    assert len(split) == 0
    assert split.map.shape == (0, 2, 64, 64)
    assert split.map.dtype == np.float16
    assert split.line_values.shape == (0, 4, 3)


def test_records_without_log_channels_have_a_feature_axis_of_zero(tmp_path, make_records) -> None:
    table = encode(make_records(4, log_names=[]))
    write(tmp_path / "bare.arrow", table, np.arange(4))
    split = PreparedSplit.open(tmp_path / "bare.arrow")
    assert split.log_features.shape == (4, 0)
    assert split.log_names == []


def test_files_that_are_not_prepared_are_refused(tmp_path, make_records) -> None:
    with pytest.raises(InputError, match="not a readable Arrow file"):
        PreparedSplit.open(tmp_path / "absent.arrow")
    (tmp_path / "text.arrow").write_text("hello")
    with pytest.raises(InputError, match=r"text\.arrow"):
        PreparedSplit.open(tmp_path / "text.arrow")
    records = make_records(2)
    with pa.OSFile(str(tmp_path / "r.arrow"), "wb") as sink, pa.ipc.new_file(sink, records.schema) as writer:
        writer.write_table(records)
    with pytest.raises(InputError, match="prepared_version"):
        PreparedSplit.open(tmp_path / "r.arrow")


def test_schema_states_units_and_sizes() -> None:
    schema = prepared_schema(["a", "b"], 8, 2)
    assert schema.metadata[b"units"] == b"nm"
    assert schema.field("log_features").type.list_size == 2
    assert schema.field("line_values").type.list_size == 16
