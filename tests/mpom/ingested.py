"""What came out of one ingest run, read back."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikddit.mpom.ingest import ingest
from ikddit.params import IngestParams


@dataclass
class Ingested:
    """Report, records and quarantine of one run."""

    report: dict[str, Any]
    records: pa.Table
    quarantine: list[dict[str, str]]
    out: Path

    def rejected(self, item: str) -> dict[str, str]:
        """The one quarantine line of an item."""
        (line,) = (line for line in self.quarantine if line["item"] == item)
        return line


RunIngest = Callable[..., Ingested]


def settings(**values: Any) -> IngestParams:
    return IngestParams.model_validate({"workers": 1, **values})


def ingest_into(out: Path, raw: Path, **values: Any) -> dict[str, Any]:
    """Ingest into `out`; returns the report."""
    return ingest(raw, out / "records", out / "quarantine", out / "report.json", settings(**values))


def read_back(out: Path) -> Ingested:
    parts = sorted((out / "records").glob("part-*.parquet"))
    lines = (out / "quarantine" / "quarantine.jsonl").read_text().splitlines()
    report = json.loads((out / "report.json").read_text())
    tables = [pq.read_table(part) for part in parts]
    return Ingested(report, pa.concat_tables(tables), [json.loads(line) for line in lines], out)


def maps_of(records: pa.Table, name: str) -> np.ndarray:
    """A map column as (wafers, channels, 64, 64)."""
    flat = records[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(records), -1, 64, 64)
