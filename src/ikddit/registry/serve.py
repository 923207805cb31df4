"""`ikddit serve`: MLflow's scoring server on a registered version, on loopback, behind `ikddit.registry.door`."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from ikddit.errors import RegistryError
from ikddit.registry.store import Store, open_store

TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"
"""Seconds; MLflow's own default of 60 is short for a lot of 25 wafers on a busy machine."""


def serve_command(model: str, host: str, port: int) -> list[str]:
    """The command that serves; `-P` keeps the modules beside the file from being imported by their bare names.

    >>> serve_command("models:/ikddit@champion", "127.0.0.1", 5001)[3:]
    ['models:/ikddit@champion', '127.0.0.1', '5001']
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
    from mlflow.exceptions import MlflowException

    from ikddit.registry.show import check_port

    check_port(host, port)
    client, _ = open_store(store, experiment)
    name, _, version = model.removeprefix("models:/").replace("@", "/@").partition("/")
    try:
        found = (
            client.get_model_version_by_alias(name, version.removeprefix("@"))
            if version.startswith("@")
            else client.get_model_version(name, version)
        )
    except MlflowException:
        raise RegistryError(
            f"{model}: not in {store.public_uri}; `ikddit models` lists what is, `make repro` registers one"
        ) from None
    print(
        f"{name} version {found.version}: http://{host}:{port}/invocations  (stop with Ctrl-C)",
        file=sys.stderr,
        flush=True,
    )
    os.execve(
        sys.executable, serve_command(model, host, port), os.environ | serve_environment(store, threads)
    )
