"""Control charts against hand-made machines, loops and the textbook's formulas."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_wafers import made_split
from ruamel.yaml import YAML
from typer.testing import CliRunner

from ikddit.atomic import write_json
from ikddit.dataset.arrow import PreparedSplit
from ikddit.errors import InputError
from ikddit.evaluation.generated import Generated
from ikddit.evaluation.student import Measured, wafer_table
from ikddit.monitoring.control_charts import by_period, control_charts, ewma, ewma_sigma, maintenance_times
from ikddit.monitoring.page import Monitoring, build_page, monitor, read_wafers, write_monitoring
from ikddit.mpom.schema import ID_FIELDS, PIXELS, record_schema
from ikddit.overlay.grid import wafer_grid
from ikddit.params import ControlParams

START = pd.Timestamp("2024-01-01", tz="UTC")  # a Monday
TRAINED = START + pd.Timedelta(weeks=30)
PARAMS = ControlParams()


def made_wafers(
    weeks: int = 40, shift_nm: float = 0.0, from_week: int = 34, per_week: int = 4
) -> pd.DataFrame:
    """Four machines with white noise from week to week; the shift is on SC1 CH2 alone."""
    rng = np.random.default_rng(3)
    rows = []
    for scanner in ("SC1", "SC2"):
        for chuck in ("CH1", "CH2"):
            for week in range(weeks):
                level = 0.8 + 0.05 * rng.normal()
                if (scanner, chuck) == ("SC1", "CH2") and week >= from_week:
                    level += shift_nm
                rows += [
                    {
                        "scanner_id": scanner,
                        "chuck_id": chuck,
                        "exposed_at": START + pd.Timedelta(weeks=week, hours=10 * i),
                        "rmse_nm": level + 0.01 * (i - 1.5),
                    }
                    for i in range(per_week)
                ]
    return pd.DataFrame(rows)


def test_a_planted_shift_is_an_alarm_on_its_machine_and_nowhere_else() -> None:
    charts = control_charts(made_wafers(shift_nm=0.6), TRAINED, PARAMS)
    loud = {(c.scanner, c.chuck): c for c in charts if c.outside.any() or c.drifting.any()}
    assert set(loud) == {("SC1", "CH2")}
    chart = loud["SC1", "CH2"]
    weeks = (chart.start - START).days // 7
    assert weeks[chart.outside].tolist() == list(range(34, 40))
    assert weeks[chart.drifting].min() == 34


def test_without_a_shift_nothing_is_an_alarm() -> None:
    charts = control_charts(made_wafers(), TRAINED, PARAMS)
    assert len(charts) == 4
    assert not any((c.outside | c.drifting).any() for c in charts)


def test_a_small_lasting_shift_is_seen_by_the_ewma_before_any_single_point() -> None:
    charts = control_charts(made_wafers(weeks=50, shift_nm=0.1), TRAINED, PARAMS)
    (chart,) = [c for c in charts if (c.scanner, c.chuck) == ("SC1", "CH2")]
    drifting = np.flatnonzero(chart.drifting)
    assert drifting.size
    assert not chart.outside[: drifting[0] + 1].any()


def test_reference_periods_are_never_judged() -> None:
    wafers = made_wafers(shift_nm=5.0, from_week=10)  # within training
    (chart,) = [c for c in control_charts(wafers, TRAINED, PARAMS) if (c.scanner, c.chuck) == ("SC1", "CH2")]
    assert chart.reference.sum() == 30
    assert not (chart.outside | chart.drifting)[:30].any()


def test_limits_are_mean_and_three_standard_deviations_of_the_training_weeks() -> None:
    wafers = made_wafers()
    chart = control_charts(wafers, TRAINED, PARAMS)[0]
    mine = wafers[(wafers.scanner_id == "SC1") & (wafers.chuck_id == "CH1")]
    means = [mine[(mine.exposed_at - START).dt.days // 7 == week].rmse_nm.mean() for week in range(30)]
    center, sd = np.mean(means), np.std(means, ddof=1)
    assert chart.center == pytest.approx(center)
    assert chart.high[0] == pytest.approx(center + 3 * sd * np.sqrt(1 + 1 / 30))
    assert chart.low[-1] == pytest.approx(center - 3 * sd * np.sqrt(1 + 1 / 30))
    assert not chart.pooled


def test_false_alarms_of_white_noise_are_as_rare_as_three_sigma_says() -> None:
    rng = np.random.default_rng(0)
    weeks = 230
    time = START + pd.to_timedelta(7 * np.tile(np.arange(weeks), 60), unit="D")
    machines = np.repeat([f"SC{i:02}" for i in range(60)], weeks)
    wafers = pd.DataFrame(
        {
            "scanner_id": machines,
            "chuck_id": "CH1",
            "exposed_at": time,
            "mean_x_nm": rng.normal(size=60 * weeks),
        }
    )
    charts = control_charts(wafers, START + pd.Timedelta(weeks=30), PARAMS)
    judged = sum(int((~c.reference).sum()) for c in charts)
    alarms = sum(int(c.outside.sum()) for c in charts)
    # Student's t with 29 degrees of freedom: P(|t| > 3) = 0.0055; 12,000 points.
    assert judged == 60 * 200
    assert 0.003 < alarms / judged < 0.0085


def test_errors_not_measured_in_training_take_their_first_weeks_and_a_pooled_spread() -> None:
    wafers = made_wafers(weeks=40, shift_nm=0.6, from_week=38)
    wafers.loc[wafers.exposed_at < TRAINED, "rmse_nm"] = np.nan
    params = ControlParams(reference_periods=5)
    charts = control_charts(wafers, TRAINED, params)
    assert all(c.reference.tolist() == [True] * 5 + [False] * 5 for c in charts)
    few = control_charts(wafers, TRAINED + pd.Timedelta(weeks=4), params)  # 4 of 5 wanted
    assert all(c.pooled and c.sigma == few[0].sigma for c in few)
    values = [c.value[c.reference] for c in few]
    assert few[0].sigma == pytest.approx(np.sqrt(np.mean([v.var(ddof=1) for v in values])))


def test_ewma_and_its_spread_are_those_of_a_loop_and_of_simulation() -> None:
    values = np.array([1.0, 3.0, 2.0])
    z1 = 0.3 * 1.0 + 0.7 * 0.5
    z2 = 0.3 * 3.0 + 0.7 * z1
    assert ewma(values, 0.5, 0.3) == pytest.approx([z1, z2, 0.3 * 2.0 + 0.7 * z2])
    noise = np.random.default_rng(1).normal(size=(20_000, 6))
    simulated = np.std([ewma(row, 0.0, 0.2) for row in noise], axis=0)
    assert ewma_sigma(6, 0.2) == pytest.approx(simulated, rel=0.02)


def test_weeks_start_on_mondays_and_unknown_values_make_no_point() -> None:
    wafers = made_wafers(weeks=2, per_week=2)
    wafers.loc[0, "rmse_nm"] = np.nan
    table = by_period(wafers, "rmse_nm", 7)
    assert set(table["start"].dt.day_of_week) == {0}
    assert table["wafers"].tolist() == [1, 2, 2, 2, 2, 2, 2, 2]


def test_wafers_after_one_maintenance_make_one_event() -> None:
    times = START + pd.to_timedelta([0, 5, 20, 24 * 9, 24 * 9 + 3], unit="h")
    wafers = pd.DataFrame(
        {"scanner_id": ["SC1"] * 5, "exposed_at": times, "maintenance": [False, True, True, True, True]}
    )
    assert maintenance_times(wafers) == {"SC1": [times[1], times[3]]}


def write_records(folder: Path, shift_nm: float) -> Path:
    """Two machines, 20 weeks of 3 wafers; dx of SC1 jumps in the last week, where a maintenance is logged."""
    schema = record_schema(["dose", "focus"])
    usable = wafer_grid().usable
    rng = np.random.default_rng(5)
    rows = []
    for week in range(20):
        for scanner in ("SC1", "SC2"):
            for i in range(3):
                jump = shift_nm if (scanner, week) == ("SC1", 19) else 0.0
                maps = np.full((2, 64, 64), np.nan, np.float32)
                maps[:, usable] = 0.2 * rng.normal() + rng.normal(size=(2, int(usable.sum())))
                maps[0] += jump
                valid = usable.copy()
                valid[32, 20:30] = False  # ten marks not measured
                maps[:, ~valid] = np.nan
                row = dict.fromkeys(schema.names) | dict.fromkeys(ID_FIELDS, "A")
                rows.append(
                    row
                    | {
                        "barcode": f"{scanner}-{week}-{i}",
                        "scanner_id": scanner,
                        "chuck_id": "CH1",
                        "exposed_at": START + pd.Timedelta(weeks=week, hours=i),
                        "log_lines": ["EVENT PM completed baseline reset"] if jump else ["INFO quiet"],
                        "log_features": [30.0, np.nan if i == 0 else 1.0],
                        "prev_map": np.full(2 * PIXELS, np.nan),
                        "prev_valid": np.zeros(PIXELS, np.uint8),
                        "map": maps.reshape(-1),
                        "valid": valid.reshape(-1).astype(np.uint8),
                        "source": "made",
                        "sha256": "0",
                    }
                )
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "part-00000.parquet")
    return folder


def write_scores(path: Path, weeks: range) -> Path:
    """The evaluate stage's table of wafers measured as 0, with M3S forecast as 0.5 nm (x) and 1 nm (y)."""
    codes = [f"SC{s}-{w}-{i}" for s in (1, 2) for w in weeks for i in range(3)]
    n = len(codes)
    made = made_split(["SC1"] * n, ["L1"] * n, np.zeros((n, 3))).table
    at = made.schema.get_field_index("barcode")
    split = PreparedSplit.from_table(made.set_column(at, made.schema.field(at), pa.array(codes)))
    point = np.full((n, 2, 64, 64), 0.8, np.float16)
    generated = Generated(point[:, None], {"given": point}, made, None, {}, {})
    measured = Measured.of(split, np.zeros((2, 64, 64), np.float32))
    table = wafer_table(generated, measured, np.tile([0.5, 1.0], (n, 1, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def outs_of(stage: str) -> list[str]:
    dvc = YAML(typ="safe").load(Path(__file__).parents[2] / "dvc.yaml")
    return [out for out in dvc["stages"][stage]["outs"] if isinstance(out, str)]


def test_wafers_are_read_with_their_quality_overlay_and_errors(tmp_path: Path) -> None:
    records = write_records(tmp_path / "records", 0.0)
    wafers = read_wafers(records, write_scores(tmp_path / "wafers.parquet", range(18, 20)), "PM completed")
    assert len(wafers) == 120
    marks = int(wafer_grid().usable.sum())
    assert wafers["valid_share"].to_numpy() == pytest.approx((marks - 10) / marks)
    assert wafers["missing_logs"].mean() == pytest.approx(0.5 / 3)
    assert wafers["m3s_nm"].mean() == pytest.approx(3.2, abs=0.3)  # white noise of 1 nm
    assert wafers["rmse_nm"].notna().sum() == 12
    assert wafers["m3s_error_nm"].dropna().unique() == pytest.approx([1.0])
    assert not wafers["maintenance"].any()


@pytest.mark.parametrize("shift_nm", [0.0, 3.0])
def test_the_page_names_the_planted_shift_and_its_maintenance(tmp_path: Path, shift_nm: float) -> None:
    records = write_records(tmp_path / "data" / "validated", shift_nm)
    scores = write_scores(tmp_path / "data" / "evaluation" / "wafers.parquet", range(16, 20))
    assert str(scores.parent.relative_to(tmp_path)) in outs_of("evaluate")
    end = START + pd.Timedelta(weeks=16)
    write_json(tmp_path / "data" / "prepared" / "splits.json", {"splits": {"train": {"to": end.isoformat()}}})
    found = write_monitoring(tmp_path, PARAMS)
    page = (tmp_path / "reports" / "monitoring.html").read_text()
    named = {(a["scanner"], a["metric"]) for a in found.alarms if "point" in a["kind"]}
    if shift_nm:
        assert named == {("SC1", "mean_x_nm"), ("SC1", "m3s_nm")}
        assert list(found.maintenance) == ["SC1"]
        assert "judged points</span> are beyond" in page
    else:
        assert found.alarms == []
        assert found.maintenance == {}
        assert "No alarm" in page
    # A machine is charted for every figure, and the page calls nobody.
    assert page.count('role="img"') == 7
    assert not re.search(r"(src|href)=\"https?:|@import|url\(https?:", page)
    assert monitor(records, None, end, PARAMS).scored == 0


def test_the_command_prints_alarms_and_refuses_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ikddit.cli import app

    write_records(tmp_path / "records", 3.0)
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    monkeypatch.chdir(tmp_path)
    until = ["--until", "2024-04-22", "--out", "page.html"]
    done = CliRunner().invoke(app, ["monitor", "--records", "records", *until])
    assert done.exit_code == 0, done.output
    assert re.search(r"2024-05-13 SC1 CH1 mean_x_nm = .* point", done.output)
    assert (tmp_path / "page.html").is_file()
    empty = CliRunner().invoke(app, ["monitor", "--records", "nowhere", *until])
    assert isinstance(empty.exception, InputError)
    unscored = CliRunner().invoke(app, ["monitor", "--records", "records", "--scores", "nowhere", *until])
    assert "leave --scores out" in str(unscored.exception)
    wrong = CliRunner().invoke(app, ["monitor", "--records", "records", "--until", "soon"])
    assert "2024-10-20" in str(wrong.exception)


def test_records_without_earlier_weeks_are_not_called_free_of_alarms(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = write_records(tmp_path / "records", 3.0)
    few = PARAMS.model_copy(update={"reference_periods": 40})
    out = tmp_path / "page.html"
    write_monitoring(tmp_path, few, records, None, START - pd.Timedelta(days=1), out)
    assert "its own first 40 periods" in caplog.text
    assert "Nothing is judged" in out.read_text()
    assert "No alarm" not in out.read_text()
    few = PARAMS.model_copy(update={"period_days": 366})
    with pytest.raises(
        InputError, match="two reference periods of 366 days; 120 of 120 wafers are from before"
    ):
        write_monitoring(tmp_path, few, records, None, START + pd.Timedelta(weeks=50), out)


def test_text_of_the_fab_is_escaped() -> None:
    wafers = made_wafers(weeks=40, shift_nm=0.6).replace({"scanner_id": {"SC1": "<b>SC1</b>"}})
    charts = control_charts(wafers, TRAINED, PARAMS)
    page = build_page(Monitoring(charts, {}, len(wafers), 0, TRAINED), PARAMS)
    assert "<b>SC1" not in page
