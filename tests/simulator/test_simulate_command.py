"""`ikddit simulate` replaces nothing but an older data set of its own."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ikddit.atomic import write_json
from ikddit.cli import app
from ikddit.errors import InputError


def simulate(out: Path, seed: int = 0) -> None:
    options = ["--lots", "1", "--layout", "parquet", "--sample-seed", str(seed)]
    CliRunner().invoke(app, ["simulate", "--out", str(out), *options], catch_exceptions=False)


def test_data_set_of_its_own_is_replaced_and_an_empty_folder_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for seed in (0, 1):
        simulate(tmp_path / "out", seed)
    assert f'"sample_seed": {seed}' in (tmp_path / "out" / "dataset.json").read_text()


@pytest.mark.parametrize(
    "kept",
    [
        "2024-03/dataset.json",  # a drop folder with a delivery
        "lots/mine.zip",  # a data set of another making
        "dataset.json",
        "part-00000.parquet",  # records of a simulated data set, whose dataset.json they have
        "",
    ],
)
def test_anything_else_stays_as_it_is(tmp_path: Path, kept: str) -> None:
    out = tmp_path / "out"
    if kept.startswith("part-"):
        write_json(out / "dataset.json", {"seeds": {}})
    path = out / kept
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[1]")
    with pytest.raises(InputError, match=r"out: --out: holds other things .*; give another folder"):
        simulate(out)
    assert path.read_text() == "[1]"
