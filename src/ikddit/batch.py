"""A folder of wafers forecast into files, part by part: bounded memory, and a killed run goes on where it was.

A part is the forecast of up to `PART_WAFERS` wafers of one input file. Parts lie in a hidden folder beside the
output and appear whole; each holds in its metadata what it was made from (model, request, input bytes). The next
run takes over those that it would make itself, bit for bit, and makes the others. The output is joined from the
parts at the end, and the hidden folder goes.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import torch

import ikddit
from ikddit.console import log, progress
from ikddit.dataset.arrow import PreparedSplit, prepared_schema
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.diffusion.plan import SamplingOptions
from ikddit.errors import InputError, ModelError
from ikddit.forecast import ForecastFiles, Written, forecast_of_table, forecast_writer
from ikddit.generator import Generator, Records
from ikddit.manifest import file_hash
from ikddit.mpom.parts import lists_to_numpy
from ikddit.mpom.schema import ID_FIELDS, log_names_of, record_schema

BATCH_WAFERS = 64
"""Read and forecast at a time."""
PART_WAFERS = 8 * BATCH_WAFERS
MADE_FROM = b"ikddit.made_from"
MODEL = b"ikddit.model"


@dataclass(frozen=True)
class Part:
    """One part of the work."""

    files: ForecastFiles
    made_from: str
    """sha256 over model, request and input; empty where the model cannot be named: never taken over."""

    def finished(self) -> bool:
        """Whether its files are there and were made from the same."""
        wanted = [path for path in (self.files.forecast, self.files.samples) if path is not None]
        return bool(self.made_from) and all(_noted(path) == self.made_from for path in wanted)


class _Gaps:
    """Counts the wafers that lack an input: their forecasts are worse, and as much less certain."""

    def __init__(self, vocabularies: Vocabularies) -> None:
        self._known = {name: set(vocabularies.ids[name]) for name in ID_FIELDS}
        self._lacking: Counter[str] = Counter()
        self._unknown: dict[str, str] = {}  # the first unknown id of a field

    def watch(self, batches: Iterator[Records]) -> Iterator[Records]:
        """Pass batches on; prepared splits no longer tell an unknown id from a missing one and are not counted."""
        for batch in batches:
            if isinstance(batch, pa.Table):
                self._add(batch)
            yield batch

    def _add(self, table: pa.Table) -> None:
        features = lists_to_numpy(table.column("log_features"), np.nan)
        lines = np.array([bool(value) for value in table.column("log_lines").to_pylist()])
        previous = lists_to_numpy(table.column("prev_valid"), 0)
        self._lacking["previous map"] += int((~previous.any(axis=1)).sum())
        self._lacking["logs"] += int((np.isnan(features).all(axis=1) & ~lines).sum())
        for name, known in self._known.items():
            lacking = [text for text in table.column(name).to_pylist() if text not in known]
            self._lacking[name] += len(lacking)
            if unknown := [text for text in lacking if text]:
                self._unknown.setdefault(name, unknown[0])

    def tell(self, wafers: int) -> None:
        found = [
            f"{name} ({count}{f', for example {self._unknown[name]!r}' if name in self._unknown else ''})"
            for name, count in self._lacking.items()
            if count
        ]
        if found:
            log.warning(
                "inputs that some of %d wafers lack, or that training did not know: %s; these wafers are forecast "
                "worse, with the larger sigma that belongs to it (docs/evaluation.md, use of inputs)",
                wafers,
                ", ".join(found),
            )


def write_forecast(
    generator: Generator,
    source: Path | str,
    target: Path | str | ForecastFiles,
    n: int = 16,
    steps: int = 20,
    seed: int = 0,
    limit_nm: float = 8.0,
    **options: Unpack[SamplingOptions],
) -> Written:
    """`Generator.predict` for a folder of wafers, into one Parquet file.

    Args:
        generator: forecasts.
        source: folder of record Parquet files, or of splits (`*.arrow`) that were prepared with the model's own
            normaliser and vocabularies.
        target: that file, or all that is wanted (`ForecastFiles`): samples and pictures as well. Memory does
            not grow with the number of wafers, whatever is wanted.
        n: samples per wafer; with `steps`, `seed`, `limit_nm` and options as in `Generator.predict`.

    Returns:
        Numbers of wafers, samples and pictures written, and of wafers taken over from a run that was killed.

    Raises:
        InputError: the folder holds nothing to forecast, the target cannot be written, or another run writes it.
    """
    source = Path(source)
    files = target if isinstance(target, ForecastFiles) else ForecastFiles(Path(target))
    files.check(source)
    inputs = _inputs(generator, source)
    found = sum(_wafers(generator, path) for path in inputs)
    if found == 0:
        raise InputError(str(source), "folder", "its files hold no wafers", "check the ingest report")
    request: dict[str, Any] = {"n": n, "steps": steps, "seed": seed, "limit_nm": limit_nm, **options}
    with _parts_folder(files.forecast) as folder:
        parts: list[Part] = []
        resumed = 0
        gaps = _Gaps(generator.vocabularies)
        for path in progress(inputs, "generate", unit="file"):
            made_from = _made_from(generator, request, path)
            for number, batches in enumerate(_groups(gaps.watch(_batches(generator, path)))):
                part = _part(folder, files, path, number, made_from)
                parts.append(part)
                if part.finished():
                    resumed += sum(len(batch) for batch in batches)
                    continue
                with forecast_writer(
                    part.files, generator.usable, limit_nm, {MADE_FROM: part.made_from.encode()}
                ) as writer:
                    for batch in batches:
                        writer.add(
                            generator.predict(batch, n, steps, seed, limit_nm, writer.add_samples, **options)
                        )
        written = _join(parts, files, generator, limit_nm, found)
    gaps.tell(found)
    return replace(written, resumed=resumed)


def _inputs(generator: Generator, source: Path) -> list[Path]:
    """Record files, else prepared splits, which must be encoded as the model reads them."""
    if not source.is_dir():
        raise InputError(str(source), "folder", "no such folder", "name one that `ikddit ingest` wrote")
    if parts := sorted(source.glob("*.parquet")):
        return parts
    splits = sorted(source.glob("*.arrow"))
    if not splits:
        raise InputError(
            str(source), "folder", "holds no *.parquet and no *.arrow", "run `ikddit ingest` first"
        )
    normaliser = Normaliser.load(source / "normaliser.json")
    vocabularies = Vocabularies.load(source / "vocabularies.json")
    own = generator.normaliser
    same = (
        normaliser.log_names == own.log_names
        and np.array_equal(normaliser.log_mean, own.log_mean)
        and np.array_equal(normaliser.log_std, own.log_std)
        and vocabularies.ids == generator.vocabularies.ids
        and vocabularies.templates == generator.vocabularies.templates
    )
    if not same:
        raise InputError(
            str(source), "normaliser", "is not the model's", "forecast the records instead: data/records"
        )
    return splits


def _batches(generator: Generator, path: Path) -> Iterator[Records]:
    """Wafers of one input, some at a time; the file's schema was checked before (`_wafers`).

    Raises:
        InputError: a part of the file cannot be read, or holds what the model has no place for.
    """
    if path.suffix == ".arrow":
        table = _split_table(generator, path)
        for start in range(0, table.num_rows, BATCH_WAFERS):
            split = PreparedSplit.from_table(table.slice(start, BATCH_WAFERS))
            _check_split(generator, split, path)
            yield split
        return
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_WAFERS):
            table = pa.Table.from_batches([batch], schema=file.schema_arrow)
            table.validate(full=True)
            yield table


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what Arrow raises on a damaged file into an `InputError`."""
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = f"not readable: {str(error).partition(chr(10))[0]}"
        raise InputError(str(path), "file", reason, "copy it or make it again (`dvc repro`)") from None


def _check_schema(found: pa.Schema, wanted: pa.Schema, path: Path) -> None:
    """Hold a file's columns to those that are read; what a list's elements are called does not matter.

    Raises:
        InputError: names the column.
    """
    for field in wanted:
        index = found.get_all_field_indices(field.name)
        if len(index) != 1 or not _alike(found.field(index[0]).type, field.type):
            seen = "missing" if not index else "there twice" if len(index) > 1 else found.field(index[0]).type
            reason = f"{seen}, expected {field.type}"
            raise InputError(
                str(path), field.name, reason, "forecast what `ikddit ingest` or `prepare` wrote"
            )


def _alike(found: Any, wanted: Any) -> bool:
    if pa.types.is_fixed_size_list(wanted):
        same_size = pa.types.is_fixed_size_list(found) and found.list_size == wanted.list_size
        return same_size and found.value_type == wanted.value_type
    if pa.types.is_list(wanted):
        return pa.types.is_list(found) and bool(found.value_type == wanted.value_type)
    return bool(found == wanted)


def _split_table(generator: Generator, path: Path) -> pa.Table:
    """A prepared split in memory-mapped columns, checked before anything looks at a value.

    Arrow believes the file: offsets that lead outside of it would be read as they are.
    """
    with _readable(path), pa.ipc.open_file(pa.memory_map(str(path), "r")) as reader:
        table = reader.read_all()
        table.validate(full=True)
    config = generator.model.config
    wanted = prepared_schema(
        generator.normaliser.log_names, config.max_lines, config.embedding.values_per_line
    )
    _check_schema(table.schema, wanted, path)
    metadata = table.schema.metadata or {}
    for name, value in (wanted.metadata or {}).items():
        if metadata.get(name) != value:
            remedy = "forecast the records instead: data/records"
            raise InputError(str(path), name.decode(), "is not as the model reads it", remedy)
    return table


def _check_split(generator: Generator, split: PreparedSplit, path: Path) -> None:
    """Codes must be in the model's tables, and maps finite: else the forecast would be noise without a word."""
    known = generator.vocabularies
    limits = [
        *((f"ids {name}", split.ids[:, i], known.id_sizes[i]) for i, name in enumerate(ID_FIELDS)),
        ("line_templates", split.line_templates, known.template_size),
        ("line_words", split.line_words, len(known.tokenizer)),
    ]
    remedy = "run prepare again (`dvc repro prepare`)"
    for name, codes, limit in limits:
        if codes.size and not (codes.min() >= 0 and codes.max() < limit):
            raise InputError(str(path), name, f"holds codes beyond 0 to {limit - 1}", remedy)
    for name in ("log_features", "line_values", "prev_map"):
        if not np.isfinite(getattr(split, name)).all():
            raise InputError(str(path), name, "holds NaN or infinity", remedy)


def _groups(batches: Iterator[Records]) -> Iterator[Iterator[Records]]:
    """Batches of one part after the other; each must be used up before the next."""
    for first in batches:
        group = islice(batches, PART_WAFERS // BATCH_WAFERS - 1)
        yield _with_first(first, group)


def _with_first(first: Records, others: Iterator[Records]) -> Iterator[Records]:
    yield first
    yield from others


def _part(folder: Path, files: ForecastFiles, source: Path, number: int, made_from: str) -> Part:
    name = f"{source.name}-{number:05d}"
    samples = folder / f"{name}.samples" if files.samples is not None else None
    return Part(ForecastFiles(folder / f"{name}.forecast", samples), made_from and f"{made_from}-{number}")


def _made_from(generator: Generator, request: dict[str, Any], path: Path) -> str:
    """Name model, code, request and input by one hash; empty for a model that cannot be named."""
    if not generator.fingerprint:
        return ""
    code = [ikddit.__version__, torch.__version__, str(generator.model.usable.device)]
    told = json.dumps([generator.fingerprint, code, request, file_hash(path)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _noted(path: Path) -> str | None:
    """What a finished part was made from; None where there is no such part."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    return metadata.get(MADE_FROM, b"").decode()


def _wafers(generator: Generator, path: Path) -> int:
    """Count the wafers of an input that can be forecast.

    Raises:
        InputError: the file is damaged, or its columns are not those of records or of the model's own splits.
    """
    import pyarrow.parquet as pq

    if path.suffix == ".arrow":
        return _split_table(generator, path).num_rows
    with _readable(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = log_names_of(schema)
        units = (schema.metadata or {}).get(b"units", b"").decode()
        rows = int(file.metadata.num_rows)
    if units not in ("nm", "rgb"):
        raise InputError(str(path), "units", f"{units!r}, expected nm or rgb", "run `ikddit ingest` again")
    wanted = record_schema(names, "rgb" if units == "rgb" else "nm")
    _check_schema(schema, wanted, path)  # all of it: other channels than the model's are put into it anew
    return rows


@contextmanager
def _parts_folder(target: Path) -> Iterator[Path]:
    """The hidden folder of parts, for one run at a time; it stays when the run fails.

    Raises:
        InputError: another run is at it.
    """
    from filelock import FileLock, Timeout

    folder = target.parent / f".{target.name}.parts"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield folder
            shutil.rmtree(folder)
    except Timeout:
        raise InputError(
            str(target), "output", "another run is writing it", "wait for it, or name another file"
        ) from None


def _join(
    parts: list[Part], files: ForecastFiles, generator: Generator, limit_nm: float, wafers: int
) -> Written:
    """Copy the parts, row group by row group, into the files that were asked for, and draw the pictures."""
    import pyarrow.parquet as pq

    made_by = {MODEL: generator.fingerprint.encode()}
    with forecast_writer(files, generator.usable, limit_nm, made_by) as writer:
        for part in parts:
            with pq.ParquetFile(part.files.forecast) as file:
                for group in range(file.num_row_groups):
                    writer.add(forecast_of_table(file.read_row_group(group)))
            if part.files.samples is not None:
                with pq.ParquetFile(part.files.samples) as file:
                    for group in range(file.num_row_groups):
                        writer.add_sample_table(file.read_row_group(group))
        written = writer.written
        if written.wafers != wafers:
            raise ModelError(
                f"{files.forecast}: {wafers} wafers, {written.wafers} forecasts; nothing is written"
            )
    return written
