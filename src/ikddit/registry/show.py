"""What is in the store, for a person: the MLflow UI on loopback, and a table of versions."""

import os
import sys
from dataclasses import dataclass
from typing import NoReturn

from ikddit.errors import RegistryError
from ikddit.registry.promotion import CHAMPION, Move
from ikddit.registry.register import VERSION_METRICS, VERSION_PARAMS
from ikddit.registry.store import Store, open_store

COLUMNS = (
    *VERSION_PARAMS,
    *VERSION_METRICS,
    "served",
    "gate",
    "data_md5",
    "git_commit",
    "dvc_exp_name",
    "champion.since",
    "champion.why",
)
SHORTENED = ("data_md5", "git_commit")
"""Hashes of which the table shows eight characters."""


@dataclass(frozen=True)
class VersionRow:
    """One line of `ikddit models`."""

    version: int
    aliases: tuple[str, ...]
    run_id: str
    tags: dict[str, str]


def list_versions(store: Store, name: str, experiment: str) -> list[VersionRow]:
    """List the versions of a registered model, newest first.

    Raises:
        RegistryError: the store cannot be opened.
    """
    client, _ = open_store(store, experiment)
    found = client.search_model_versions(f"name = '{name}'")
    if not found:
        return []
    aliases: dict[int, list[str]] = {}
    for alias, version in client.get_registered_model(name).aliases.items():
        aliases.setdefault(int(version), []).append(alias)
    rows = [
        VersionRow(
            int(v.version), tuple(sorted(aliases.get(int(v.version), []))), str(v.run_id), dict(v.tags or {})
        )
        for v in found
    ]
    return sorted(rows, key=lambda row: row.version, reverse=True)


def print_versions(rows: list[VersionRow], name: str) -> None:
    """Print a table: champion in bold, columns that no version has left out."""
    from rich.console import Console
    from rich.table import Table

    shown = [column for column in COLUMNS if any(column in row.tags for row in rows)]
    table = Table("version", "aliases", *shown, title=f"{name}: {len(rows)} versions", title_justify="left")
    for row in rows:
        tags = row.tags | {name: row.tags.get(name, "-")[:8] for name in SHORTENED}
        cells = [tags.get(column, "-") for column in shown]
        style = "bold" if CHAMPION in row.aliases else None
        table.add_row(str(row.version), ", ".join(row.aliases), *cells, style=style)
    wide = None if sys.stdout.isatty() else 400  # into a pipe or a file nothing is cut off
    Console(width=wide).print(table)


def move_lines(name: str, move: Move) -> str:
    """One move of the alias in words, with what the gate said.

    >>> print(move_lines("ikddit", Move(2, "rollback", 1, 2, "2026-03-01T08:00:00+00:00", "fab", "noisy")))
    champion of ikddit: version 2 -> 1 (rollback, 2026-03-01T08:00:00+00:00)
    """
    before = "none" if move.before is None else move.before
    how = move.action + (", forced" if move.forced else "")
    lines = [f"champion of {name}: version {before} -> {move.version} ({how}, {move.at})"]
    gate = move.gate or {}
    lines += [f"  no:  {reason}" for reason in gate.get("failed", [])]
    lines += [f"  yes: {reason}" for reason in gate.get("passed", [])]
    return "\n".join(lines)


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
    print(f"MLflow UI: http://{host}:{port}  (stop with Ctrl-C)", file=sys.stderr, flush=True)
    os.execve(command[0], command, os.environ | environment)


def check_port(host: str, port: int) -> None:
    """Say before a server starts that it could not listen.

    Raises:
        RegistryError: the port is taken, or the address is not this machine's.
    """
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RegistryError(f"{host}:{port}: {error.strerror}; choose another with --port") from None
