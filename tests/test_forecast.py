"""The files of a forecast: what they hold, what is counted, refused, and left behind when it fails."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ikddit.batch import write_forecast
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.diffusion.plan import SamplingPlan
from ikddit.errors import InputError
from ikddit.forecast import (
    Forecast,
    ForecastFiles,
    Written,
    forecast_figure,
    forecast_writer,
    m3s_line,
    samples_table,
)
from ikddit.generator import Generator
from ikddit.mpom.schema import ID_FIELDS
from ikddit.overlay.grid import wafer_grid

USABLE = wafer_grid().usable
CODES = ["W1", "W2", "LOT/3"]


def made_forecast() -> Forecast:
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 2, (3, 2, 64, 64)).astype(np.float32)
    m3s = np.array([[5.04, 6.0], [7.0, 8.0], [3.0, 2.0]])
    risk = np.array([0.0, 0.25, 1.0])
    return Forecast(CODES, maps, np.full_like(maps, 0.5), m3s, m3s - 1, m3s + 1, risk, ["", "", "logs"])


class Fake(Generator):
    """Serves made samples instead of a model's, a block of two wafers at a time."""

    def __init__(self) -> None:
        names = ["dose_mj_cm2", "lens_temp_c", "align_tx_nm", "constant"]
        zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
        self.normaliser = Normaliser(names, zeros, ones, 2.0, np.zeros((2, 64, 64), np.float32))
        self.vocabularies = Vocabularies({name: [] for name in ID_FIELDS}, [])

    usable = USABLE

    def plan(self, steps=20, **options):
        return SamplingPlan(steps)

    def _encode(self, records):
        return Rows(records["barcode"].to_pylist())

    def point(self, records, seed=0):
        return np.stack([np.full((2, 64, 64), float(code[1:]), np.float32) for code in records.barcode])

    def sample_blocks(self, records, n=16, steps=20, seed=0, **options):
        for start in range(0, len(records), 2):
            block = slice(start, min(start + 2, len(records)))
            yield block, np.stack([made_maps(code, n) for code in records.barcode[block]])


class Rows:
    """As much of a prepared split as is asked for; nothing is missing."""

    def __init__(self, barcode):
        self.barcode, wafers = barcode, len(barcode)
        self.prev_valid, self.ids = np.ones((wafers, 64, 64)), np.ones((wafers, len(ID_FIELDS)))
        self.log_missing, self.line_templates = np.zeros((wafers, 4)), np.ones((wafers, 1))

    def __len__(self):
        return len(self.barcode)


def made_maps(code: str, n: int) -> np.ndarray:
    """n samples of one wafer."""
    rng = np.random.default_rng(int(code[1:]))
    return (rng.normal(0, 1, (n, 2, 64, 64)) * USABLE).astype(np.float32)


@pytest.fixture
def records(tmp_path, make_records) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    for part in range(2):
        table = make_records(3, seed=part, barcode=[f"W{3 * part + i}" for i in range(3)])
        pq.write_table(table, folder / f"part-{part}.parquet")
    return folder


def test_every_wafer_sample_and_picture_is_written_and_counted(tmp_path, records):
    files = ForecastFiles(
        tmp_path / "out" / "f.parquet", tmp_path / "s.parquet", tmp_path / "p", plot_wafers=4
    )
    done = write_forecast(Fake(), records, files, n=3)
    assert done == Written(wafers=6, samples=18, plots=4, plots_skipped=2)
    out = pq.read_table(files.forecast)
    assert out["barcode"].to_pylist() == [f"W{i}" for i in range(6)]
    np.testing.assert_allclose(out["sigma"][4].as_py(), made_maps("W4", 3).std(0, ddof=1).ravel(), atol=1e-6)
    samples = pq.read_table(files.samples)
    assert samples.schema.metadata[b"units"] == b"nm"
    row = samples.slice(3 * 5 + 1, 1).to_pylist()[0]
    assert (row["barcode"], row["sample"]) == ("W5", 1)
    assert np.array_equal(np.float32(row["map"]).reshape(2, 64, 64), made_maps("W5", 3)[1])
    assert sorted(path.name for path in files.plots.iterdir()) == [f"000{i + 1}_W{i}.png" for i in range(4)]


def test_samples_wanted_or_not_the_forecast_is_the_same(tmp_path, records):
    write_forecast(Fake(), records, tmp_path / "a.parquet", n=2)
    write_forecast(Fake(), records, ForecastFiles(tmp_path / "b.parquet", tmp_path / "s.parquet"), n=2)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_failure_leaves_the_files_before_and_no_scratch(tmp_path, records):
    out = tmp_path / "out"
    files = ForecastFiles(out / "f.parquet", out / "s.parquet")
    write_forecast(Fake(), records, files, n=2)
    before = {path: path.read_bytes() for path in out.iterdir()}
    # its footer is sound: that a page is not comes to light when it is read
    data = bytearray((records / "part-1.parquet").read_bytes())
    data[4:1000] = bytes(996)
    (records / "part-2.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"part-2.parquet: file: not readable"):
        write_forecast(Fake(), records, files, n=3)
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_folders_without_wafers_are_refused(tmp_path, records):
    with pytest.raises(InputError, match="nowhere: folder: no such folder"):
        write_forecast(Fake(), tmp_path / "nowhere", tmp_path / "f.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \*\.parquet"):
        write_forecast(Fake(), tmp_path / "empty", tmp_path / "f.parquet")
    (tmp_path / "empty").rmdir()
    for part in records.iterdir():
        pq.write_table(pq.read_table(part).slice(0, 0), part)
    with pytest.raises(InputError, match="hold no wafers"):
        write_forecast(Fake(), records, ForecastFiles(tmp_path / "f.parquet", tmp_path / "s.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["records"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forecast": "records/f.parquet"}, "among the records"),
        ({"forecast": "records"}, "is a folder"),
        ({"samples": "f.parquet"}, "forecast's file too"),
        ({"plots": "records/part-0.parquet"}, "is a file"),
        ({"plot_wafers": -1}, "0 or more wafers"),
        ({"plot_scale_nm": 0.0}, "above 0 nm"),
    ],
)
def test_what_could_not_be_written_is_refused_before_anything_is_computed(tmp_path, records, change, message):
    paths = {name: tmp_path / value if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(InputError, match=message):
        write_forecast(Fake(), records, replace(ForecastFiles(tmp_path / "f.parquet"), **paths))


def test_samples_come_back_by_wafer_and_number():
    maps = np.random.default_rng(1).normal(size=(2, 3, 2, 64, 64)).astype(np.float32)
    table = samples_table(["a", "b"], maps)
    assert table["barcode"].to_pylist() == ["a"] * 3 + ["b"] * 3
    assert table["sample"].to_pylist() == [0, 1, 2, 0, 1, 2]
    flat = table["map"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(flat.reshape(maps.shape), maps)


def test_title_says_m3s_its_interval_and_the_risk():
    line = m3s_line(made_forecast(), 0, 7.5)
    assert line == "M3S, nm (90 %): x 5.0 (4.0 to 6.0), y 6.0 (5.0 to 7.0)\nP(M3S > 7.5 nm) = 0%"


def test_scales_are_fixed_whatever_the_wafer_holds():
    made = made_forecast()
    louder = replace(made, mean=10 * made.mean, sigma=4 * made.sigma)
    for forecast in (made, louder):
        figure = forecast_figure(forecast, 1, USABLE, scale_nm=5.0)
        images = [ax.images[0] for ax in figure.axes if ax.images]
        assert [image.get_clim() for image in images] == [(-5.0, 5.0)] * 2 + [(0.0, 1.25)] * 2
        assert images[0].get_array().mask[0, 0]  # off the wafer
        assert np.array_equal(images[1].get_array()[USABLE], forecast.mean[1, 1][USABLE])


def test_a_picture_is_opaque_and_its_name_safe(tmp_path):
    with forecast_writer(ForecastFiles(tmp_path / "f.parquet", plots=tmp_path), USABLE, 8.0) as writer:
        writer.add(made_forecast())
    picture = Image.open(tmp_path / "0003_LOT_3.png")
    assert np.asarray(picture.convert("RGBA"))[..., 3].min() == 255
    assert pa.parquet.read_metadata(tmp_path / "f.parquet").num_rows == 3
