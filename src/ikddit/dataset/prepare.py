"""The prepare stage: validated Parquet parts to memory-mapped Arrow splits, in passes of bounded memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikddit import atomic
from ikddit.console import log
from ikddit.dataset.arrow import SplitWriter, prepared_schema
from ikddit.dataset.encode import TEXT_COLUMNS, encode_records, masked_maps
from ikddit.dataset.normaliser import Normaliser, NormaliserFit
from ikddit.dataset.splits import SPLITS, Splits, WaferKey, split_by_lot
from ikddit.dataset.vocabulary import Vocabularies, VocabularyCounter
from ikddit.errors import GateError
from ikddit.mpom.parts import BATCH, lists_to_numpy, part_files, read_batches, read_facts
from ikddit.mpom.schema import ID_FIELDS, log_names_of
from ikddit.params import PrepareParams


def prepare(source: Path | str, target: Path | str, params: PrepareParams, seed: int) -> dict[str, Any]:
    """Split, fit normaliser and vocabularies on train, and write the prepared folder.

    The parts are read three times: once for texts and masks, once for train's statistics, once to encode.
    Memory holds the texts (about 3 kB per wafer) and one batch; maps are written straight to their place in
    the file. Wafers are ordered by `exposed_at`, then barcode.

    Args:
        source: folder of `part-*.parquet` in the record schema, with an optional `dataset.json`.
        target: folder to write (replaced as a whole): train, val, test, test_unseen .arrow, normaliser.json,
            vocabularies.json, tokenizer.json, splits.json, dataset.json.
        params: section `prepare`.
        seed: draws the unseen combinations.

    Returns:
        What `splits.json` holds.

    Raises:
        GateError: there are no records, maps have no scale in nm, no record has a target, or the lots cannot
            be split.
        InputError: dataset.json is not a JSON object.
    """
    parts = part_files(source)
    schema = _common_schema(parts, Path(source))
    facts = read_facts(source)
    text, has_target = _read_text(parts)
    if not has_target.any():
        raise GateError(
            f"prepare: none of the {len(has_target)} records has a target map: nothing to learn from; "
            "generation with a trained model works on such records (`ikddit generate`)"
        )
    wafers = list(_keys(text))
    splits = split_by_lot(
        [wafer for wafer, use in zip(wafers, has_target, strict=True) if use],
        params.val_share,
        params.test_share,
        params.unseen_combinations,
        seed,
    )
    split_of = np.array(
        [splits.of(w) if use else "" for w, use in zip(wafers, has_target, strict=True)], dtype=object
    )
    order = pc.sort_indices(text, [("exposed_at", "ascending"), ("barcode", "ascending")]).to_numpy()
    rows = {name: order[split_of[order] == name] for name in SPLITS}
    vocabularies = _count(text.take(np.sort(rows["train"])))
    normaliser = _fit(parts, schema, split_of == "train")
    summary = _summary(splits, text, rows, has_target, params, seed)
    if summary["with_lines_cut"]:
        log.warning(
            "prepare: %d wafers have more than prepare.max_lines = %d log lines: unknown ones are cut first",
            summary["with_lines_cut"],
            params.max_lines,
        )

    with atomic.atomic_dir(target) as folder:
        _write_splits(folder, parts, schema, text, rows, normaliser, vocabularies, params)
        normaliser.save(folder / "normaliser.json")
        vocabularies.save(folder / "vocabularies.json")
        atomic.write_json(folder / "splits.json", summary)
        atomic.write_json(folder / "dataset.json", facts)
    log.info("prepared %s", ", ".join(f"{name} {len(rows[name])}" for name in SPLITS))
    return summary


def _common_schema(parts: list[Path], source: Path) -> pa.Schema:
    if not parts:
        raise GateError(f"prepare: no part-*.parquet in {source}: nothing passed validation")
    schema: pa.Schema = pq.read_schema(parts[0])
    for part in parts[1:]:
        if not pq.read_schema(part).equals(schema, check_metadata=True):
            raise GateError(f"prepare: {part} has another schema than {parts[0]}; ingest them together")
    if schema.metadata[b"units"] != b"nm":
        raise GateError(
            "prepare: the maps are RGB images without a scale in nm: supervised training needs nm; declare "
            "ingest.scale_nm if R and G encode dx and dy linearly, or use such records for generation only"
        )
    return schema


def _read_text(parts: list[Path]) -> tuple[pa.Table, np.ndarray]:
    tables, targets = [], []
    for table in read_batches(parts, "prepare: texts", [*TEXT_COLUMNS, "valid"]):
        tables.append(table.select(TEXT_COLUMNS))
        targets.append(lists_to_numpy(table.column("valid"), 0).any(1))
    return pa.concat_tables(tables).combine_chunks(), np.concatenate(targets)


def _keys(text: pa.Table) -> Iterator[WaferKey]:
    names = ["barcode", "lot_id", "exposed_at", "scanner_id", "reticle_id"]
    for values in zip(*(text.column(name).to_pylist() for name in names), strict=True):
        yield WaferKey(*values)


def _count(train: pa.Table) -> Vocabularies:
    counter = VocabularyCounter()
    for batch in train.to_batches(max_chunksize=BATCH):
        ids = {name: batch.column(name).to_pylist() for name in ID_FIELDS}
        counter.update(ids, batch.column("log_lines").to_pylist())
    return counter.finish()


def _fit(parts: list[Path], schema: pa.Schema, train: np.ndarray) -> Normaliser:
    fit = NormaliserFit(log_names_of(schema))
    end = 0
    for table in read_batches(parts, "prepare: statistics of train", ["log_features", "map", "valid"]):
        keep = train[end : end + len(table)]
        end += len(table)
        if keep.any():
            maps, valid = masked_maps(table, "map", "valid")
            features = lists_to_numpy(table.column("log_features"), np.nan)
            fit.update(features[keep], maps[keep], valid[keep])
    return fit.finish()


def _write_splits(
    folder: Path,
    parts: list[Path],
    schema: pa.Schema,
    text: pa.Table,
    rows: dict[str, np.ndarray],
    normaliser: Normaliser,
    vocabularies: Vocabularies,
    params: PrepareParams,
) -> None:
    shape = prepared_schema(log_names_of(schema), params.max_lines, params.values_per_line)
    place = np.full(text.num_rows, -1)
    split_of = np.full(text.num_rows, -1)
    for number, name in enumerate(SPLITS):
        place[rows[name]] = np.arange(len(rows[name]))
        split_of[rows[name]] = number
    writers = [SplitWriter(folder / f"{name}.arrow", text.take(rows[name]), shape) for name in SPLITS]
    try:
        end = 0
        for table in read_batches(parts, "prepare: encode"):
            encoded = encode_records(
                table, normaliser, vocabularies, params.max_lines, params.values_per_line
            )
            here = slice(end, end + len(table))
            end += len(table)
            for number, writer in enumerate(writers):
                mine = split_of[here] == number
                if mine.any():
                    writer.write(place[here][mine], encoded.filter(mine))
    finally:
        for writer in writers:
            writer.close()


def _summary(
    splits: Splits,
    text: pa.Table,
    rows: dict[str, np.ndarray],
    has_target: np.ndarray,
    params: PrepareParams,
    seed: int,
) -> dict[str, Any]:
    lines: Any = pc.list_value_length(text.column("log_lines")).combine_chunks().fill_null(0)
    parts: dict[str, Any] = {}
    for name in SPLITS:
        times = text.column("exposed_at").take(rows[name]).drop_null()
        parts[name] = {
            "wafers": len(rows[name]),
            "lots": sum(split == name for split in splits.of_lot.values()),
            "from": times[0].as_py().isoformat() if len(times) else None,
            "to": times[-1].as_py().isoformat() if len(times) else None,
        }
    return {
        "method": splits.method,
        "seed": seed,
        "asked": json.loads(params.model_dump_json()),
        "records": len(has_target),
        "without_target": int((~has_target).sum()),
        "with_lines_cut": int((lines.to_numpy(zero_copy_only=False) > params.max_lines).sum()),
        "splits": parts,
        "unseen": splits.unseen,
        "lots": splits.of_lot,
    }
