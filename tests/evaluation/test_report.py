"""The report page: built from small made-up sources, read back with an HTML parser."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_fakes import small_fab

from ikddit.errors import InputError
from ikddit.evaluation.report import build_report, comparison, verdict, write_report
from ikddit.evaluation.report_sources import read_sources

METRICS = {
    "rmse_nm": 0.8612345,
    "r2": 0.84,
    "m3s_error_nm": 0.71,
    "ome_1p5": 0.0801,
    "floor_rmse_nm": 0.7412,
    "floor_ome_1p5": 0.0451,
    "coverage_90": 0.887,
    "crps_nm": 0.48,
    "n_wafers": 3,
    "n_samples": 4,
    "served": "full",
    "baselines": {
        "zero": {"rmse_nm": 2.1},
        "ridge_all": {"rmse_nm": 0.9512},
        "gbm": {"rmse_nm": 0.9345},
        "oracle": {"rmse_nm": 0.7413},
    },
}
TABLE = {
    "floor_rmse_nm": 0.7412,
    "test": {
        "n": 3,
        "zero": {"rmse_nm": 2.1, "r2": 0.0, "m3s_error_nm": 6.5, "ome_1p5": 0.4},
        "ridge_all": {"rmse_nm": 0.9512, "r2": 0.79, "m3s_error_nm": 1.2, "ome_1p5": 0.1},
        "gbm": {"rmse_nm": 0.9345, "r2": 0.8, "m3s_error_nm": 1.1, "ome_1p5": 0.09},
        "oracle": {"rmse_nm": 0.7413, "r2": 0.88, "m3s_error_nm": 0.8, "ome_1p5": 0.045},
    },
    "test_unseen": {"n": 3, "gbm": {"rmse_nm": 1.01}},
    "not_computed": {"ewma": "some exposures have no time"},
}
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what a reader sees and what a browser could load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def words(self) -> str:
        text = " ".join(" ".join(self.text).split())
        return re.sub(r" (?=[,.])", "", text)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which every stage before `report` has run on three wafers."""
    tmp_path = tmp_path_factory.mktemp("checkout")
    for folder in ("reports/evaluation", "reports/train", "data/evaluation", "data/prepared"):
        (tmp_path / folder).mkdir(parents=True)
    files = {
        "reports/evaluation/metrics.json": METRICS,
        "reports/baselines.json": TABLE,
        "reports/ingest.json": {"found": 1007, "records": 1005, "quarantined": 2}
        | {"quarantined_by_field": {"size": 2}},
        "reports/validation.json": {"items": 1005, "records": 1004, "quarantined": 1, "failed": []},
        "reports/embedding.json": {"retrieval": {"logs": 0.81, "ids": 0.92}},
        "reports/timing.json": {"device": "cpu", "full_s": 1.25, "masked_s": 0.9},
        "reports/train/summary.json": {"parameters": 1234567, "steps": 20},
        "data/prepared/dataset.json": {"units": "nm", "seeds": {"fab_seed": 7, "sample_seed": 8}},
        "data/prepared/splits.json": {
            "splits": {"train": {"wafers": 900, "lots": 36}, "test": {"wafers": 100, "lots": 4}}
        },
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with (tmp_path / "reports/train/curves.csv").open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["step", "loss", "disc"])
        writer.writerows([[1, 0.9, ""], [2, 0.7, 0.5], [3, 0.6, 0.4]])
    split = small_fab(3, seed=0)
    file = str(tmp_path / "data/prepared/test.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_file(sink, split.table.schema) as arrow:
        arrow.write_table(split.table)
    measured = split.map.astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.5, measured.shape).astype(np.float32)
    np.savez(
        tmp_path / "data/evaluation/showcase.npz",
        barcodes=np.array(split.barcode),
        mean=measured + noise,
        sigma=np.abs(noise),
        sample0=measured - noise,
        sample1=measured + 2 * noise,
        measured=measured,
        valid=split.valid,
    )
    wafers = {"barcode": split.barcode, "scanner_id": ["LITH01"] * 3, "chuck_id": ["CHK1", "CHK2", "CHK1"]}
    figures = {name: [4.0, 5.0, 6.0] for name in ("m3s_x_nm", "m3s_y_nm", "pred_m3s_x_nm", "pred_m3s_y_nm")}
    table = pa.table({**wafers, "rmse_nm": [0.6, 0.7, 0.8], **figures})
    pq.write_table(table, tmp_path / "data/evaluation/wafers.parquet")
    return tmp_path


@pytest.fixture(scope="module")
def page(full: Path) -> str:
    """Its page."""
    return build_report(read_sources(full), commit="abc123")


@pytest.fixture
def checkout(full: Path, tmp_path: Path) -> Path:
    """A copy to spoil, without the pictures, which take their time."""
    shutil.copytree(full, tmp_path / "copy")
    (tmp_path / "copy/data/evaluation/showcase.npz").unlink()
    return tmp_path / "copy"


def test_every_figure_of_the_verdict_is_that_of_metrics_json(page: str) -> None:
    shown = re.findall(r'data-metric="([^"]+)" data-value="([^"]+)">([\d.]+)', page)
    assert {name for name, *_ in shown} == {"rmse_nm", "floor_rmse_nm", "baselines.gbm.rmse_nm"}
    for name, value, text in shown:
        metric: object = METRICS
        for part in name.split("."):
            metric = metric[part]  # type: ignore[index]
        assert float(value) == metric
        assert text == f"{metric:.3f}"
    words = Page(page).words()
    assert "The student is 0.861 nm RMSE from the measurement, 0.073 nm better than the best" in words
    assert "best baseline: gbm" in words
    assert "full inference served" in words
    assert "8.0 % OME" in words


def test_a_student_worse_than_a_baseline_is_called_worse() -> None:
    found = verdict(METRICS | {"rmse_nm": 1.0345})
    assert found["gain_nm"] == pytest.approx(-0.1)
    assert found["closed"] < 0


def test_distance_to_the_floor_is_in_squared_error() -> None:
    found = verdict(METRICS)
    assert found["excess_nm"] == pytest.approx(np.sqrt(0.8612345**2 - 0.7412**2))
    assert found["closed"] == pytest.approx((0.9345**2 - 0.8612345**2) / (0.9345**2 - 0.7412**2))


def test_the_table_holds_student_baselines_and_oracle_best_first(checkout: Path) -> None:
    rows = comparison(read_sources(checkout))
    assert [row["name"] for row in rows] == ["oracle", "student", "gbm", "ridge_all", "zero"]
    assert rows[2]["unseen_rmse_nm"] == 1.01
    assert rows[1]["unseen_rmse_nm"] is None
    words = Page(build_report(read_sources(checkout))).words()
    assert "ewma: some exposures have no time" in words


def test_the_page_parses_and_needs_nothing_from_outside(page: str) -> None:
    assert "http" not in page
    assert "@import" not in page
    parsed = Page(page)
    loads = [v for _, name, v in parsed.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert loads
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in loads)
    urls = re.findall(r"url\(([^)]*)\)", page)
    assert all(url.startswith("#") for url in urls)
    assert len(page) < 8e6


def test_ids_are_unique_and_every_reference_finds_its_target(page: str) -> None:
    parsed = Page(page)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = {v[1:] for _, name, v in parsed.attributes if name == "href" and v.startswith("#")}
    references |= {m for _, _, v in parsed.attributes for m in re.findall(r"url\(#([^)]*)\)", v)}
    assert references <= set(ids)


def test_every_picture_has_a_text_and_every_table_has_headers(page: str) -> None:
    pictures = re.findall(r"<svg[^>]*>", page)
    assert len(pictures) == 3 + 1 + 1  # wafers, M3S, curves
    assert all('role="img"' in tag and re.search(r'aria-label="[^"]{20,}"', tag) for tag in pictures)
    for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL):
        assert 'scope="' in table


def test_wafers_come_with_their_log_and_figures(page: str) -> None:
    words = Page(page).words()
    assert words.count("INFO lot started") == 3
    assert "W0001 on LITH01 CHK2" in words
    assert "RMSE 0.70 nm. M3S x / y measured 5.00 / 5.00 nm" in words


def test_counts_seeds_commit_and_device_are_shown(page: str) -> None:
    words = Page(page).words()
    assert "1,007 found = 1,005 records + 2 quarantined" in words
    assert "quarantined_by_field.size 2" in words
    assert "1,005 checked, 1 quarantined" in words
    assert "seeds.fab_seed 7" in words
    assert "commit abc123 device cpu" in words
    assert "nothing here is validated on a real fab" in words


def test_what_is_missing_is_said_and_not_made_up(checkout: Path) -> None:
    for name in (
        "reports/timing.json",
        "reports/train/curves.csv",
        "data/evaluation/wafers.parquet",
        "data/prepared/dataset.json",
    ):
        (checkout / name).unlink()
    words = Page(build_report(read_sources(checkout))).words()
    assert "Not there when this page was built: reports/timing.json" in words
    assert "Timing: not written by stage timing" in words
    assert "Training curves: not written by stage train" in words
    assert "Maps of single wafers: not written by stage evaluate" in words
    assert "commit not known" in words


def test_foreign_data_have_no_floor_and_no_claim_of_one(checkout: Path) -> None:
    metrics = {name: value for name, value in METRICS.items() if not name.startswith("floor_")}
    (checkout / "reports/evaluation/metrics.json").write_text(json.dumps(metrics))
    (checkout / "data/prepared/dataset.json").write_text("{}")
    words = Page(build_report(read_sources(checkout))).words()
    assert "floor: unknown, the data are not simulated" in words
    assert "validated on a real fab" not in words


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_without_metrics_there_is_no_report(checkout: Path, damage: str) -> None:
    path = checkout / "reports/evaluation/metrics.json"
    path.unlink() if damage == "missing" else path.write_text('{"rmse_nm": 0.8')
    with pytest.raises(InputError, match=r"metrics\.json"):
        write_report(checkout)
    assert not (checkout / "reports/index.html").exists()


def test_text_from_the_data_is_escaped(checkout: Path) -> None:
    path = checkout / "reports/ingest.json"
    path.write_text(
        json.dumps({"found": 1, "records": 1, "quarantined": 0, "notes": ["<script>x()</script>"]})
    )
    text = build_report(read_sources(checkout))
    assert "<script>x()</script>" in Page(text).words()
    assert text.count("<script>") == 1


def test_the_same_sources_give_the_same_file(full: Path, page: str) -> None:
    assert write_report(full, commit="abc123").read_text(encoding="utf-8") == page
