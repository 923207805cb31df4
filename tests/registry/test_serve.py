"""What `ikddit serve` starts is the version that it names."""

from pathlib import Path

import pytest
from made_workspace import write_model

from ikddit.errors import RegistryError
from ikddit.params import Params
from ikddit.registry.register import register
from ikddit.registry.serve import serve
from ikddit.registry.store import Store


@pytest.mark.parametrize(
    "model", ["models:/ikddit@champion", "models:/ikddit/7", "models:/ikddit/latest", "ikddit"]
)
def test_what_is_not_registered_is_not_served(store: Store, model: str) -> None:
    with pytest.raises(RegistryError, match=r"not in sqlite:///mlflow\.db; `ikddit models`"):
        serve(store, model, "ikddit", "127.0.0.1", 0, 1)


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("model", "version"),
    [("models:/ikddit@champion", 1), ("models:/ikddit@challenger", 2), ("models:/ikddit/1", 1)],
)
def test_alias_is_read_once_and_the_server_is_told_the_version(
    workspace: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: str,
    version: int,
) -> None:
    register(Params(), workspace, store)
    write_model(workspace, 2.5)
    register(Params(), workspace, store)
    started: list[list[str]] = []
    monkeypatch.setattr("os.execve", lambda program, command, env: started.append(command))
    serve(store, model, "ikddit", "::1", 0, 1)
    (command,) = started
    assert command[-3:] == [f"models:/ikddit/{version}", "::1", "0"]
    assert f"ikddit version {version}: http://[::1]:0/invocations" in capsys.readouterr().err
