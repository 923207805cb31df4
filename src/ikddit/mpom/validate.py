"""The validate stage: rules over all records, bad records to quarantine, the gate for the data set."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikddit import atomic
from ikddit.console import log, progress
from ikddit.errors import GateError
from ikddit.mpom.gate_report import failed_gates, results_json, summary_page
from ikddit.mpom.gates import Failure, Gate, RuleResult
from ikddit.mpom.parts import part_files, part_writer, read_facts
from ikddit.mpom.quality import RECORD, ROW, measure
from ikddit.mpom.rules import gate_rules, log_rules, record_rules
from ikddit.mpom.schema import Units, log_names_of, record_schema
from ikddit.params import ValidateParams

if TYPE_CHECKING:
    import pandas as pd


def validate(
    source: Path | str,
    target: Path | str,
    quarantine: Path | str,
    reports: Path | str,
    params: ValidateParams,
    ingest_quarantine: Path | str | None = None,
) -> dict[str, Any]:
    """Judge records: bad ones to quarantine, good ones on, and stop when the data set as a whole is bad.

    Args:
        source: folder of `part-*.parquet` in the record schema, with an optional `dataset.json` (known
            `ids` per field, `log_ranges` per channel).
        target: folder for the good records (same parts, same schema) and `dataset.json`.
        quarantine: folder for `quarantine.jsonl`, one line per rejected record.
        reports: folder for the report: index.html, validation.json, data_docs/.
        params: section `validate`.
        ingest_quarantine: folder with ingest's `quarantine.jsonl`; its items count into the share.

    Returns:
        Flat metrics: `found` = `quarantined_by_ingest` + `items`, `items` = `records` + `quarantined`.

    Raises:
        GateError: a suite-level expectation failed (quarantine and report are written first, `target` is
            deleted), a part does not have the record schema, or a check is broken.
        InputError: dataset.json is not a JSON object.
    """
    import pandas as pd

    parts = part_files(source)
    facts = read_facts(source)
    units = _check_schema(parts)
    frame, logs = measure(parts)
    gate = Gate()
    results: list[RuleResult] = []
    if len(frame):
        known, declared = _declared(facts)
        results += gate.run("records", frame, record_rules(frame, params, units, known))
        if rules := log_rules(logs, declared):
            results += gate.run("tool_logs", logs, rules)
    rejected = _rejected(frame, results)
    before = _lines(Path(ingest_quarantine)) if ingest_quarantine else 0

    channels = _channels(logs)
    lots = _lots(frame, params)
    found = before + len(frame)
    share = (before + len(rejected)) / found if found else 0.0
    data_set = pd.DataFrame(
        {"data_set": ["all"], "records": [float(len(frame) - len(rejected))], "quarantined_share": [share]}
    )
    for suite, rules in gate_rules(params).items():
        table = {"log_channels": channels, "lots": lots, "data_set": data_set}[suite]
        if len(table):
            results += gate.run(suite, table, rules)

    failed = failed_gates(results)
    metrics: dict[str, Any] = {
        "found": found,
        "quarantined_by_ingest": before,
        "items": len(frame),
        "records": len(frame) - len(rejected),
        "quarantined": len(rejected),
        "quarantined_share": share,
        "quarantined_by_field": dict(sorted(Counter(entry["field"] for entry in rejected.values()).items())),
        "lots": len(lots),
        "expectations": len(results),
        "expectations_broken": sum(not r.success for r in results),
        "passed": not failed,
        "failed": failed,
    }
    if len(lots):
        metrics["complete_lot_share"] = float(lots["complete"].mean())
    if len(channels):
        metrics["missing_log_share"] = float(channels["missing_share"].mean())

    with atomic.atomic_dir(quarantine) as folder:
        lines = [json.dumps(rejected[row], ensure_ascii=False) + "\n" for row in sorted(rejected)]
        atomic.write_text(folder / "quarantine.jsonl", "".join(lines))
    _write_report(
        Path(reports), gate, metrics, results, list(rejected.values()), channels, _notes(frame, units)
    )
    if failed:
        shutil.rmtree(Path(target).resolve(), ignore_errors=True)  # a link to it stays
        said = [*failed, *_commonest(list(rejected.values())), f"report: {reports}/index.html"]
        raise GateError("validate: " + " | ".join(said))
    _write_good(Path(target), parts, facts, set(rejected))
    log.info("validated %d of %d records, %d to quarantine", metrics["records"], len(frame), len(rejected))
    return metrics


def _declared(facts: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, tuple[float, float]]]:
    """Known ids per field and range per log channel, as dataset.json declares them."""
    try:
        known = {name: [str(text) for text in ids] for name, ids in (facts.get("ids") or {}).items()}
        ranges = {
            name: (float(low), float(high)) for name, (low, high) in (facts.get("log_ranges") or {}).items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise GateError(
            "validate: dataset.json: ids must be {field: [id, ...]}, log_ranges {channel: [low, high]}: "
            f"{error}"
        ) from None
    return known, ranges


def _check_schema(parts: list[Path]) -> Units:
    """Every part must have the record schema, all with the same channels and units."""
    units: Units = "nm"
    first: pa.Schema | None = None
    for part in parts:
        schema = pq.read_schema(part)
        units = "rgb" if (schema.metadata or {}).get(b"units") == b"rgb" else "nm"
        names = log_names_of(schema)
        expected = record_schema(names, units)
        if not schema.equals(expected) or schema.metadata != expected.metadata:
            wrong = [
                f.name for f in expected if f.name not in schema.names or not schema.field(f.name).equals(f)
            ]
            more = [name for name in schema.names if name not in expected.names]
            raise GateError(
                f"validate: {part}: not the record schema (missing or of another type: {wrong}, "
                f"unknown: {more}); write records with ikddit ingest"
            )
        if len(set(names)) != len(names):
            twice = sorted(name for name, n in Counter(names).items() if n > 1)
            raise GateError(f"validate: {part}: log channels named twice: {twice}; rename them at the source")
        if first is not None and schema.metadata != first.metadata:
            raise GateError(
                f"validate: {part}: other log channels or units than {parts[0]}; ingest them as one data set"
            )
        first = schema
    return units


def _rejected(frame: "pd.DataFrame", results: list[RuleResult]) -> dict[int, dict[str, Any]]:
    """Quarantine entry per rejected row: the first rule it breaks, and the further ones under `also`."""
    found: dict[int, list[Failure]] = {}
    for result in results:
        for failure in result.failures:
            found.setdefault(int(failure.row), []).append(failure)
    entries = {}
    for row, failures in found.items():
        first, *others = failures
        entries[row] = {
            "item": _text(frame["barcode"].iloc[row]) or _text(frame["source"].iloc[row]),
            "file": _text(frame["source"].iloc[row]),
            "field": first.rule.name,
            "reason": first.rule.reason(first.value),
            "remedy": first.rule.remedy,
            "stage": "validate",
            "also": [{"field": f.rule.name, "reason": f.rule.reason(f.value)} for f in others],
        }
    return entries


def _commonest(rejected: list[dict[str, Any]]) -> list[str]:
    """The most frequent reason of rejected records, in words; empty where none was rejected."""
    if not rejected:
        return []
    ((field, count),) = Counter(entry["field"] for entry in rejected).most_common(1)
    entry = next(entry for entry in rejected if entry["field"] == field)
    return [f"{count} records for {field}, for example {entry['item']}: {entry['reason']}; {entry['remedy']}"]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _lines(folder: Path) -> int:
    """Number of items in another stage's quarantine."""
    path = folder / "quarantine.jsonl"
    if not path.exists():
        return 0
    with path.open(encoding="utf-8") as handle:
        return sum(1 for line in handle if line.strip())


def _channels(logs: "pd.DataFrame") -> "pd.DataFrame":
    import pandas as pd

    names = [name for name in logs.columns if name not in (ROW, RECORD)]
    # One after the other: all at once would be a copy of the whole frame.
    return pd.DataFrame(
        {"channel": names, "missing_share": [float(logs[name].isna().mean()) for name in names]}
    )


def _lots(frame: "pd.DataFrame", params: ValidateParams) -> "pd.DataFrame":
    """Wafers per lot and layer, and whether the lot is complete; empty where no record has a lot."""
    import pandas as pd

    if not len(frame) or frame["lot_id"].isna().all():
        return pd.DataFrame({"lot_id": [], "wafers": [], "complete": []})
    sizes = frame.groupby(["lot_id", "layer"], dropna=False).size().rename("wafers").reset_index()
    sizes["complete"] = (sizes["wafers"] >= params.complete_lot_fill * params.wafers_per_lot).astype(float)
    return sizes


def _notes(frame: "pd.DataFrame", units: Units) -> list[str]:
    """What could not be judged, because the data do not have it."""
    notes = []
    if units == "rgb":
        notes.append("Maps are RGB without a scale: no statement in nm was checked.")
    if len(frame):
        if frame["lot_id"].isna().all():
            notes.append("No record has lot_id: lot completeness not judged.")
        if frame["exposed_year"].isna().all():
            notes.append("No record has exposed_at: time order not judged.")
        if frame["map_valid_px"].isna().all():
            notes.append("No record has a target map: only generation with a trained model is possible.")
    return notes


def _write_report(
    reports: Path,
    gate: Gate,
    metrics: dict[str, Any],
    results: list[RuleResult],
    rejected: list[dict[str, Any]],
    channels: "pd.DataFrame",
    notes: list[str],
) -> None:
    from ikddit.mpom.data_docs import mend_data_docs

    with atomic.atomic_dir(reports) as folder:
        gate.write_docs(folder / "data_docs")
        mend_data_docs(folder / "data_docs")
        atomic.write_json(
            folder / "validation.json", {**metrics, "notes": notes, "results": results_json(results)}
        )
        atomic.write_text(folder / "index.html", summary_page(metrics, results, rejected, channels, notes))


def _write_good(target: Path, parts: list[Path], facts: dict[str, Any], rejected: set[int]) -> None:
    """Copy the parts without the rejected rows; a part that loses none is copied as it is."""
    start, dropped = 0, np.array(sorted(rejected), np.int64)
    with atomic.atomic_dir(target) as folder:
        for part in progress(parts, "validate: write", unit="parts"):
            with pq.ParquetFile(part) as file:
                rows = np.arange(start, start + file.metadata.num_rows)
                keep = ~np.isin(rows, dropped)
                start += len(rows)
                if keep.all():
                    shutil.copyfile(part, folder / part.name)
                elif keep.any():
                    _filter_part(file, folder / part.name, keep)
        atomic.write_json(folder / "dataset.json", facts)


def _filter_part(file: pq.ParquetFile, path: Path, keep: np.ndarray) -> None:
    done = 0
    with part_writer(path, file.schema_arrow) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            writer.write_table(table.filter(pa.array(keep[done : done + len(table)])))
            done += len(table)
