"""Small tables as CSV: the same numbers give the same bytes."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ikddit.atomic import write_text


def write_csv(path: Path | str, rows: Iterable[Mapping[str, Any]], digits: int = 5) -> None:
    """Write rows; a column is there if any row has it. Floats keep `digits` significant ones, NaN is an empty cell."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(name), digits) for name in columns] for row in rows])
    write_text(path, text.getvalue())


def columns_as_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of equal length as rows.

    >>> columns_as_rows({"a": [1, 2], "b": [3, 4]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 4}]
    """
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
