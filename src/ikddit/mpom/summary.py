"""What `ikddit ingest` prints: counts, reasons of the quarantine, and what the data can be used for."""

from pathlib import Path
from typing import Any

_CAPABILITIES = {
    "nm": "figures in nm",
    "supervised": "supervised training and scoring",
    "generation": "generation from logs and ids",
}


def print_report(report: dict[str, Any], out: Path) -> None:
    """Print an ingest report as a small table.

    Args:
        report: from `ikddit.mpom.ingest.ingest`.
        out: folder that holds records/, quarantine/ and ingest.json.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("found", f"{report['found']}", "items")
    table.add_row("records", f"{report['records']}", f"{out / 'records'} ({report['units']})")
    table.add_row("quarantined", f"{report['quarantined']}", f"{out / 'quarantine' / 'quarantine.jsonl'}")
    for field, count in sorted(report["quarantined_by_field"].items(), key=lambda pair: (-pair[1], pair[0])):
        table.add_row("", f"{count}", field)
    table.add_row("target maps", f"{report['with_target']}", "")
    table.add_row("log channels", f"{report['log_channels']}", "")
    for name, text in _CAPABILITIES.items():
        table.add_row("possible" if report["capabilities"][name] else "not possible", "", text)
    console = Console(soft_wrap=True)
    console.print(table)
    for note in report["notes"]:
        console.print(f"- {note}", markup=False)
