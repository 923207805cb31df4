"""The model card: what it says is what the reports say, and the committed card is that of the committed run."""

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from committed import committed, said_by_git
from ikddit.errors import InputError
from ikddit.evaluation.report.card import CARD, REPORTS, build_card
from ikddit.params import Params

METRICS = {
    "rmse_nm": 0.8,
    "ome_1p5": 0.08,
    "floor_rmse_nm": 0.75,
    "floor_ome_1p5": 0.05,
    "coverage_90": 0.9125,
    "n_wafers": 321,
    "served": "full",
    "baselines": {"gbm": {"rmse_nm": 1.0}, "oracle": {"rmse_nm": 0.75}},
}
BASELINES = {"test": {"gbm": {"rmse_nm": 1.0, "r2": 0.77}, "oracle": {"rmse_nm": 0.75}}}


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "baselines.json").write_text(json.dumps(BASELINES))
    return tmp_path


def test_committed_card_is_that_of_the_committed_reports(tmp_path: Path) -> None:
    tables = said_by_git("ls-tree", "--name-only", "HEAD", "reports/ablations/").split()
    tracked = said_by_git("ls-tree", "-r", "--name-only", "HEAD", "reports/").split()
    names = [f"reports/{name}" for name in REPORTS.values() if f"reports/{name}" in tracked]
    for name in [*names, *(name for name in tables if name.endswith(".csv"))]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(committed(name), encoding="utf-8")
    params = Params.model_validate(YAML(typ="safe").load(committed("params.yaml")))
    card = build_card(tmp_path / "reports", params)
    assert committed(CARD) == card, "run `make card` and commit docs/model-card.md"


def test_card_says_first_how_far_from_floor_and_baseline(reports: Path) -> None:
    card = build_card(reports, Params())
    assert (
        "0.800 nm RMSE on 321 test wafers, 6.7 % above the exact floor of 0.750 nm, "
        "20.0 % below the best baseline (gbm, 1.000 nm); full inference is served."
    ) in card
    assert "| 90 % interval of a mark covers | 91.2 % | 90 % |" in card
    assert "| gbm | 1.000 | 0.770 | – | – | – |" in card
    assert "nothing here is validated on\na real fab" in card
    assert "does not replace measurement of lots that are released" in card


def test_card_compares_m3s_forecasts_of_samplers_alone(reports: Path) -> None:
    test = {
        "gbm": {"rmse_nm": 1.0, "m3s_error_nm": 1.1},
        "oracle": {"rmse_nm": 0.75, "m3s_error_nm": 0.79, "m3s_error_sampled_nm": 0.7},
    }
    (reports / "baselines.json").write_text(json.dumps({"test": test}))
    card = build_card(reports, Params())
    assert "| gbm | 1.000 | – | – | – | – |" in card
    assert "| oracle | 0.750 | – | 0.700 | – | – |" in card


def test_card_without_the_optional_reports_says_what_is_missing(reports: Path) -> None:
    card = build_card(reports, Params())
    assert "`reports/evaluation/serving.json` has not been written: nothing was decided." in card
    assert "`reports/evaluation/fid.json` has not been written." in card
    assert "One seed only" in card


def test_card_of_own_data_claims_no_floor(reports: Path) -> None:
    own = {name: value for name, value in METRICS.items() if not name.startswith("floor_")}
    (reports / "evaluation/metrics.json").write_text(json.dumps(own))
    card = build_card(reports, Params())
    assert "exact floor" not in card
    assert "no floor is known for them" in card


def test_seeds_are_read_from_the_table_in_which_nothing_else_differs(reports: Path) -> None:
    (reports / "ablations").mkdir()
    (reports / "ablations/masks.csv").write_text(
        "run,mask_ratio,seed,rmse_nm\na,0.0,0,1.0\nb,0.5,0,2.0\n", encoding="utf-8"
    )
    (reports / "ablations/seeds.csv").write_text(
        "run,seed,device,rmse_nm\na,0,cpu,0.8\nb,1,cuda,0.9\n", encoding="utf-8"
    )
    card = build_card(reports, Params())
    assert "2 seeds (0, 1; `reports/ablations/seeds.csv`; ? test wafers; cpu / cuda), mean" in card
    assert "RMSE nm 0.850 ± 0.071." in card


def test_card_needs_the_metrics(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.json"):
        build_card(tmp_path, Params())


def test_a_damaged_report_is_named(reports: Path) -> None:
    (reports / "timing.json").write_text("{")
    with pytest.raises(InputError, match=r"timing\.json: JSON: .*run the stage"):
        build_card(reports, Params())


def test_tables_of_the_card_are_well_formed(reports: Path) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", build_card(reports, Params()), re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
