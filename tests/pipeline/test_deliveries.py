"""The gate on deliveries and the data set versions made of what passed it; no DVC, MLflow or Prefect runs here."""

import json
import shutil
from pathlib import Path

import pytest

from ikddit.errors import InputError
from ikddit.params import Params, parse_params
from ikddit.simulator.writer import write_dataset

LOTS = {"lots": 1, "days": 1.0}


@pytest.fixture(scope="module")
def params() -> Params:
    return parse_params({"data": {"raw": "base"}, "ingest": {"workers": 1}})


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a month of one fab, one lot each."""
    folder = tmp_path_factory.mktemp("exports")
    for name, day in (("base", 0.0), ("month", 30.0)):
        simulate = parse_params({"simulate": LOTS | {"from_day": day}}).simulate
        write_dataset(simulate, folder / name, workers=1)
    return folder


@pytest.fixture
def root(tmp_path: Path, exports: Path) -> Path:
    shutil.copytree(exports, tmp_path / "root")
    (tmp_path / "root" / "data" / "incoming").mkdir(parents=True)
    (tmp_path / "root" / "month").rename(tmp_path / "root" / "data" / "incoming" / "2024-02")
    return tmp_path / "root"


def judged(root: Path, params: Params, name: str = "2024-02"):
    from pipelines.deliveries import judge

    return judge(root / "data" / "incoming" / name, root, params, root / "scratch")


def test_sound_delivery_passes_and_its_records_are_there(root: Path, params: Params) -> None:
    found = judged(root, params)
    assert found.passed, found.reason
    assert (found.found, found.records, found.quarantined) == (25, 25, 0)
    assert list((root / "scratch" / "validated").glob("part-*.parquet"))
    assert not (root / "scratch" / "raw").exists()


def test_corrupt_delivery_is_stopped_with_its_counts_and_is_left_as_it_was(
    root: Path, params: Params
) -> None:
    from pipelines.demo_retrain import corrupt

    delivery = root / "data" / "incoming" / "2024-02"
    corrupt(delivery)
    before = sorted(path.stat().st_size for path in delivery.rglob("*.zip"))
    found = judged(root, params)
    assert not found.passed
    assert (found.found, found.records, found.quarantined) == (25, 0, 25)
    assert "none of 25 items is usable" in found.reason
    assert str(root) not in found.reason
    assert sorted(path.stat().st_size for path in delivery.rglob("*.zip")) == before


def test_delivery_of_another_scale_is_stopped_by_the_name_of_the_key(root: Path, params: Params) -> None:
    path = root / "data" / "incoming" / "2024-02" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scale_nm": 8.0}))
    assert "scale_nm: 8.0, but the data set has 16.0" in judged(root, params).reason


def test_name_that_was_taken_in_before_is_stopped(root: Path, params: Params) -> None:
    (root / "data" / "months" / "2024-02").mkdir(parents=True)
    assert "taken in before" in judged(root, params).reason


def test_deliveries_that_are_still_written_are_not_seen(tmp_path: Path) -> None:
    from pipelines.deliveries import name_of, pending

    for name in ("2024-03", "2024-02.zip", "2024-04.part", ".2024-05", "incoming.dvc"):
        (tmp_path / name).mkdir()
    assert [name_of(path) for path in pending(tmp_path)] == ["2024-02", "2024-03"]
    assert pending(tmp_path / "none") == []


def test_version_holds_the_chosen_parts_and_one_description(root: Path, params: Params) -> None:
    from pipelines.deliveries import chosen, compose

    deliveries = {"2024-02": root / "data" / "incoming" / "2024-02"}
    compose(root, params, chosen(deliveries, 0), deliveries)
    raw = root / "data" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == ["2024-02", "base", "dataset.json"]
    assert len(list(raw.rglob("*.zip"))) == 2
    assert len(list(raw.rglob("dataset.json"))) == 1
    assert json.loads((raw / "dataset.json").read_text())["seeds"]["fab_seed"] == 0
    compose(root, params, chosen(deliveries, 1), deliveries)
    assert sorted(path.name for path in raw.iterdir()) == ["2024-02", "dataset.json"]
    assert (root / "base" / "dataset.json").is_file()


def test_ids_are_united_and_a_shift_known_to_one_counts_for_both() -> None:
    from pipelines.deliveries import merge

    seeds = {"fab_seed": 0, "sample_seed": 0, "unflagged_flyers": False, "lots": 3}
    step = {"scanner": "LITH03", "day": 40.0, "nm": 3.0}
    one = {"scale_nm": 16.0, "simulator_version": 2, "seeds": seeds, "ids": {"scanner_id": ["A", "B"]}}
    two = one | {"seeds": seeds | {"lots": 5, "shift": step}, "ids": {"scanner_id": ["B", "C"]}}
    both = merge(one, two)
    assert both["ids"] == {"scanner_id": ["A", "B", "C"]}
    assert both["seeds"]["shift"] == step
    assert "seeds" not in merge(one, two | {"seeds": seeds | {"fab_seed": 1}})
    assert "seeds" not in merge(one, two | {"simulator_version": 1})
    with pytest.raises(InputError, match="feature_names: another list"):
        merge({"feature_names": ["a" * 50]}, {"feature_names": ["b" * 50]})


def test_wafers_of_both_parts_can_be_drawn_again_from_the_description(root: Path, params: Params) -> None:
    from pipelines.deliveries import chosen, compose

    from ikddit.mpom.ingest import ingest
    from ikddit.simulator.oracle import wafers_for

    deliveries = {"2024-02": root / "data" / "incoming" / "2024-02"}
    compose(root, params, chosen(deliveries, 0), deliveries)
    report = ingest(root / "data/raw", root / "r", root / "q", root / "i.json", params.ingest)
    assert report["records"] == 50
    facts = json.loads((root / "r" / "dataset.json").read_text())
    names = [path.stem for path in sorted((root / "data" / "raw").rglob("*.zip"))]
    _, wafers = wafers_for(facts, [f"{name}W01" for name in names])
    assert len(wafers) == 2


def test_judged_deliveries_leave_the_drop_folder(root: Path, params: Params) -> None:
    from pipelines.deliveries import Judged, put_away

    path = root / "data" / "incoming" / "2024-02"
    put_away(path, root / "data" / "refused", Judged("2024-02", False, "half of it is broken"))
    assert not path.exists()
    assert (root / "data" / "refused" / "2024-02" / "lots").is_dir()
    assert "half of it" in (root / "data" / "refused" / "2024-02.json").read_text()
