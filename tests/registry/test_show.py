import json
import re
from pathlib import Path

import pytest
from made_workspace import write_model
from typer.testing import CliRunner

from ikddit.cli import app
from ikddit.params import Params
from ikddit.registry.register import register
from ikddit.registry.show import COLUMNS, VersionRow, list_versions, print_versions
from ikddit.registry.store import Store


@pytest.mark.usefixtures("stand_in")
def test_versions_are_listed_newest_first_with_their_aliases_and_metrics(
    workspace: Path, store: Store
) -> None:
    register(Params(), workspace, store)
    write_model(workspace, 2.5)
    register(Params(), workspace, store)
    newest, first = list_versions(store, "ikddit", "ikddit")
    assert (newest.version, newest.aliases) == (2, ("challenger",))
    assert (first.version, first.aliases) == (1, ("champion",))
    assert newest.tags["rmse_nm"] == "1.25"


def test_models_command_prints_json_and_says_when_there_is_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "params.yaml").write_text("seed: 0\n")
    monkeypatch.setenv("DVC_ROOT", str(store.root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "no version of `ikddit` yet" in CliRunner().invoke(app, ["models"]).stdout
    assert json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout) == []


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_a_narrow_terminal_gets_fewer_columns_but_whole_ones(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    tags = dict.fromkeys(COLUMNS, "0.123456") | {"champion.why": "promote: " + "better on May's wafers " * 4}
    print_versions([VersionRow(1, ("challenger", "champion"), "run", tags)], "ikddit")
    printed = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    table, missing = (set(re.findall(r"[\w.]+", part)) for part in printed.partition("too narrow for ")[::2])
    assert "\u2026" not in printed  # the ellipsis of a cut cell
    assert {"1", "challenger", "champion"} <= table
    assert all((column in table) != (column in missing) for column in COLUMNS)
    assert bool(missing) == (width < 400)
