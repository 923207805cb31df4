"""`ikddit serve`: MLflow's scoring server on a registered version, on loopback, behind `ikddit.registry.door`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ikddit.errors import RegistryError
from ikddit.registry.store import Store, if_there, open_store
from ikddit.registry.ui import address, check_port

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"
"""Seconds; MLflow's own default of 60 is short for a lot of 25 wafers on a busy machine."""


def serve_command(model: str, host: str, port: int) -> list[str]:
    """The command that serves; `-P` keeps the modules beside the file from being imported by their bare names.

    >>> serve_command("models:/ikddit/3", "127.0.0.1", 5001)[3:]
    ['models:/ikddit/3', '127.0.0.1', '5001']
    """
    return [sys.executable, "-P", str(Path(__file__).with_name("door.py")), model, host, str(port)]


def serve_environment(store: Store, threads: int) -> dict[str, str]:
    """What the server needs to be told: the store, its threads, and to stay quiet."""
    return {
        "MLFLOW_TRACKING_URI": store.uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONDONTWRITEBYTECODE": "1",
        TIMEOUT: os.environ.get(TIMEOUT, "300"),
    }


def find_version(store: Store, model: str, experiment: str) -> "ModelVersion":
    """The version that a registry address names now; an alias may move to another one at any time.

    Raises:
        RegistryError: no such version, or the store does not answer.
    """
    client, _ = open_store(store, experiment)
    name, _, version = model.removeprefix("models:/").replace("@", "/@").partition("/")
    found = None
    if version.startswith("@"):
        found = if_there(client.get_model_version_by_alias, name, version.removeprefix("@"))
    elif version.isdecimal():
        found = if_there(client.get_model_version, name, version)
    if found is None:
        raise RegistryError(
            f"{model}: not in {store.public_uri}; `ikddit models` lists what is, `make repro` registers one"
        )
    return found


def serve(store: Store, model: str, experiment: str, host: str, port: int, threads: int) -> NoReturn:
    """Replace this process by the server.

    Args:
        store: that holds the model.
        model: registry address, for example `models:/ikddit@champion`.
        experiment: MLflow experiment of the store.
        host: to listen on.
        port: to listen on.
        threads: of torch.

    Raises:
        RegistryError: no such version, or the port is taken.
    """
    check_port(host, port)
    found = find_version(store, model, experiment)
    print(
        f"{found.name} version {found.version}: {address(host, port)}/invocations  (stop with Ctrl-C)",
        file=sys.stderr,
        flush=True,
    )
    command = serve_command(f"models:/{found.name}/{found.version}", host, port)
    os.execve(sys.executable, command, os.environ | serve_environment(store, threads))
