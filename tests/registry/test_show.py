import json
from pathlib import Path

import pytest
from made_workspace import write_model
from typer.testing import CliRunner

from ikddit.cli import app
from ikddit.params import Params
from ikddit.registry.register import register
from ikddit.registry.show import list_versions
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
