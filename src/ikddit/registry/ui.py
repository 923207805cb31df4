"""The MLflow UI on a store, on loopback, and whether a server of this machine could listen."""

import os
import socket
import sys
from typing import NoReturn

from ikddit.errors import RegistryError
from ikddit.registry.store import Store, open_store


def ui_command(store: Store, host: str, port: int) -> tuple[list[str], dict[str, str]]:
    """Build the command and environment of `mlflow ui` for a local store or a database.

    One worker and no job runner: up in about 6 s instead of 16 s.

    Raises:
        RegistryError: the store is a server, which has its own UI.
    """
    if store.uri.startswith(("http://", "https://", "databricks")):
        raise RegistryError(f"the store is a server with its own UI: open {store.public_uri}")
    command = [sys.executable, "-m", "mlflow", "ui"]
    if store.artifact_location:
        command += ["--default-artifact-root", store.artifact_location]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    environment = {
        "MLFLOW_BACKEND_STORE_URI": store.uri,  # not as an option: every user of the machine sees those
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return command, environment


def serve_ui(store: Store, experiment: str, host: str, port: int) -> NoReturn:
    """Replace this process by the MLflow UI; a store that is not there yet is created first.

    Raises:
        RegistryError: the store is a server, or the port is taken.
    """
    command, environment = ui_command(store, host, port)
    check_port(host, port)
    if store.database is not None and not store.database.exists():
        open_store(store, experiment)
    print(f"MLflow UI: {address(host, port)}  (stop with Ctrl-C)", file=sys.stderr, flush=True)
    os.execve(command[0], command, os.environ | environment)


def check_port(host: str, port: int, option: str = "--port") -> None:
    """Say before a server starts that it could not listen.

    Args:
        host: address or name, IPv4 or IPv6.
        port: to listen on.
        option: by which another port is chosen, for the error.

    Raises:
        RegistryError: the port is taken, or the address is not this machine's.
    """
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:  # as the servers listen; else IPv4 addresses would count too
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(place)
    except OSError as error:
        raise RegistryError(f"{host}:{port}: {error.strerror}; choose another with {option}") from None


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds a server that listens there.

    >>> address("127.0.0.1", 5000), address("::", 5000)
    ('http://127.0.0.1:5000', 'http://[::1]:5000')
    """
    if host in ("0.0.0.0", "::"):  # every address of its kind
        host = "::1" if host == "::" else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
