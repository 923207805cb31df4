"""What the report is made of: the files of the stages, read as they are; what is missing is named."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ikddit import atomic
from ikddit.errors import InputError

_SAMPLES = "data/evaluation/showcase.npz"
_TABLE = "data/evaluation/wafers.parquet"


@dataclass
class Sources:
    """What the report is made of; None or empty where a stage has not written it (`missing` says which)."""

    metrics: dict[str, Any]
    baselines: dict[str, Any]
    ingest: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    embedding: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    serving: dict[str, Any] | None = None
    """The acceptance gate's decision, its checks and figures."""
    training: dict[str, Any] | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)
    showcase: dict[str, np.ndarray] = field(default_factory=dict)
    wafers: dict[str, list[Any]] = field(default_factory=dict)
    """Columns of the per-wafer table."""
    log_lines: dict[str, list[str]] = field(default_factory=dict)
    """Log lines of the drawn wafers by barcode."""
    missing: list[str] = field(default_factory=list)


def read_sources(root: Path | str = ".") -> Sources:
    """Read what the stages wrote under a checkout.

    Raises:
        InputError: reports/evaluation/metrics.json or reports/baselines.json is missing or not JSON; the
            others may be missing, but not damaged.
    """
    root = Path(root)
    missing: list[str] = []

    def optional(name: str) -> Any:
        if not (root / name).exists():
            missing.append(name)
            return None
        return _json(root / name)

    sources = Sources(
        metrics=_json(root / "reports/evaluation/metrics.json"),
        baselines=_json(root / "reports/baselines.json"),
        ingest=optional("reports/ingest.json"),
        validation=optional("reports/validation.json"),
        embedding=optional("reports/embedding.json"),
        timing=optional("reports/timing.json"),
        serving=optional("reports/evaluation/serving.json"),
        training=optional("reports/train/summary.json"),
        dataset=optional("data/prepared/dataset.json") or {},
        splits=optional("data/prepared/splits.json") or {},
        missing=missing,
    )
    curves = root / "reports/train/curves.csv"
    if curves.exists():
        sources.curves = read_curves(curves)
    else:
        missing.append("reports/train/curves.csv")
    if (root / _SAMPLES).exists():
        with np.load(root / _SAMPLES, allow_pickle=False) as arrays:
            sources.showcase = {name: arrays[name] for name in arrays.files}
        sources.log_lines = _log_lines(root / "data/prepared", [str(b) for b in sources.showcase["barcodes"]])
    else:
        missing.append(_SAMPLES)
    if (root / _TABLE).exists():
        import pyarrow.parquet as pq

        sources.wafers = pq.read_table(root / _TABLE).to_pydict()
    else:
        missing.append(_TABLE)
    return sources


def _json(path: Path) -> Any:
    try:
        return atomic.read_json(path)
    except FileNotFoundError:
        raise InputError(str(path), "file", "missing", "run the stages before `report`") from None
    except json.JSONDecodeError as error:
        raise InputError(str(path), "JSON", str(error), "run the stage that writes it again") from None


def read_curves(path: Path) -> dict[str, list[float]]:
    """Columns of a training log; an empty or textual cell is NaN, a column without any number is left out."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    columns = {name: [_number(row.get(name)) for row in rows] for name in (rows[0] if rows else {})}
    return {name: values for name, values in columns.items() if any(map(math.isfinite, values))}


def _number(text: str | None) -> float:
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _log_lines(prepared: Path, barcodes: Sequence[str]) -> dict[str, list[str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, list[str]] = {}
    for name in ("test.arrow", "test_unseen.arrow"):
        if (prepared / name).exists():
            with pa.memory_map(str(prepared / name)) as source:
                table = pa.ipc.open_file(source).read_all().select(["barcode", "log_lines"])
                table = table.filter(pc.is_in(table.column("barcode"), pa.array(barcodes)))
                for row in table.to_pylist():
                    found[row["barcode"]] = row["log_lines"] or []
    return found
