"""The report page: built from small made-up sources, read back with an HTML parser."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_fakes import small_fab
from report_browser import Browser, chromium
from report_tables import FID, MODELS, write_tables

from ikddit.errors import InputError
from ikddit.evaluation.report.fid import fid_rows
from ikddit.evaluation.report.figures import Chart, Line, charts_figure, inline_svg
from ikddit.evaluation.report.page import FIGURES, build_report, write_report
from ikddit.evaluation.report.scored import pivot
from ikddit.evaluation.report.sources import Origin, read_sources, read_tables
from ikddit.evaluation.report.summary import ablation
from ikddit.evaluation.report.tables import comparison, verdict

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
        "oracle": {"rmse_nm": 0.7413, "r2": 0.88, "m3s_error_nm": 0.8, "ome_1p5": 0.045}
        | {"m3s_error_sampled_nm": 0.65},
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
        if not self.open or self.open[-1] not in ("style", "script"):
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
        "reports/timing.json": {"device": "cpu", "threads": 2, "batch": 4, "steps": 5, "repeats": 3}
        | {"full_s": 1.25, "full_s_q25": 1.2, "full_s_q75": 1.3, "full_samples_per_s": 3.2}
        | {"full_latency_s": 0.5, "ddpm1000_latency_s": 40.0},
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
    (tmp_path / "reports/ablations").mkdir()
    (tmp_path / "reports/ablations/mask.csv").write_text(
        "run,mask_ratio,train.discriminator,seed,rmse_nm,n_wafers\n"
        "a,0.5,none,0,0.80,3\nb,0.5,none,1,0.82,3\nc,0.0,implicit,0,0.9,3\n"
        "d,0.0,none,0,0.91,3\ne,0.5,implicit,0,0.92,3\n"
    )
    write_tables(tmp_path / "reports/evaluation")
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
    return build_report(read_sources(full), Origin("abc123", 7, "fab", "ikddit"))


@pytest.fixture
def checkout(full: Path, tmp_path: Path) -> Path:
    """A copy to spoil, without the pictures, which take their time."""
    shutil.copytree(full, tmp_path / "copy")
    (tmp_path / "copy/data/evaluation/showcase.npz").unlink()
    return tmp_path / "copy"


def metric_of(name: str) -> float:
    metric: object = METRICS
    for part in name.split("."):
        metric = metric[part]  # type: ignore[index]
    assert isinstance(metric, float)
    return metric


def test_every_figure_of_metrics_json_is_shown_as_it_is(page: str) -> None:
    shown = re.findall(r'data-metric="([^"]+)" data-value="([^"]+)">([\d.]+)', page)
    assert {"rmse_nm", "floor_rmse_nm", "baselines.gbm.rmse_nm"} <= {name for name, *_ in shown}
    for name, value, text in shown:
        metric = metric_of(name)
        assert float(value) == metric
        assert text == f"{metric:.3f}"
    words = Page(page).words()
    above, below = 0.8612345 / 0.7412 - 1, 1 - 0.8612345 / 0.9345
    assert (
        f"The forecast is 0.861 nm RMSE from the measurement, {100 * above:.1f} % above the exact floor "
        f"and {100 * below:.1f} % below the best baseline, gbm. Full inference is served."
    ) in words
    assert "8.0 % OME" in words
    assert words.index("Full inference is served") < 400  # first of all


def test_a_student_worse_than_a_baseline_is_called_worse() -> None:
    found = verdict(METRICS | {"rmse_nm": 1.0345})
    assert found["gain_nm"] == pytest.approx(-0.1)
    assert found["closed"] < 0


def test_a_verdict_against_a_better_baseline_says_above(checkout: Path) -> None:
    (checkout / "reports/evaluation/metrics.json").write_text(json.dumps(METRICS | {"rmse_nm": 1.0345}))
    words = Page(build_report(read_sources(checkout))).words()
    assert f"{100 * (1.0345 / 0.9345 - 1):.1f} % above the best baseline, gbm" in words


def test_distance_to_the_floor_is_in_squared_error() -> None:
    found = verdict(METRICS)
    assert found["excess_nm"] == pytest.approx(np.sqrt(0.8612345**2 - 0.7412**2))
    assert found["closed"] == pytest.approx((0.9345**2 - 0.8612345**2) / (0.9345**2 - 0.7412**2))


def test_the_table_holds_student_baselines_and_oracle_best_first(checkout: Path) -> None:
    rows = comparison(read_sources(checkout))
    assert [row["name"] for row in rows] == ["oracle", "student", "gbm", "ridge_all", "zero"]
    assert rows[2]["unseen_rmse_nm"] == 1.01
    assert rows[1]["unseen_rmse_nm"] is None
    # of those that sample
    assert [row["m3s_error_nm"] for row in rows[:3]] == [0.65, 0.71, None]
    words = Page(build_report(read_sources(checkout))).words()
    assert "ewma: some exposures have no time" in words


def test_the_page_parses_and_needs_nothing_from_outside(page: str) -> None:
    assert "@import" not in page
    assert "default-src 'none'" in page
    parsed = Page(page)
    loaded = ("src", "href", "xlink:href", "action", "data", "srcset")
    loads = [v for tag, name, v in parsed.attributes if name in loaded and tag != "a"]
    assert loads
    assert all(value.startswith(("#", "data:image/png;base64,", "data:,")) for value in loads)
    links = {v for tag, name, v in parsed.attributes if tag == "a" and name == "href" and v[0] != "#"}
    assert links == {"http://127.0.0.1:5000/#/models/ikddit"}  # asked for by a click alone
    urls = re.findall(r"url\(([^)]*)\)", page)
    assert all(url.startswith("#") for url in urls)
    assert len(page) < 2e6  # three wafers; twelve in the pipeline


def test_ids_are_unique_and_every_reference_finds_its_target(page: str) -> None:
    parsed = Page(page)
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    references = {v[1:] for _, name, v in parsed.attributes if name == "href" and v.startswith("#")}
    references |= {m for _, _, v in parsed.attributes for m in re.findall(r"url\(#([^)]*)\)", v)}
    assert references <= set(ids)


def test_every_picture_has_a_text_and_every_table_has_headers(page: str) -> None:
    pictures = re.findall(r"<svg[^>]*>", page)
    # wafers; M3S, losses, speed, one ablation; OME, ROC, coverage, ranks, spectrum
    assert len(pictures) == 3 + 4 + 5
    assert all('role="img"' in tag and re.search(r'aria-label="[^"]{20,}"', tag) for tag in pictures)
    for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL):
        assert 'scope="' in table


def test_wafers_come_with_their_log_and_figures(page: str) -> None:
    words = Page(page).words()
    assert words.count("INFO lot started") == 3
    assert "W0001 on LITH01 CHK2 · median of 3 by RMSE" in words
    assert "RMSE 0.70 nm. M3S x / y measured 5.00 / 5.00 nm" in words
    assert "lot_id S0L000 slot 1" in words


def test_counts_seeds_commit_and_device_are_shown(page: str) -> None:
    words = Page(page).words()
    assert "1,007 found = 1,005 records + 2 quarantined" in words
    assert "quarantined_by_field.size 2" in words
    assert "1,005 checked, 1 quarantined" in words
    assert "seeds.fab_seed 7" in words
    assert "commit abc123 device cpu, 2 threads seed 7 MLflow experiment fab registered model ikddit" in words
    assert "search for tags.git_commit LIKE 'abc123%'" in words
    assert "3 test wafers, later in time than every training wafer, 4 samples of each" in words
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
    missing = re.search(r"Not there when this page was built: (.*?)\. ", words)
    assert missing
    assert {"reports/timing.json", "reports/train/curves.csv"} <= set(missing[1].split(", "))
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


def test_ablations_are_means_over_seeds_by_what_was_swept(full: Path, page: str) -> None:
    words = Page(page).words()
    assert "5 runs; swept: mask_ratio, train.discriminator" in words
    # statistics of 0.80 and 0.82 by hand: mean 0.81, standard deviation 0.02 / sqrt 2
    assert "mask_ratio 0.5, train.discriminator none 2 0, 1 0.810 ± 0.014" in words
    assert "mask_ratio 0.0, train.discriminator implicit 1 0 0.900" in words


ABSENT = (
    "kpis.csv", "ome_curve.csv", "out_of_spec.csv", "coverage.csv", "rank_histogram.csv", "sigma_by_zone.csv",
    "spectrum.csv", "fid.json",
)  # fmt: skip


def test_kpis_are_those_of_the_file_by_model_and_level(page: str) -> None:
    whole = re.search(r'data-table="kpis".*?</table>', page, re.DOTALL)
    by_level = re.search(r'data-pivot="rmse_nm".*?</table>', page, re.DOTALL)
    assert whole
    assert by_level
    words = Page(f"<table {by_level[0]}").words()
    assert "all n = 3 x n = 3 y n = 3 centre n = 3 edge n = 3 CHK1 n = 3" in words
    rmse = MODELS["gbm"]
    assert f"gbm {rmse:.3f} {rmse:.3f} {rmse:.3f} {rmse:.3f} {1.25 * rmse:.3f} {rmse:.3f}" in words
    words = Page(f"<table {whole[0]}").words()
    assert f"student, point forecast {MODELS['student']:.3f} {10 * MODELS['student']:.1f} % – " in words
    assert words.index("oracle") < words.index("student, point forecast") < words.index("gbm")


def test_fid_stands_with_its_interval_and_what_measured_maps_have(page: str) -> None:
    found = re.search(r'data-table="fid".*?</table>', page, re.DOTALL)
    assert found
    words = Page(f"<table {found[0]}").words()
    assert "15,000 generated maps of 1,000 wafers, 2,325 measured maps, seed 7, cpu" in words
    assert "fid15k.embedding 0.0345 0.03 to 0.04 0.011 0.02" in words
    assert "fid15k.inception_64 1.25 – – –" in words
    assert "kid_embedding 0.0012 ± 0.0004 0 –" in words
    assert FID["weights"]["sha256"] in page


def test_without_inception_weights_the_reason_is_said(checkout: Path) -> None:
    reason = {"weights": {"reason": "no network", "missing": {"sfid": "no spatial features"}}}
    (checkout / "reports/evaluation/fid.json").write_text(json.dumps(FID | reason))
    words = Page(build_report(read_sources(checkout))).words()
    assert "No Inception figures: no network." in words
    assert "sfid: no spatial features." in words


def test_out_of_spec_rates_are_shares_of_the_file(page: str) -> None:
    assert "oracle 0.912 0.5 12.5 % 6.2 %" in Page(page).words()


def test_without_ablations_and_fid_the_page_says_so(checkout: Path) -> None:
    shutil.rmtree(checkout / "reports/ablations")
    for path in ((checkout / "reports/evaluation") / name for name in ABSENT):
        path.unlink()
    words = Page(build_report(read_sources(checkout))).words()
    assert "No ablation has been run" in words
    assert "Not there when this page was built:" in words
    assert "reports/evaluation/fid.json" in words
    for name in ABSENT:
        assert re.search(rf"\(reports/evaluation/{re.escape(name)}\): not written by stage \w+", words), name


def test_text_in_pictures_is_not_cut() -> None:
    figure = charts_figure([Chart("0.123456", "x", "y", [Line("a", [0, 1], [0.77612, 0.77718])])])
    svg = inline_svg(figure, "cut", "A chart with long numbers.")
    assert ">0.123456<" in svg
    assert max(len(part) for part in re.findall(r"\.(\d+)", re.sub(r">[^<]*<", "><", svg))) <= 2


def test_figures_are_written_beside_the_page(full: Path) -> None:
    write_report(full)
    names = {path.name for path in (full / FIGURES).iterdir()}
    assert names >= {"m3s.png", "losses.png", "speed.png", "ablation-mask.png", "wafer-worst.png"}
    assert all((full / FIGURES / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_the_same_sources_give_the_same_file(full: Path, page: str) -> None:
    assert write_report(full, Origin("abc123", 7, "fab", "ikddit")).read_text(encoding="utf-8") == page


# In a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(full: Path, page: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium()
    (full / "page.html").write_text(page, encoding="utf-8")
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        opened.open((full / "page.html").as_uri())
        yield opened


SHOWN = "Array.from(document.querySelectorAll('.wafer')).filter(w => w.offsetHeight).map(w => w.dataset.barcode).join()"


def test_page_loads_in_silence_and_asks_the_network_for_nothing(browser: Browser, full: Path) -> None:
    browser.value("new Promise(done => setTimeout(done, 200))")
    assert browser.console == []
    asked = [url for url in browser.requests if not url.startswith("data:")]
    assert asked == [(full / "page.html").as_uri()]


def test_the_policy_of_the_page_refuses_a_request(browser: Browser) -> None:
    answer = browser.value("fetch('http://127.0.0.1:9/').then(() => 'sent', error => 'refused')")
    assert answer == "refused"
    assert any("Content Security Policy" in line for line in browser.console)
    browser.console.clear()


def test_picker_shows_one_wafer_and_obeys_list_buttons_keys_and_address(browser: Browser, full: Path) -> None:
    assert browser.value(SHOWN) == "W0001"  # the median
    browser.value("document.getElementById('after').click()")
    assert browser.value(SHOWN) == "W0002"
    assert browser.value("location.hash") == "#wafer=W0002"
    browser.value("document.getElementById('after').click()")  # around
    assert browser.value(SHOWN) == "W0000"
    browser.value("pick.value = '1'; pick.dispatchEvent(new Event('change'))")
    assert browser.value(SHOWN) == "W0001"
    browser.value("pick.focus()")
    browser.press("ArrowLeft")
    assert browser.value(SHOWN) == "W0000"
    browser.press("ArrowRight")
    assert browser.value(SHOWN) == "W0001"
    browser.press("Tab")
    browser.press("Enter")  # the button for the previous wafer
    assert browser.value(SHOWN) == "W0000"
    browser.open((full / "page.html").as_uri() + "?again#wafer=W0002")
    assert browser.value(SHOWN) == "W0002"
    assert browser.console == []


def test_tables_in_the_browser_hold_the_numbers_of_metrics_json(browser: Browser) -> None:
    cells = browser.value(
        "Array.from(document.querySelectorAll('[data-metric]')).map("
        "e => [e.dataset.metric, e.textContent, e.dataset.share || ''])"
    )
    assert {"rmse_nm", "crps_nm", "coverage_90", "ome_1p5"} <= {name for name, *_ in cells}
    for name, text, share in cells:
        value = metric_of(name)
        assert text == (f"{100 * value:.1f} %" if share else f"{value:.3f}")
    rows = browser.value(
        "Array.from(document.querySelectorAll('[data-row]')).map(r => [r.dataset.row, r.cells[1].textContent])"
    )
    assert dict(rows)["student"] == f"{METRICS['rmse_nm']:.3f}"
    for name, found in METRICS["baselines"].items():  # type: ignore[attr-defined]
        assert dict(rows)[name] == f"{found['rmse_nm']:.3f}"


def test_nothing_is_wider_than_a_laptop_screen(browser: Browser) -> None:
    assert browser.value("document.documentElement.scrollWidth") <= 1366


def test_paper_gets_best_median_and_worst(browser: Browser) -> None:
    browser("Emulation.setEmulatedMedia", media="print")
    assert browser.value(SHOWN) == "W0000,W0001,W0002"
    assert browser.value("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser("Emulation.setEmulatedMedia", media="")


def test_fid_stands_with_mean_and_sd_over_repeated_runs(checkout: Path) -> None:
    rows = [f"seed-{n},{n},0.8,{value}" for n, value in enumerate((0.03, 0.04, 0.05))]
    (checkout / "reports/ablations/seeds.csv").write_text(
        "\n".join(["run,seed,rmse_nm,fid15k.embedding", *rows]) + "\n"
    )
    words = Page(build_report(read_sources(checkout))).words()
    assert "mean ± sd of 3 seeds" in words
    assert "fid15k.embedding 0.0345 0.03 to 0.04 0.04 ± 0.01 0.011 0.02" in words


def test_a_standard_deviation_stands_beside_its_figure_whatever_it_was_taken_over() -> None:
    fid = {
        "inception_score": 2.5,
        "inception_score_split_sd": 0.2,
        "kid_embedding": 0.5,
        "kid_embedding_subset_sd": 0.1,
    }
    assert [(row.name, row.sd) for row in fid_rows(fid)] == [("inception_score", 0.2), ("kid_embedding", 0.1)]


def test_names_that_look_like_numbers_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "kpis.csv").write_text(
        "model,group,level,n_wafers,rmse_nm\nzero,all,all,5,1.0\nzero,chuck,1,2,1.5\nzero,chuck,01,3,0.5\n"
    )
    found = pivot(read_tables(tmp_path)["kpis"], "rmse_nm")
    assert found is not None
    assert found.levels == [("all", "all"), ("chuck", "1"), ("chuck", "01")]
    assert found.rows == [("zero", [1.0, 1.5, 0.5])]
    assert found.wafers == [5, 2, 3]


def test_distances_on_two_embeddings_are_not_put_side_by_side() -> None:
    rows = [
        {"embed.contrastive": kept, "rmse_nm": 1.0, "frechet_embedding": distance}
        for kept, distance in (("True", 0.2), ("False", 0.01))
    ]
    assert ablation("condition", rows).metrics == ["rmse_nm"]
    swept = [{"mask_ratio": i, "rmse_nm": 1.0, "frechet_embedding": 0.2} for i in (0.0, 0.5)]
    assert ablation("mask", swept).metrics == ["rmse_nm", "frechet_embedding"]
