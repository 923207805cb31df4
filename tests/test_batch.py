"""A folder of wafers into one file: killed in the middle, gone on with, and the same bits as without the kill."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ikddit import batch
from ikddit.atomic import write_json
from ikddit.batch import write_forecast
from ikddit.errors import InputError, ModelError
from ikddit.forecast import ForecastFiles, Written
from ikddit.generator import Generator
from ikddit.manifest import MANIFEST, write_manifest
from ikddit.mpom.schema import ID_FIELDS
from made_generator import LOGS, write_generator

KILLED = """
import os, signal, sys
from pathlib import Path
from ikddit import batch
from ikddit.forecast import ForecastFiles
from ikddit.generator import Generator
batch.BATCH_WAFERS, batch.PART_WAFERS = 2, 4
model, records, out, samples, dies_in = sys.argv[1:]
real, calls = Generator.predict, []
def predict(self, *args, **options):
    calls.append(1)
    if len(calls) == int(dies_in):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **options)
Generator.predict = predict
batch.write_forecast(Generator.load(model), records, ForecastFiles(Path(out), Path(samples)), n=2, steps=2)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_generator(tmp_path_factory.mktemp("model"))


def made_records(make_records, seed: int, first: int) -> pa.Table:
    codes = [f"W{first + i}" for i in range(6)]
    return make_records(6, seed=seed, log_names=LOGS, barcode=codes, log_lines=[["dose 30.1"]] * 6)


@pytest.fixture
def records(tmp_path: Path, make_records) -> Path:
    """Two files of six wafers: in parts of 4 and 2, batches of 2."""
    folder = tmp_path / "records"
    folder.mkdir()
    for part in range(2):
        pq.write_table(made_records(make_records, part, 6 * part), folder / f"part-{part}.parquet")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "BATCH_WAFERS", 2)
    monkeypatch.setattr(batch, "PART_WAFERS", 4)


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path, model, records, make_records):
    generator = Generator.load(model)
    whole = ForecastFiles(tmp_path / "whole.parquet", tmp_path / "whole_samples.parquet")
    assert write_forecast(generator, records, whole, n=2, steps=2) == Written(wafers=12, samples=24)
    out = tmp_path / "out"
    files = ForecastFiles(out / "f.parquet", out / "s.parquet")
    paths = [str(path) for path in (model, records, files.forecast, files.samples)]
    # dies in the second file's first part
    killed = subprocess.run([sys.executable, "-c", KILLED, *paths, "5"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not files.forecast.exists()
    shutil.copytree(out, tmp_path / "copy")

    done = write_forecast(generator, records, files, n=2, steps=2)
    assert done == Written(wafers=12, samples=24, resumed=6)
    assert [path.read_bytes() for path in sorted(out.iterdir())] == [
        path.read_bytes() for path in (whole.forecast, tmp_path / "whole_samples.parquet")
    ]
    assert pq.read_table(files.forecast)["barcode"].to_pylist() == [f"W{i}" for i in range(12)]

    # What was made from something else, or is damaged, is made again.
    other = write_generator(tmp_path / "other")
    write_json(other / "note.json", {})  # another file in the folder is another model
    assert resumed(tmp_path, Generator.load(other), records) == 0
    assert resumed(tmp_path, generator, records, seed=1) == 0
    assert resumed(tmp_path, generator, records, limit_nm=7.0) == 0
    damage = Path("copy", ".f.parquet.parts", "part-0.parquet-00001.forecast")
    (tmp_path / damage).write_bytes((tmp_path / damage).read_bytes()[:-20])
    assert resumed(tmp_path, generator, records) == 4
    pq.write_table(made_records(make_records, 9, 0), records / "part-0.parquet")
    assert resumed(tmp_path, generator, records) == 0


def resumed(folder: Path, generator: Generator, records: Path, **request: float) -> int:
    """Wafers that a run takes over from the killed one."""
    out = folder / "again"
    shutil.copytree(folder / "copy", out)
    files = ForecastFiles(out / "f.parquet", out / "s.parquet")
    done = write_forecast(generator, records, files, n=2, steps=2, **request)
    shutil.rmtree(out)
    assert (done.wafers, done.samples) == (12, 24)
    return done.resumed


def test_wafers_that_lack_an_input_are_counted(tmp_path, model, make_records, caplog):
    records = tmp_path / "records"
    records.mkdir()
    table = made_records(make_records, 0, 0)
    values = {name: ["A"] * 6 for name in ID_FIELDS}
    values["scanner_id"] = ["A", "NXT9", None, "B", "A", "A"]
    values["log_lines"] = [["dose 30.1"]] * 4 + [[], []]
    values["log_features"] = [[1.0, float("nan")]] * 5 + [[float("nan")] * 2]
    values["prev_valid"] = [[0] * 4096] * 2 + [[1] * 4096] * 4
    for name, column in values.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(column, field.type))
    pq.write_table(table, records / "part-0.parquet")
    write_forecast(Generator.load(model), records, tmp_path / "f.parquet", n=2, steps=2)
    told = "some of 6 wafers lack, or that training did not know: previous map (2), logs (1), scanner_id (2, "
    assert f"{told}for example 'NXT9');" in caplog.text
    caplog.clear()
    pq.write_table(table.slice(3, 1), records / "part-0.parquet")
    write_forecast(Generator.load(model), records, tmp_path / "f.parquet", n=2, steps=2)
    assert caplog.text == ""


def test_two_runs_at_one_output_do_not_meet(tmp_path, model, records):
    with batch._parts_folder(tmp_path / "f.parquet"), pytest.raises(InputError, match="another run"):
        write_forecast(Generator.load(model), records, tmp_path / "f.parquet", n=2, steps=2)


def test_scratch_of_another_output_is_left_alone(tmp_path):
    other = tmp_path / ".f.parquet.0.part"
    other.touch()
    with batch._parts_folder(tmp_path / "f"):
        pass
    assert other.exists()


def test_prepared_splits_are_forecast_like_their_records(tmp_path, model, records):
    generator = Generator.load(model)
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    generator.normaliser.save(prepared / "normaliser.json")
    generator.vocabularies.save(prepared / "vocabularies.json")
    for number, path in enumerate(sorted(records.iterdir())):
        table = generator._encode(pq.read_table(path)).table
        path = str(prepared / f"split{number}.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    write_forecast(generator, records, tmp_path / "a.parquet", n=2, steps=2)
    write_forecast(generator, prepared, tmp_path / "b.parquet", n=2, steps=2)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    generator.normaliser.log_mean[0] += 1
    with pytest.raises(InputError, match="normaliser: is not the model's"):
        write_forecast(generator, prepared, tmp_path / "b.parquet", n=2, steps=2)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda table: b"PAR1 and no more", "file"),
        (lambda table: parquet(table)[:-300], "file"),
        (lambda table: parquet(table.drop_columns("valid")), "valid"),
        (lambda table: parquet(table.drop_columns("mark_count")), "mark_count"),
        (lambda table: parquet(table.append_column("layer", pa.nulls(6, pa.string()))), "layer"),
        (
            lambda table: parquet(
                table.drop_columns("log_features").append_column("log_features", [["x"] * 6])
            ),
            "log_features",
        ),
        (lambda table: parquet(table.replace_schema_metadata({})), "units"),
        (
            lambda table: parquet(
                table.replace_schema_metadata({**table.schema.metadata, b"log_names": b"a"})
            ),
            "log_features",
        ),
    ],
    ids=range(8),
)
def test_records_that_cannot_be_read_are_refused_by_file_and_column(
    tmp_path, model, make_records, change, field
):
    path = tmp_path / "part-0.parquet"
    path.write_bytes(change(made_records(make_records, 0, 0)))
    with pytest.raises(InputError) as error:
        write_forecast(Generator.load(model), tmp_path, tmp_path / "out" / "f.parquet", n=1, steps=2)
    assert (error.value.file, error.value.field) == (str(path), field)


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("ids", 99, "ids layer"),
        ("line_words", -1, "line_words"),
        ("prev_map", float("nan"), "prev_map"),
        ("", 0, "valid"),
    ],
)
def test_splits_that_hold_what_the_model_has_no_place_for_are_refused(
    tmp_path, model, make_records, name, value, field
):
    generator = Generator.load(model)
    table = generator._encode(made_records(make_records, 0, 0)).table
    if name:
        kind = table.schema.field(name).type
        flat = table.column(name).combine_chunks().flatten().to_numpy().copy()
        flat[0] = value
        changed = pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), changed)
    else:
        table = table.drop_columns("valid")
    generator.normaliser.save(tmp_path / "normaliser.json")
    generator.vocabularies.save(tmp_path / "vocabularies.json")
    path = tmp_path / "test.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError) as error:
        write_forecast(generator, tmp_path, tmp_path / "out" / "f.parquet", n=1, steps=2)
    assert (error.value.file, error.value.field) == (str(path), field)


def test_a_registered_models_changed_byte_is_refused_by_name(tmp_path):
    folder = write_generator(tmp_path / "model")
    write_manifest(folder)
    assert Generator.load(folder).fingerprint
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors: has changed since it was registered"):
        Generator.load(folder)
    data[-1] ^= 1
    weights.write_bytes(data)
    write_json(folder / "more.json", {})
    with pytest.raises(ModelError, match=r"more\.json: does not belong to the model"):
        Generator.load(folder)
    (folder / "more.json").unlink()
    (folder / "normaliser.json").unlink()
    with pytest.raises(ModelError, match=r"normaliser\.json: is missing"):
        Generator.load(folder)
    (folder / MANIFEST).write_text("[1]")
    with pytest.raises(ModelError, match=r"sha256\.json: damaged"):
        Generator.load(folder)
