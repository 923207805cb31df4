"""Ingest: plan -> workers (`ikddit.mpom.engines`) -> Parquet parts, quarantine and report.

Tasks come back in the order in which they were planned, whatever the engine and the number of workers; of the
records the parent keeps only the barcodes.
"""

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikddit.atomic import atomic_dir, write_json
from ikddit.console import log, progress
from ikddit.errors import GateError, InputError
from ikddit.mpom.engines import outcomes
from ikddit.mpom.parts import ROW_GROUP, part_writer
from ikddit.mpom.source import Census, Rejection
from ikddit.mpom.survey import SIGNS, Survey, survey
from ikddit.mpom.tasks import Job, Outcome
from ikddit.mpom.wafer import Clipping
from ikddit.params import IngestParams


class _Names:
    """Who the records of a part are."""

    columns: ClassVar = ["barcode", "source", "sha256"]

    def __init__(self, table: pa.Table) -> None:
        self.barcode, self.source, self.sha256 = (
            [str(value) for value in table[name].to_pylist()] for name in self.columns
        )


class _Collector:
    """Numbers the parts, takes duplicates out, writes the quarantine and counts."""

    def __init__(self, scratch: Path, quarantine: TextIO) -> None:
        self._scratch, self._quarantine = scratch, quarantine
        self._seen: dict[str, int] = {}
        self._parts = 0
        self.records = 0
        self.with_target = 0
        self.without_logs: dict[str, None] = {}  # a set in the order of reading
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, Rejection] = {}
        self.clipping = Clipping()

    def add(self, outcome: Outcome) -> None:
        for rejection in outcome.rejections:
            self._reject(rejection)
        self.with_target += outcome.with_target
        self.without_logs |= dict.fromkeys(outcome.without_logs)
        self.clipping.values += outcome.clipping.values
        self.clipping.clipped += outcome.clipping.clipped
        for path, barcodes in zip(outcome.parts, outcome.barcodes, strict=True):
            self._add_part(path, barcodes)

    def _add_part(self, path: Path, barcodes: list[str]) -> None:
        keep = np.zeros(len(barcodes), bool)
        for row, barcode in enumerate(barcodes):
            if barcode not in self._seen:
                self._seen[barcode] = self._parts
                keep[row] = True
        if not keep.all():
            self._drop(path, keep)
        if keep.any():
            os.replace(path, self._part(self._parts))
            self._parts += 1
            self.records += int(keep.sum())
        else:
            path.unlink()

    def _part(self, number: int) -> Path:
        return self._scratch / f"part-{number:05d}.parquet"

    def _drop(self, path: Path, keep: np.ndarray) -> None:
        """Quarantine the rows whose barcode was met before, and write the part without them."""
        table = pq.read_table(path)
        names = {self._parts: _Names(table)}
        here = names[self._parts]
        for row in np.flatnonzero(~keep).tolist():
            barcode, source = here.barcode[row], here.source[row]
            number = self._seen[barcode]
            if number not in names:
                names[number] = _Names(pq.read_table(self._part(number), columns=_Names.columns))
            there = names[number]
            first = there.barcode.index(barcode)
            same = " with the same content" if there.sha256[first] == here.sha256[row] else ""
            reason = f"duplicate barcode {barcode!r}, first met in {there.source[first]}{same}"
            self._reject(Rejection(source, source, "barcode", reason, "give each exposure its own barcode"))
            self.with_target -= any(table["valid"][row].as_py())
        if keep.any():
            with part_writer(path, table.schema) as writer:
                writer.write_table(table.filter(pa.array(keep)), row_group_size=ROW_GROUP)

    def _reject(self, rejection: Rejection) -> None:
        self.reasons[rejection.field] += 1
        self.examples.setdefault(rejection.field, rejection)
        line = json.dumps({**asdict(rejection), "stage": "ingest"}, ensure_ascii=False)
        self._quarantine.write(line + "\n")


def _check_out(raw: Path, records: Path) -> None:
    if records.resolve().is_relative_to(raw.resolve()):
        raise InputError(
            str(records), "out", f"lies inside the raw data {raw}", "give a folder outside of it"
        )
    if records.exists():
        ours = ("part-", "dataset.json")
        foreign = (
            [p.name for p in records.iterdir() if not p.name.startswith(ours)]
            if records.is_dir()
            else ["a file"]
        )
        if foreign:
            reason = f"holds other things than records ({foreign[0]}); it would be replaced as a whole"
            raise InputError(str(records), "out", reason, "give another folder")


def ingest(
    raw: Path | str,
    records: Path | str,
    quarantine: Path | str,
    report: Path | str,
    settings: IngestParams | None = None,
) -> dict[str, Any]:
    """Read a raw data set into canonical records.

    Args:
        raw: MPOM folder, zip of one, mark table, or folder of mark tables.
        records: folder for part-NNNNN.parquet and dataset.json; replaced as a whole.
        quarantine: folder for quarantine.jsonl; replaced as a whole.
        report: JSON file of counts.
        settings: section `ingest` of params.yaml.

    Returns:
        What the report holds; found = records + quarantined.

    Raises:
        InputError: nothing to ingest, an unusable dataset.json, or an output folder that is not ours.
        GateError: every item went to quarantine (which is written).
    """
    raw, records, settings = Path(raw), Path(records), settings or IngestParams.model_validate({})
    found_out = survey(raw, settings)
    _check_out(raw, records)
    census = Census()
    with (
        atomic_dir(quarantine) as refused,
        (refused / "quarantine.jsonl").open("w", encoding="utf-8") as lines,
    ):
        try:
            with atomic_dir(records) as scratch:
                collector = _Collector(scratch, lines)
                job = Job(found_out, settings, scratch)
                for outcome in progress(outcomes(job, census), "ingest", unit="parts"):
                    collector.add(outcome)
                summary = _summary(found_out, collector, census)
                if not collector.records:
                    raise _NoRecordsError
                write_json(scratch / "dataset.json", _description(found_out, summary))
        except _NoRecordsError:
            pass
    write_json(report, summary)
    if not summary["records"]:
        counts = ", ".join(f"{name}: {count}" for name, count in summary["quarantined_by_field"].items())
        example = collector.examples[collector.reasons.most_common(1)[0][0]]
        where = Path(quarantine) / "quarantine.jsonl"
        raise GateError(
            f"{raw}: none of {summary['found']} items is usable ({counts}), for example {example.text}; "
            f"{example.remedy} | all reasons: {where}"
        )
    log.info(
        "ingest: %d found = %d records + %d quarantined",
        *(summary[k] for k in ("found", "records", "quarantined")),
    )
    return summary


class _NoRecordsError(Exception):
    """Leaves the records folder as it was."""


def _summary(found_out: Survey, collector: _Collector, census: Census) -> dict[str, Any]:
    rejected = collector.reasons.total()
    layout = found_out.layout
    nm = layout.scale_nm is not None
    summary: dict[str, Any] = {
        "found": collector.records + rejected,
        "records": collector.records,
        "quarantined": rejected,
        "quarantined_by_field": dict(sorted(collector.reasons.items())),
        "quarantine_examples": {name: found.text for name, found in sorted(collector.examples.items())},
        "format": found_out.format,
        "units": layout.units,
        "with_target": collector.with_target,
        "log_channels": len(layout.log_names),
        "capabilities": {"nm": nm, "supervised": nm and collector.with_target > 0, "generation": True},
        "ignored_files": census.ignored,
        "notes": found_out.notes + _without_logs(found_out, collector),
    }
    if collector.clipping.values:
        summary["clipped_share"] = collector.clipping.clipped / collector.clipping.values
    return summary


def _without_logs(found_out: Survey, collector: _Collector) -> list[str]:
    """Say which wafers of mark tables found no logs: a file of another name would be passed over in silence."""
    if found_out.format != "marks" or not found_out.layout.log_names or not collector.without_logs:
        return []
    count, example = len(collector.without_logs), next(iter(collector.without_logs))
    return [f"{count} wafers without logs, for example {example}: no logs_{example}.json beside their table."]


def _description(found_out: Survey, summary: dict[str, Any]) -> dict[str, Any]:
    """The raw dataset.json and what ingest found; the records' sign is the canonical one."""
    nm = summary["capabilities"]["nm"]
    return {
        **found_out.description,
        "units": summary["units"],
        **({"sign": SIGNS[0]} if nm else {}),
        "feature_names": found_out.layout.log_names,
        "capabilities": summary["capabilities"],
        "notes": summary["notes"],
    }
