"""What the report is made of: the files of the stages, read as they are; what is missing is named."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ikddit import atomic
from ikddit.errors import InputError
from ikddit.mpom.schema import ID_FIELDS

_SAMPLES = "data/evaluation/showcase.npz"
_TABLE = "data/evaluation/wafers.parquet"
NAMES = ("group", "level", "model")
"""Columns that stay text: chuck `01` is not chuck `1`."""
Row = dict[str, Any]
"""Cells of a CSV row by column: numbers where they are numbers, None where empty, else text."""


@dataclass(frozen=True)
class Origin:
    """Where a page comes from and where its run is found; None: not known."""

    commit: str | None = None
    """Of the code, with `+changes` where code or params differ from it."""
    seed: int | None = None
    experiment: str | None = None
    """Of MLflow."""
    model_name: str | None = None
    """In the model registry."""


@dataclass(frozen=True)
class Exposure:
    """What is known of one drawn wafer beside its maps."""

    lines: list[str]
    ids: dict[str, str]
    """By field; what was not received is left out."""


@dataclass
class Sources:
    """What the report is made of; None or empty where a stage has not written it (`missing` says which)."""

    metrics: dict[str, Any]
    baselines: dict[str, Any]
    ingest: dict[str, Any] | None = None
    validation: dict[str, Any] | None = None
    gates: dict[str, Any] | None = None
    """Every expectation of the quality gate with its result."""
    embedding: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    serving: dict[str, Any] | None = None
    """The acceptance gate's decision, its checks and figures."""
    fid: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)
    showcase: dict[str, np.ndarray] = field(default_factory=dict)
    wafers: dict[str, list[Any]] = field(default_factory=dict)
    """Columns of the per-wafer table."""
    exposures: dict[str, Exposure] = field(default_factory=dict)
    """Of the drawn wafers, by barcode."""
    tables: dict[str, list[Row]] = field(default_factory=dict)
    """reports/evaluation/<name>.csv by name."""
    ablations: dict[str, list[Row]] = field(default_factory=dict)
    """reports/ablations/<name>.csv by name."""
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
        return stored_json(root / name)

    sources = Sources(
        metrics=stored_json(root / "reports/evaluation/metrics.json"),
        baselines=stored_json(root / "reports/baselines.json"),
        ingest=optional("reports/ingest.json"),
        validation=optional("reports/validation.json"),
        gates=optional("reports/validation/validation.json"),
        embedding=optional("reports/embedding.json"),
        timing=optional("reports/timing.json"),
        serving=optional("reports/evaluation/serving.json"),
        fid=optional("reports/evaluation/fid.json"),
        training=optional("reports/train/summary.json"),
        dataset=optional("data/prepared/dataset.json") or {},
        splits=optional("data/prepared/splits.json") or {},
        tables=read_tables(root / "reports/evaluation"),
        ablations=read_tables(root / "reports/ablations"),
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
        sources.exposures = _exposures(root / "data/prepared", [str(b) for b in sources.showcase["barcodes"]])
    else:
        missing.append(_SAMPLES)
    if (root / _TABLE).exists():
        import pyarrow.parquet as pq

        sources.wafers = pq.read_table(root / _TABLE).to_pydict()
    else:
        missing.append(_TABLE)
    return sources


def stored_json(path: Path) -> Any:
    """What a stage wrote.

    Raises:
        InputError: the file is missing, or not JSON.
    """
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


def read_tables(folder: Path) -> dict[str, list[Row]]:
    """Every CSV file of a folder by its name; empty where there is none."""
    return {path.stem: _table(path) for path in sorted(folder.glob("*.csv"))}


def _table(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as handle:
        return [
            {name: text or None if name in NAMES else cell(text) for name, text in row.items()}
            for row in csv.DictReader(handle)
        ]


def cell(text: str | None) -> int | float | str | None:
    """A CSV cell as what it says.

    >>> cell("3"), cell("0.25"), cell("masked"), cell("")
    (3, 0.25, 'masked', None)
    """
    if text is None or not text.strip():
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _number(text: str | None) -> float:
    found = cell(text)
    return float(found) if isinstance(found, int | float) else math.nan


def _exposures(prepared: Path, barcodes: Sequence[str]) -> dict[str, Exposure]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found: dict[str, Exposure] = {}
    for name in ("test.arrow", "test_unseen.arrow"):
        if (prepared / name).exists():
            with pa.memory_map(str(prepared / name)) as source:
                table = pa.ipc.open_file(source).read_all()
                wanted = ["barcode", "lot_id", "slot", "exposed_at", "log_lines", *ID_FIELDS]
                table = table.select([column for column in wanted if column in table.column_names])
                table = table.filter(pc.is_in(table.column("barcode"), pa.array(barcodes)))
                for row in table.to_pylist():
                    found[row["barcode"]] = Exposure(row.get("log_lines") or [], _ids(row))
    return found


def _ids(row: Mapping[str, Any]) -> dict[str, str]:
    facts = {name: row.get(name) for name in ("lot_id", "slot", "exposed_at", *ID_FIELDS)}
    if facts["exposed_at"] is not None:
        facts["exposed_at"] = f"{facts['exposed_at']:%Y-%m-%d %H:%M} UTC"
    return {name: str(value) for name, value in facts.items() if value is not None}
