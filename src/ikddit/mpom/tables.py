"""Mark tables as files: CSV and Parquet with any column names, split into wafers, streamed if large."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ikddit.errors import InputError, ParamsError
from ikddit.mpom.schema import ID_FIELDS
from ikddit.params import MarksParams

_OVERLAY = ("ovl_x_nm", "ovl_y_nm")
_WAFER_POSITIONS = ("wafer_x_mm", "wafer_y_mm")
_FIELD_POSITIONS = ("field_x_mm", "field_y_mm", "mark_x_mm", "mark_y_mm")
NUMBERS = (*_WAFER_POSITIONS, *_FIELD_POSITIONS, *_OVERLAY)
TEXTS = ("barcode", "lot_id", "wafer_id", "slot", *ID_FIELDS, "exposed_at", "exposure", "valid")
UNUSED = ("field_col", "field_row", "tis_x_nm", "tis_y_nm", "qmerit")
"""Columns that canonical tables may hold and that records do not."""
FLAGS = {"1": True, "true": True, "0": False, "false": False}
NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-"]
"""Cells that mean: not measured."""
WHOLE_TABLE_BYTES = 256 << 20
"""A table up to this size is read at once, its rows in any order; a larger one is streamed wafer by wafer."""
_BLOCK_BYTES = 8 << 20
_COLUMNS = "ingest.marks.columns"

Wafer = tuple[str, pa.Table | InputError]


def check_aliases(settings: MarksParams) -> None:
    """Check the alias map's own names.

    Raises:
        ParamsError: it names a column that no mark table has.

    >>> check_aliases(MarksParams(columns={"dx": "dX"}))
    Traceback (most recent call last):
        ...
    ikddit.errors.ParamsError: ingest.marks.columns: 'dx' is not a canonical column; known: barcode, ...
    """
    unknown = set(settings.columns).difference(NUMBERS, TEXTS, UNUSED)
    if unknown:
        known = ", ".join((*TEXTS, *NUMBERS))
        raise ParamsError(f"{_COLUMNS}: {sorted(unknown)[0]!r} is not a canonical column; known: {known}")


def resolve_columns(found: Sequence[str], settings: MarksParams, file: str) -> dict[str, str]:
    """Canonical name -> name in the file, of the columns that are there and used.

    Raises:
        InputError: required or declared columns are missing (all of them are named), or one occurs twice.

    >>> aliases = {"lot_id": "Lot", "slot": "Wafer", "wafer_x_mm": "X", "wafer_y_mm": "Y"}
    >>> settings = MarksParams(columns={**aliases, "ovl_x_nm": "dX", "ovl_y_nm": "dY"})
    >>> resolve_columns(["Lot", "Wafer", "X", "Y", "dX", "dY", "Tool"], settings, "a.csv")["wafer_x_mm"]
    'X'
    """
    columns: dict[str, str] = {}
    missing: list[str] = []
    for name in (*TEXTS, *NUMBERS):
        alias = settings.columns.get(name, name)
        if alias in found:
            columns[name] = alias
        elif name in settings.columns:
            missing.append(f"{alias!r} (declared for {name})")
    positions = _FIELD_POSITIONS if settings.reference == "field" else _WAFER_POSITIONS
    needed = [name for name in (*positions, *_OVERLAY) if name not in {*columns, *settings.columns}]
    missing += map(repr, needed)
    if "barcode" not in columns and not ("lot_id" in columns and columns.keys() & {"slot", "wafer_id"}):
        missing.append("'barcode' (or lot_id with slot or wafer_id)")
    if missing:
        raise _missing(file, missing, found, settings)
    for alias in columns.values():
        if list(found).count(alias) > 1:
            raise InputError(file, "columns", f"{alias!r} occurs twice in the header", "rename one of them")
    twice = [alias for alias in columns.values() if list(columns.values()).count(alias) > 1]
    if twice:
        raise InputError(
            file, "columns", f"{twice[0]!r} stands for two canonical columns", f"check {_COLUMNS}"
        )
    return columns


def _missing(file: str, missing: list[str], found: Sequence[str], settings: MarksParams) -> InputError:
    if len(found) == 1:
        for delimiter in ";\t|, ":
            if delimiter != settings.delimiter and delimiter in found[0].strip():
                reason = f"one single column {found[0][:60]!r}"
                remedy = f"set ingest.marks.delimiter (--delimiter) to {delimiter!r}"
                return InputError(file, "delimiter", reason, remedy)
    shown = ", ".join(map(repr, found[:30])) + (", ..." if len(found) > 30 else "")
    remedy = f"name the file's own columns in {_COLUMNS} (--column wafer_x_mm='its name in the file')"
    if settings.reference == "wafer" and set(_FIELD_POSITIONS) <= {*found, *settings.columns}:
        remedy = "set ingest.marks.reference (--reference) to field if positions are given field by field"
    return InputError(file, "columns", f"no column {', '.join(missing)}; found {shown}", remedy)


def columns_of(path: Path, file: str, settings: MarksParams) -> tuple[set[str], list[str]]:
    """Canonical columns that a table has, and its own columns (by their own names) that nothing is read from.

    Raises:
        InputError: the table cannot be read.
    """
    table = _open(path, file, settings)
    read = {*table.columns.values(), *(settings.columns.get(name, name) for name in UNUSED)}
    return set(table.columns), [name for name in table.found if name not in read]


def wafers_of(
    path: Path, file: str, settings: MarksParams, whole_bytes: int = WHOLE_TABLE_BYTES
) -> Iterator[Wafer]:
    """Split a table into wafers.

    Yields:
        Barcode and the wafer's rows in canonical columns, or what is wrong with the rows of that barcode.

    Raises:
        InputError: the file as a whole cannot be read.
    """
    table = _open(path, file, settings)
    with _plain_errors(file):
        if table.size <= whole_bytes:
            yield from _split(table.read(), file)
        else:
            if nameless := _check_order(table, file):
                yield _no_identity(nameless, file)
            yield from _stream(table)


def _open(path: Path, file: str, settings: MarksParams) -> "_CsvTable | _ParquetTable":
    with _plain_errors(file):
        kind = _ParquetTable if path.suffix.lower() == ".parquet" else _CsvTable
        return kind(path, file, settings)


@contextmanager
def _plain_errors(file: str) -> Iterator[None]:
    """Turn what Arrow and the system raise into an `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of a Parquet column's name
        number = error.errno if isinstance(error, OSError) else None
        if number is not None:
            reason = f"not readable: {os.strerror(number)}"
            raise InputError(file, "file", reason, "check it and its permissions") from None
        reason = str(error).partition("\n")[0]
        remedy = "the file may be damaged or cut short; export it again"
        raise InputError(file, "content", reason, remedy) from None


class _CsvTable:
    """A CSV file with its columns resolved."""

    def __init__(self, path: Path, file: str, settings: MarksParams) -> None:
        self._path = path
        self.size = path.stat().st_size
        self.found = _csv_header(path, file, settings.delimiter)
        self.columns = resolve_columns(self.found, settings, file)
        self._delimiter = settings.delimiter

    def _options(self, names: Sequence[str], numbers: pa.DataType) -> dict[str, Any]:
        types = {alias: numbers if name in NUMBERS else pa.string() for name, alias in self.columns.items()}
        return {
            "read_options": pacsv.ReadOptions(
                use_threads=False, block_size=_BLOCK_BYTES, skip_rows=1, column_names=self.found
            ),
            "parse_options": pacsv.ParseOptions(delimiter=self._delimiter),
            "convert_options": pacsv.ConvertOptions(
                column_types=types,
                include_columns=[self.columns[name] for name in names],
                null_values=NULLS,
                strings_can_be_null=True,
            ),
        }

    def read(self) -> pa.Table:
        names = list(self.columns)
        try:
            table = pacsv.read_csv(self._path, **self._options(names, pa.float64()))
        except pa.ArrowInvalid as error:
            if "conversion error" not in str(error):
                raise
            # Some cell is no number: read text, so that only the wafer it belongs to is refused.
            table = pacsv.read_csv(self._path, **self._options(names, pa.string()))
        return table.rename_columns(names)

    def batches(self, only_ids: bool) -> Iterator[pa.Table]:
        names = [name for name in self.columns if not only_ids or name in _IDENTITY]
        with pacsv.open_csv(self._path, **self._options(names, pa.string())) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch]).rename_columns(names)


class _ParquetTable:
    """A Parquet file with its columns resolved."""

    def __init__(self, path: Path, file: str, settings: MarksParams) -> None:
        self._parquet = pq.ParquetFile(path)
        meta = self._parquet.metadata
        self.size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
        self.found = list(self._parquet.schema_arrow.names)
        self.columns = resolve_columns(self.found, settings, file)
        self._file = file

    def _canonical(self, table: pa.Table, names: Sequence[str]) -> pa.Table:
        arrays: dict[str, Any] = {}
        for name in names:
            column = table[self.columns[name]]
            _check_cells(column, self._file, name)
            arrays[name] = (
                column if name in NUMBERS or name == "exposed_at" else _as_text(column, self._file, name)
            )
        return pa.table(arrays)

    def read(self) -> pa.Table:
        names = list(self.columns)
        table = self._parquet.read(columns=list(self.columns.values()), use_threads=False)
        return self._canonical(table, names)

    def batches(self, only_ids: bool) -> Iterator[pa.Table]:
        names = [name for name in self.columns if not only_ids or name in _IDENTITY]
        aliases = [self.columns[name] for name in names]
        for batch in self._parquet.iter_batches(columns=aliases, use_threads=False):
            yield self._canonical(pa.Table.from_batches([batch]), names)


_IDENTITY = ("barcode", "lot_id", "wafer_id", "slot")


def _check_cells(column: Any, file: str, name: str) -> None:
    """Parquet believes its writer: text need not be UTF-8, and a code need not be of the dictionary."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        reason = f"a cell is not {column.type}: {str(error).partition(chr(10))[0]}"
        raise InputError(file, name, reason, "write text as UTF-8; export the table again") from None


def _as_text(column: Any, file: str, name: str) -> Any:
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    try:
        if pa.types.is_floating(column.type):
            # pandas turns whole numbers with a gap into floats.
            column = pc.cast(pc.if_else(pc.is_nan(column), None, column), pa.int64())
        return pc.cast(column, pa.string())
    except pa.ArrowInvalid as error:  # a fraction, infinity
        reason = f"{str(error).partition(chr(10))[0]}, expected text or whole numbers"
        raise InputError(file, name, reason, f"check {_COLUMNS}") from None
    except pa.ArrowNotImplementedError:
        raise InputError(file, name, f"column of {column.type}, expected text", f"check {_COLUMNS}") from None


def _csv_header(path: Path, file: str, delimiter: str) -> list[str]:
    with path.open("rb") as handle:
        line = handle.readline(1 << 20)
    try:
        text = line.decode("utf-8-sig").strip("\r\n")
    except UnicodeDecodeError:
        raise InputError(file, "content", "header is not UTF-8", "export as UTF-8 text") from None
    if "\0" in text:
        raise InputError(file, "content", "not a text file", "export as CSV")
    if not text.strip():
        raise InputError(file, "content", "no header line", "the first line must name the columns")
    try:
        return [name.strip() for name in next(csv.reader([text], delimiter=delimiter))]
    except csv.Error as error:
        reason = f"header line not readable: {error}"
        raise InputError(file, "content", reason, "end lines with LF or CR LF; see the first line") from None


def _barcodes(table: pa.Table) -> Any:
    """Barcode of each row; null where the row has no identity."""

    def text(name: str) -> Any:
        trimmed = pc.utf8_trim_whitespace(table[name].combine_chunks())
        return pc.if_else(pc.equal(trimmed, pa.scalar("")), None, trimmed)

    if "barcode" in table.column_names:
        return text("barcode")
    wafer = text("wafer_id") if "wafer_id" in table.column_names else pc.utf8_lpad(text("slot"), 2, "0")
    return pc.binary_join_element_wise(text("lot_id"), wafer, "-")


def _no_identity(rows: int, file: str) -> Wafer:
    reason = f"{rows} rows without barcode (or lot_id with slot or wafer_id)"
    return "?", InputError(f"{file}#?", "barcode", reason, "fill the cells")


def _split(table: pa.Table, file: str) -> Iterator[Wafer]:
    """Wafers of a table in memory, in the order in which they first appear."""
    if not len(table):
        raise InputError(file, "content", "no rows", "remove the file or export it again")
    encoded = _barcodes(table).dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy()
    order = np.argsort(codes, kind="stable")
    table = table.take(order)
    ends = np.flatnonzero(np.diff(codes[order], append=codes.max() + 1)) + 1
    start = 0
    for end in ends.tolist():
        code = int(codes[order[start]])
        if code < 0:
            yield _no_identity(end - start, file)
        else:
            yield encoded.dictionary[code].as_py(), table.slice(start, end - start)
        start = end


def _runs(batches: Iterator[pa.Table]) -> Iterator[tuple[str | None, pa.Table]]:
    """Stretches of rows of the same barcode, in file order; one may be cut by a batch's end."""
    for batch in batches:
        if not len(batch):
            continue
        encoded = _barcodes(batch).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy()
        start = 0
        for end in [*(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]:
            code = int(codes[start])
            yield (encoded.dictionary[code].as_py() if code >= 0 else None), batch.slice(start, end - start)
            start = end


def _check_order(table: "_CsvTable | _ParquetTable", file: str) -> int:
    """A streamed table must hold each wafer in one stretch: a wafer is never finished by guess.

    Rows without an identity may lie anywhere; returns how many there are.
    """
    seen: set[str] = set()
    last: str | None = None
    nameless = 0
    for barcode, rows in _runs(table.batches(only_ids=True)):
        if barcode is None:
            nameless += len(rows)
            continue
        if barcode != last and barcode in seen:
            reason = f"rows of wafer {barcode!r} are scattered over a table too large to read at once"
            raise InputError(file, "barcode", reason, "sort the table by wafer, or write one file per lot")
        seen.add(barcode)
        last = barcode
    return nameless


def _stream(table: "_CsvTable | _ParquetTable") -> Iterator[Wafer]:
    pieces: list[pa.Table] = []
    last = ""
    for barcode, rows in _runs(table.batches(only_ids=False)):
        if barcode is None:
            continue
        if pieces and barcode != last:
            yield last, pa.concat_tables(pieces)
            pieces = []
        last = barcode
        pieces.append(rows)
    if pieces:
        yield last, pa.concat_tables(pieces)
