"""What `ikddit ingest` prints: counts, reasons of the quarantine, and what the data can be used for."""

from pathlib import Path
from typing import Any

_CAPABILITIES = {
    "nm": "figures in nm",
    "supervised": "supervised training and scoring",
    "generation": "generation from logs and ids",
}


def report_lines(report: dict[str, Any], out: Path) -> list[str]:
    """Lines of an ingest report: a column of counts, then notes. Paths are never cut.

    Args:
        report: from `ikddit.mpom.ingest.ingest`.
        out: folder that holds records/, quarantine/ and ingest.json.
    """
    rows = [
        ("found", report["found"], "items"),
        ("records", report["records"], f"{out / 'records'} ({report['units']})"),
        ("quarantined", report["quarantined"], f"{out / 'quarantine' / 'quarantine.jsonl'}"),
    ]
    for field, count in sorted(report["quarantined_by_field"].items(), key=lambda pair: (-pair[1], pair[0])):
        rows.append(("", count, f"{field}, for example {report['quarantine_examples'][field]}"))
    rows += [("target maps", report["with_target"], ""), ("log channels", report["log_channels"], "")]
    lines = [f"{label:<12}{count:>8}  {text}".rstrip() for label, count, text in rows]
    for name, text in _CAPABILITIES.items():
        lines.append(f"{'possible' if report['capabilities'][name] else 'not possible':<12}{'':>8}  {text}")
    return lines + [f"- {note}" for note in report["notes"]]
