"""The gate on deliveries and the data set versions made of what passed it; no DVC, MLflow or Prefect runs here."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
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


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder of another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def die_in_file(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying stops in the middle of that file, as a killed process leaves it."""
    whole, copied = shutil.copyfile, []

    def copyfile(source: str, target: str, **options: bool) -> None:
        copied.append(source)
        whole(source, target, **options)
        if len(copied) == number:
            os.truncate(target, 3)
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", copyfile)


def test_a_file_is_a_part_of_the_data_set_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.deliveries import copy_in

    source, target = tmp_path / "2024-02.zip", tmp_path / "raw" / "2024-02.zip"
    source.write_bytes(b"wafers")
    with monkeypatch.context() as killed:
        die_in_file(1, killed)
        with pytest.raises(KeyboardInterrupt):
            copy_in(source, target)
    assert not target.exists()
    copy_in(source, target)
    assert target.read_bytes() == b"wafers"
    copy_in(source, tmp_path / "read" / "2024-02.zip", link=True)
    assert source.samefile(tmp_path / "read" / "2024-02.zip")


@pytest.mark.parametrize("is_file", [False, True])
def test_a_delivery_from_another_file_system_is_put_away_whole_or_not_at_all(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool
) -> None:
    from pipelines.deliveries import Judged, pending, put_away

    source, months = elsewhere / "2024-02", tmp_path / "months"
    files = [source] if is_file else [source / "a.zip", source / "b.zip"]
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.write_text("wafers")
    with monkeypatch.context() as killed:
        die_in_file(len(files), killed)
        with pytest.raises(KeyboardInterrupt):
            put_away(source, months, Judged("2024-02", True, "passed"))
    assert pending(months) == []
    assert [path.read_text() for path in files] == ["wafers"] * len(files)
    put_away(source, months, Judged("2024-02", True, "passed"))
    assert [path.name for path in pending(months)] == ["2024-02"]
    found = [months / path.relative_to(elsewhere) for path in files]
    assert [path.read_text() for path in found] == ["wafers"] * len(files)
    assert list(elsewhere.iterdir()) == []


def test_the_second_delivery_of_a_name_is_stopped_and_the_first_one_is_not_touched(
    root: Path, params: Params
) -> None:
    from pipelines.deliveries import judge, pending

    incoming = root / "data" / "incoming"
    (incoming / "2024-02.zip").write_bytes(b"another export")
    paths = pending(incoming)
    first, second = (judge(path, root, params, root / "scratch", paths) for path in paths)
    assert (first.name, first.passed) == ("2024-02", True)
    assert (second.name, second.passed, second.found) == ("2024-02.zip", False, 0)
    assert "2024-02.zip: name: 2024-02 has the same; give one of them another" in second.reason
    assert list((root / "scratch" / "validated").glob("part-*.parquet"))  # of the first


def test_judged_deliveries_leave_the_drop_folder(root: Path, params: Params) -> None:
    from pipelines.deliveries import Judged, put_away

    path = root / "data" / "incoming" / "2024-02"
    put_away(path, root / "data" / "refused", Judged("2024-02", False, "half of it is broken"))
    assert not path.exists()
    assert (root / "data" / "refused" / "2024-02" / "lots").is_dir()
    assert "half of it" in (root / "data" / "refused" / "2024-02.json").read_text()
