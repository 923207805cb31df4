"""What is in the store, for a person: a table of versions, and moves of the champion in words."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ikddit.registry.promotion import CHAMPION, Move
from ikddit.registry.register import VERSION_METRICS, VERSION_PARAMS
from ikddit.registry.store import Store, open_store

if TYPE_CHECKING:
    from rich.table import Table

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
NEEDED = ("rmse_nm", "gate", "mask_ratio", "dvc_exp_name", "champion.since", "served", "crps_nm")
"""Columns that stay longest on a narrow terminal, the most needed first."""
WIDE = 400
"""Characters of a table that goes into a pipe or a file."""


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
    """Print a table: champion in bold, columns that no version has left out.

    A terminal that is too narrow for all of them gets fewer, each of them whole, and is told which are missing.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=None if sys.stdout.isatty() else WIDE)
    shown = [column for column in COLUMNS if any(column in row.tags for row in rows)]
    droppable = [column for column in NEEDED if column in shown]
    droppable += [column for column in shown if column not in NEEDED]
    table, missing = _table(rows, name, shown), []
    while droppable and (
        Measurement.get(console, console.options.update(max_width=WIDE), table).maximum > console.width
    ):
        missing.append(droppable.pop())
        table = _table(rows, name, [column for column in shown if column not in missing])
    console.print(table)
    if missing:
        left_out = ", ".join(column for column in shown if column in missing)
        console.print(f"too narrow for {left_out}; all of it: ikddit models | less -S", highlight=False)


def _table(rows: list[VersionRow], name: str, columns: list[str]) -> "Table":
    from rich.table import Table

    count = f"{len(rows)} version" + ("s" if len(rows) != 1 else "")
    table = Table("version", "aliases", *columns, title=f"{name}: {count}", title_justify="left")
    for row in rows:
        tags = row.tags | {name: row.tags.get(name, "-")[:8] for name in SHORTENED}
        cells = [tags.get(column, "-") for column in columns]
        style = "bold" if CHAMPION in row.aliases else None
        table.add_row(str(row.version), ", ".join(row.aliases), *cells, style=style)
    return table


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
