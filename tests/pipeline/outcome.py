"""What a checkout holds of the pipeline's outputs, told apart from what no two runs have in common: times."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TIMES = {
    "data/generated/gate.json": ("*.seconds.*",),
    "reports/evaluation/metrics.json": ("masked.speedup", "served"),
    # the fifth check is the measured speed-up; `served` follows from all five, and reasons stand in order of passing
    "reports/evaluation/serving.json": ("speedup", "served", "reasons.*", "checks.4.*", "*.seconds*"),
    "reports/timing.json": (
        "*_s",
        "*_s_q25",
        "*_s_q75",
        "*_per_s",
        "*_speedup",
        "*_over_masked",
        "peak_memory_mib",
    ),
    "reports/train/summary.json": ("seconds", "cpu_seconds"),
    # a registry counts on, the fingerprint holds `served`, and the alias stands at the newest version
    "reports/registration.json": ("run_id", "version", "model_uri", "fingerprint", "alias"),
}
"""File -> patterns of its fields that are measured times and rates, or follow from one; the only list of them."""
PAGES = ("reports/index.html", "reports/figures/speed.png", "docs/model-card.md")
"""Pages and pictures that show those fields: of these only that they are whole is compared."""
ENDS = {".html": b"</html>", ".png": b"IEND\xaeB`\x82", ".md": b"\n"}
"""How a whole file of that kind ends."""


@dataclass(frozen=True)
class Output:
    """One path that a stage writes: a file or a folder."""

    stage: str
    path: str


def read_outputs(root: Path) -> list[Output]:
    """Every output, metric and plot of dvc.yaml, in its order."""
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    return [
        Output(name, entry if isinstance(entry, str) else next(iter(entry)))
        for name, stage in stages.items()
        for kind in ("outs", "metrics", "plots")
        for entry in stage.get(kind, [])
    ]


def contents(root: Path, path: str) -> dict[str, str]:
    """Every file of an output -> hash of what two runs must have in common; empty where there is none."""
    whole = root / path
    files = [whole] if whole.is_file() else sorted(p for p in whole.rglob("*") if p.is_file())
    return {file.relative_to(root).as_posix(): _hash(root, file) for file in files}


def outcome(root: Path, outputs: list[Output]) -> dict[str, dict[str, str]]:
    """The contents of all outputs, by path."""
    return {output.path: contents(root, output.path) for output in outputs}


def _hash(root: Path, file: Path) -> str:
    name, content = file.relative_to(root).as_posix(), file.read_bytes()
    if name in PAGES:
        return (
            "whole"
            if content.rstrip(b" \n" if file.suffix == ".html" else b"").endswith(ENDS[file.suffix])
            else "cut"
        )
    if name in TIMES:
        try:
            found = json.loads(content)
        except ValueError:
            return "cut"
        content = json.dumps(without_times(name, found), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def without_times(name: str, value: Any) -> dict[str, Any]:
    """The fields of a JSON file by dotted name, without its times."""
    return {
        field: leaf
        for field, leaf in _fields(value)
        if not any(fnmatchcase(field, pattern) for pattern in TIMES.get(name, ()))
    }


def _fields(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        yield place, value
    else:
        for key, inner in items:
            yield from _fields(inner, f"{place}.{key}" if place else str(key))


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """Files that differ, are missing or are new, by name."""
    return [
        f"{name}: {'missing' if name not in new else 'new' if name not in old else 'other content'}"
        for path, old in before.items()
        for new in [after[path]]
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
