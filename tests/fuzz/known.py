"""Findings on record that are not mended, each with why; a run counts them apart."""

import re

from contract import Finding

KNOWN: list[tuple[str, str, str]] = []
"""Target, pattern of `kind where`, and reason; empty when everything that was found is mended."""


def reason_of(finding: Finding) -> str | None:
    """Why this finding is no news, or None."""
    for target, pattern, reason in KNOWN:
        if finding.target == target and re.fullmatch(pattern, f"{finding.kind} {finding.where}"):
            return reason
    return None
