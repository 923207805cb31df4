import json
from pathlib import Path

import pytest
from made_workspace import write_model
from typer.testing import CliRunner

from ikddit.cli import app
from ikddit.errors import RegistryError
from ikddit.params import Params
from ikddit.registry.register import register
from ikddit.registry.serve import serve
from ikddit.registry.show import list_versions, serve_ui, ui_command
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


def test_ui_serves_the_local_store_on_loopback_with_one_worker(store: Store) -> None:
    command, environment = ui_command(store, "127.0.0.1", 5000)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == store.uri
    assert command[command.index("--workers") + 1] == "1"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_ui_of_a_server_is_the_servers_own(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"open https://mlflow\.fab"):
        ui_command(Store(tmp_path, "https://me:secret@mlflow.fab", None), "127.0.0.1", 5000)


def test_taken_port_is_named(store: Store) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RegistryError, match=f"127.0.0.1:{port}: Address already in use"):
            serve_ui(store, "ikddit", "127.0.0.1", port)


@pytest.mark.parametrize("model", ["models:/ikddit@champion", "models:/ikddit/7"])
def test_what_is_not_registered_is_not_served(store: Store, model: str) -> None:
    with pytest.raises(RegistryError, match=r"not in sqlite:///mlflow\.db; `ikddit models`"):
        serve(store, model, "ikddit", "127.0.0.1", 0, 1)
