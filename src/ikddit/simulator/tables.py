"""Simulated lots as mark tables: one mark in the centre of each exposed pixel, in canonical columns."""

from typing import Any

import numpy as np
import pyarrow as pa

from ikddit.overlay.grid import WaferGrid, wafer_grid
from ikddit.simulator.basis import exposed_pixels
from ikddit.simulator.wafers import Wafers


def mark_table(wafers: Wafers, ids: list[dict[str, str | int]]) -> pa.Table:
    """Both exposures of each wafer as marks (nm, mm, current minus previous), sorted by wafer.

    Args:
        wafers: of one lot.
        ids: of each wafer, by their names in records; repeated in each of its rows.
    """
    grid = wafer_grid()
    exposed = exposed_pixels(grid)
    tables = []
    for i, wafer in enumerate(ids):
        current = _marks(grid, exposed, wafers.map[i], wafers.valid[i], "current", wafer)
        tables += [
            current,
            _marks(grid, exposed, wafers.prev_map[i], wafers.prev_valid[i], "previous", wafer),
        ]
    return pa.concat_tables(tables)


def _marks(
    grid: WaferGrid,
    exposed: np.ndarray,
    map_nm: np.ndarray,
    valid: np.ndarray,
    exposure: str,
    ids: dict[str, str | int],
) -> pa.Table:
    count = int(exposed.sum())
    columns: dict[str, Any] = {
        name: pa.repeat(pa.scalar(value), count) for name, value in {**ids, "exposure": exposure}.items()
    }
    columns |= {
        "wafer_x_mm": grid.x_mm[exposed],
        "wafer_y_mm": grid.y_mm[exposed],
        "field_x_mm": grid.field_x_mm[exposed],
        "field_y_mm": grid.field_y_mm[exposed],
        "mark_x_mm": grid.in_x_mm[exposed],
        "mark_y_mm": grid.in_y_mm[exposed],
        "ovl_x_nm": map_nm[0][exposed].astype(np.float32),
        "ovl_y_nm": map_nm[1][exposed].astype(np.float32),
        "valid": valid[exposed].astype(np.uint8),
    }
    return pa.table(columns)
