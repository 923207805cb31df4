"""The MLflow UI is the store's own, on loopback; a port that is taken is named before anything starts."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ikddit.errors import RegistryError
from ikddit.registry.store import Store
from ikddit.registry.ui import check_port, serve_ui, ui_command


@contextmanager
def listener(family: socket.AddressFamily, host: str) -> Iterator[int]:
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_ui_serves_the_local_store_on_loopback_with_one_worker(store: Store) -> None:
    command, environment = ui_command(store, "127.0.0.1", 5000)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == store.uri
    assert command[command.index("--workers") + 1] == "1"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_ui_of_a_server_is_the_servers_own(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"open https://mlflow\.fab"):
        ui_command(Store(tmp_path, "https://me:secret@mlflow.fab", None), "127.0.0.1", 5000)


def test_taken_port_is_named(store: Store) -> None:
    with (
        listener(socket.AF_INET, "127.0.0.1") as port,
        pytest.raises(RegistryError, match=f"127.0.0.1:{port}: Address already in use; .* --port"),
    ):
        serve_ui(store, "ikddit", "127.0.0.1", port)


def test_taken_port_of_ipv6_is_named_too() -> None:
    try:
        with listener(socket.AF_INET6, "::1") as port:
            for host in ("::1", "::"):
                with pytest.raises(
                    RegistryError, match=f"{host}:{port}: Address already in use; .* MLFLOW_PORT"
                ):
                    check_port(host, port, "MLFLOW_PORT")
            check_port("127.0.0.1", port)
    except OSError:
        pytest.skip("no IPv6 here")


def test_address_of_another_machine_is_named() -> None:
    with pytest.raises(RegistryError, match=r"192\.0\.2\.1:5000: Cannot assign requested address"):
        check_port("192.0.2.1", 5000)
