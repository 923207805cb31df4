"""Mark tables (one overlay mark per row) to records: columns, units, sign and reference are declared.

What is declared is checked against physics before a wafer is believed: marks lie on a wafer of 150 mm radius,
and overlay is neither a position nor a thousand times too large or too small.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float

from ikddit.errors import InputError
from ikddit.mpom.archive import Container, Member, Reader
from ikddit.mpom.logs import Ids, parse_logs, text_id, utc_time
from ikddit.mpom.raster import Raster, bin_marks, interpolate
from ikddit.mpom.record import Record
from ikddit.mpom.schema import ID_FIELDS
from ikddit.mpom.source import Rejection, outside_link
from ikddit.mpom.tables import FLAGS, NUMBERS, wafers_of
from ikddit.mpom.wafer import Layout, place_features
from ikddit.overlay.grid import WAFER_RADIUS_MM
from ikddit.params import MarksParams

MAX_MEDIAN_NM = WAFER_RADIUS_MM
"""Above: nm declared as um (0.5 nm become 500), or a position in mm. No process is that far off."""
MIN_MEDIAN_NM = 0.05
"""Below: um declared as nm (30 nm become 0.03). The noise of metrology alone (0.1 nm) has a median of 0.07."""
MAX_MARK_NM = 1e6
"""Of a single mark: a target is some 0.03 mm wide, so 1 mm was never measured. Exports write 1e30 for "none"."""
_POSITION_LIKE_NM = 25.0
_SEVERAL = 10
"""Marks from which a pattern of all of them is no coincidence."""
_CHECK_COLUMNS = "check ingest.marks.columns (--column)"
_CHECK_UNIT = "check ingest.marks.unit (--unit) and the columns"


def records_of(
    container: Container, table: str, reader: Reader, settings: MarksParams, layout: Layout
) -> Iterator[Record | Rejection]:
    """Read the wafers of one mark table; logs_<barcode>.json beside it are taken along.

    Yields:
        A record for each wafer, or why there is none.

    Raises:
        InputError: the table as a whole cannot be read.
    """
    file = container.name(table)
    for barcode, rows in wafers_of(reader.root / file, file, settings):
        item = f"{file}#{barcode}"
        try:
            if isinstance(rows, InputError):
                raise rows
            record = read_wafer_marks(rows, barcode, item, settings, layout)
            _add_logs(record, container, reader, layout)
        except InputError as error:
            yield Rejection.of(item, error)
        else:
            yield record


def _add_logs(record: Record, container: Container, reader: Reader, layout: Layout) -> None:
    """Features, lines, and ids that the table does not have, from logs_<barcode>.json if there is one."""
    name = f"logs_{record.barcode}.json"
    path = reader.root / container.path / name
    if not layout.log_names or set(name) & set("/\\\0") or not os.path.exists(path):
        return
    if problem := outside_link(reader.root, path, container.name(name)):
        raise problem
    data = reader.read(container, Member(name))
    logs = parse_logs(data, container.name(name))
    record.log_features = place_features(logs, layout.log_names, container.name(name))
    record.log_lines = logs.lines
    record.ids = {**(logs.ids or {}), **{k: v for k, v in record.ids.items() if v is not None}}
    record.sha256 = hashlib.sha256(record.sha256.encode() + data).hexdigest()


def read_wafer_marks(
    rows: pa.Table, barcode: str, item: str, settings: MarksParams, layout: Layout
) -> Record:
    """Rasterise the marks of one wafer.

    Args:
        rows: of one wafer, canonical columns (see `ikddit.mpom.tables`).
        barcode: of the wafer exposure.
        item: table and barcode, for messages and `source`.
        settings: section `ingest.marks` of params.yaml.
        layout: names of the log channels and the sign.

    Raises:
        InputError: a cell, column or the physics of the marks is wrong.
    """
    numbers = {name: _numbers(rows, name, item) for name in NUMBERS if name in rows.column_names}
    valid = _flags(rows, item)
    previous = _previous(rows, item)
    if settings.reference == "field":
        x = numbers["field_x_mm"] + numbers["mark_x_mm"]
        y = numbers["field_y_mm"] + numbers["mark_y_mm"]
    else:
        x, y = numbers["wafer_x_mm"], numbers["wafer_y_mm"]
    ovl = np.stack([numbers["ovl_x_nm"], numbers["ovl_y_nm"]]) * (1000.0 if settings.unit == "um" else 1.0)
    if np.isinf(ovl).any():
        raise InputError(
            item, "ovl_x_nm, ovl_y_nm", "infinite overlay", "leave the cell empty or set valid to 0"
        )
    # A mark without a value was not measured, as one with valid = 0.
    use = valid & np.isfinite(ovl).all(axis=0)
    _check_positions(x[use], y[use], item)
    _check_overlay(ovl[:, use], x[use], y[use], item)
    if layout.flip_sign:
        ovl = -ovl
    current = _raster(x, y, ovl, use & ~previous, settings, item)
    before = _raster(x, y, ovl, use & previous, settings, item)
    digest = hashlib.sha256(barcode.encode())
    for part in (x, y, ovl, valid, previous):
        digest.update(np.ascontiguousarray(part).tobytes())
    return Record(
        barcode=barcode,
        ids=_ids(rows, item),
        public_id=None,
        log_lines=None,
        log_features=np.full(len(layout.log_names), np.nan, np.float32),
        prev_map=before.map_nm,
        prev_valid=before.valid,
        map=current.map_nm,
        valid=current.valid,
        source=item,
        sha256=digest.hexdigest(),
        mark_count=current.count,
        mark_spread_nm=current.spread_nm,
    )


def _raster(
    x: Float[np.ndarray, " marks"],
    y: Float[np.ndarray, " marks"],
    ovl: Float[np.ndarray, "2 marks"],
    use: Bool[np.ndarray, " marks"],
    settings: MarksParams,
    item: str,
) -> Raster:
    raster = bin_marks(x[use], y[use], ovl[:, use])
    if settings.interpolate and use.any():
        try:
            raster = interpolate(raster)
        except ValueError as error:
            raise InputError(item, "marks", str(error), "set ingest.marks.interpolate to false") from None
    return raster


def _numbers(rows: pa.Table, name: str, item: str) -> Float[np.ndarray, " marks"]:
    column = rows[name].combine_chunks()
    if not pa.types.is_float64(column.type):
        try:
            column = pc.cast(_trimmed(column), pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # text, or a type without numbers
            remedy = f"write numbers with a decimal point, leave unknown cells empty; {_CHECK_COLUMNS}"
            raise InputError(item, name, str(error).partition("\n")[0], remedy) from None
    values: Float[np.ndarray, " marks"] = column.to_numpy(zero_copy_only=False)
    return values


def _trimmed(column: Any) -> Any:
    return pc.utf8_trim_whitespace(column) if pa.types.is_string(column.type) else column


def _flags(rows: pa.Table, item: str) -> Bool[np.ndarray, " marks"]:
    if "valid" not in rows.column_names:
        return np.ones(len(rows), bool)
    text = pc.utf8_lower(_trimmed(pc.cast(rows["valid"].combine_chunks(), pa.string())))
    flags = np.array([FLAGS.get(value) for value in text.dictionary_encode().dictionary.to_pylist()], object)
    codes = text.dictionary_encode().indices
    if codes.null_count or any(flag is None for flag in flags):
        odd = sorted({v for v in text.unique().to_pylist() if v not in FLAGS}, key=str)
        raise InputError(
            item, "valid", f"{odd[0]!r}, expected 1 or 0", "write 1 for valid marks, 0 for others"
        )
    valid: Bool[np.ndarray, " marks"] = flags.astype(bool)[codes.to_numpy()]
    return valid


def _previous(rows: pa.Table, item: str) -> Bool[np.ndarray, " marks"]:
    if "exposure" not in rows.column_names:
        return np.zeros(len(rows), bool)
    text = _trimmed(rows["exposure"].combine_chunks())
    odd = set(text.unique().to_pylist()) - {"current", "previous"}
    if odd:
        found = sorted(odd, key=str)[0]
        raise InputError(item, "exposure", f"{found!r}, expected 'current' or 'previous'", "rename it")
    previous: Bool[np.ndarray, " marks"] = pc.equal(text, pa.scalar("previous")).to_numpy(
        zero_copy_only=False
    )
    return previous


def _check_positions(x: Float[np.ndarray, " marks"], y: Float[np.ndarray, " marks"], item: str) -> None:
    if not x.size:
        raise InputError(item, "valid", "no valid mark", "leave the wafer out")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError(item, "wafer_x_mm, wafer_y_mm", "a valid mark without a position", "fill the cells")
    radius = float(np.hypot(x, y).max())
    if radius > WAFER_RADIUS_MM:
        reason = f"a mark {radius:.6g} mm from the centre, the wafer ends at {WAFER_RADIUS_MM:g} mm"
        remedy = f"positions must be mm from the wafer's centre; {_CHECK_COLUMNS}: swapped? --reference?"
        raise InputError(item, "wafer_x_mm, wafer_y_mm", reason, remedy)
    if x.size >= _SEVERAL and radius < 1.0:
        reason = f"all {x.size} marks within {radius:.3g} mm of the centre"
        raise InputError(item, "wafer_x_mm, wafer_y_mm", reason, f"positions must be in mm; {_CHECK_COLUMNS}")


def _check_overlay(
    ovl: Float[np.ndarray, "2 marks"],
    x: Float[np.ndarray, " marks"],
    y: Float[np.ndarray, " marks"],
    item: str,
) -> None:
    """Both axes against the unit first: a value in the wrong unit looks like a wrong column too."""
    sizes = {name: float(np.median(np.abs(values))) for name, values in zip("xy", ovl, strict=True)}
    for name, values in zip("xy", ovl, strict=True):
        if x.size >= _SEVERAL and not values.any():
            reason = f"0 on all {x.size} marks"
            raise InputError(item, f"ovl_{name}_nm", reason, f"a mark needs both axes; {_CHECK_COLUMNS}")
    name = max(sizes, key=sizes.__getitem__)
    if sizes[name] > MAX_MEDIAN_NM:
        reason = (
            f"median |ovl_{name}| is {sizes[name]:.4g} nm, above {MAX_MEDIAN_NM:g}: more than any overlay"
        )
        raise InputError(item, "unit", reason, f"nm declared as um, or another column; {_CHECK_UNIT}")
    median = float(np.median(np.abs(ovl)))
    if median < MIN_MEDIAN_NM:
        reason = f"median |overlay| is {median:.4g} nm, below {MIN_MEDIAN_NM:g}: less than metrology noise"
        raise InputError(item, "unit", reason, f"um declared as nm, or another column; {_CHECK_UNIT}")
    for name, position in (("x", x), ("y", y)):
        reach = float(np.median(np.abs(position)))
        if sizes[name] > max(_POSITION_LIKE_NM, reach):
            reason = (
                f"median |ovl_{name}| is {sizes[name]:.4g} nm while median |wafer_{name}| is {reach:.4g} mm"
            )
            remedy = f"position and overlay columns look swapped; {_CHECK_COLUMNS}"
            raise InputError(item, f"ovl_{name}_nm", reason, remedy)
    for name, values in zip("xy", ovl, strict=True):
        largest = float(np.abs(values).max())
        if largest > MAX_MARK_NM:
            reason = f"a valid mark of {largest:.4g} nm, above {MAX_MARK_NM:g}: nobody measured that"
            raise InputError(
                item, f"ovl_{name}_nm", reason, "leave cells without a value empty, or set valid to 0"
            )


def _ids(rows: pa.Table, item: str) -> Ids:
    """Ids of the wafer: one value each in all its rows, whichever exposure they are of."""
    ids: Ids = {}
    for name in ("lot_id", "wafer_id", "slot", *ID_FIELDS, "exposed_at"):
        if name not in rows.column_names:
            continue
        values = _distinct(rows[name].combine_chunks(), name, item)
        if len(values) > 1:
            reason = f"{len(values)} values within one wafer ({values[0]!r}, {values[1]!r}, ...)"
            raise InputError(
                item, name, reason, "one table row set per wafer exposure; check the barcode column"
            )
        value = values[0] if values else None
        if name == "exposed_at":
            text = value.isoformat() if isinstance(value, datetime) else value
            ids[name] = utc_time(text, name, item)
        elif name == "slot":
            ids[name] = _slot(value, item)
        else:
            ids[name] = text_id(value, name, item)
    return ids


def _distinct(column: Any, name: str, item: str) -> list[Any]:
    """Values of a column but null, each once."""
    try:
        return list(column.unique().drop_null().to_pylist())
    # Times outside Python's years, time zones that nobody knows, lists: a Parquet column may hold anything.
    except (pa.ArrowException, ValueError, OverflowError, LookupError) as error:
        reason = f"column of {column.type}: {str(error).partition(chr(10))[0]}"
        raise InputError(item, name, reason, "write text, times as ISO 8601 with their offset") from None


def _slot(value: Any, item: str) -> int | None:
    text = str(value).strip() if value is not None else ""
    if not text:
        return None
    if not re.fullmatch(r"\d{1,4}", text):
        raise InputError(item, "slot", f"{text!r}, expected a whole number from 0", _CHECK_COLUMNS)
    return int(text)
