"""Where things are on a 300 mm wafer: the 64x64 pixel grid and the exposure fields, in mm."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

MAP_SIZE = 64
WAFER_RADIUS_MM = 150.0
USABLE_RADIUS_MM = 147.0
"""Wafer radius less 3 mm edge exclusion."""
EDGE_ZONE_MM = 130.0
"""Marks beyond this radius count as the edge zone."""
PITCH_MM = 2 * WAFER_RADIUS_MM / MAP_SIZE
"""Pixel pitch: 4.6875 mm."""
FIELD_WIDTH_MM = 26.0
FIELD_HEIGHT_MM = 33.0


@dataclass(frozen=True)
class WaferGrid:
    """Pixel-centre coordinates of a 64x64 map, all of shape (64, 64).

    Row 0 is the top (largest y), column 0 the left (smallest x). One field is centred on the wafer.
    """

    x_mm: Float[np.ndarray, "64 64"]
    y_mm: Float[np.ndarray, "64 64"]
    radius_mm: Float[np.ndarray, "64 64"]
    usable: Bool[np.ndarray, "64 64"]
    """True within the 147 mm usable radius."""
    field_x_mm: Float[np.ndarray, "64 64"]
    """Centre of the exposure field that holds the pixel."""
    field_y_mm: Float[np.ndarray, "64 64"]
    in_x_mm: Float[np.ndarray, "64 64"]
    """Position inside the field, -13 to 13."""
    in_y_mm: Float[np.ndarray, "64 64"]
    """Position inside the field, -16.5 to 16.5."""
    field_col: Int[np.ndarray, "64 64"]
    field_row: Int[np.ndarray, "64 64"]
    full_field: Bool[np.ndarray, "64 64"]
    """True where the whole 26x33 mm field lies within the usable radius."""


def wafer_grid() -> WaferGrid:
    """Build the grid.

    >>> g = wafer_grid()
    >>> int(g.usable.sum()), float(g.x_mm[0, 0]), float(g.y_mm[0, 0])
    (3088, -147.65625, 147.65625)
    """
    axis = (np.arange(MAP_SIZE) + 0.5) * PITCH_MM - WAFER_RADIUS_MM
    x, y = np.meshgrid(axis, axis[::-1])
    col = np.round(x / FIELD_WIDTH_MM).astype(np.int64)
    row = np.round(y / FIELD_HEIGHT_MM).astype(np.int64)
    fx, fy = col * FIELD_WIDTH_MM, row * FIELD_HEIGHT_MM
    corner = np.hypot(np.abs(fx) + FIELD_WIDTH_MM / 2, np.abs(fy) + FIELD_HEIGHT_MM / 2)
    radius = np.hypot(x, y)
    return WaferGrid(
        x_mm=x,
        y_mm=y,
        radius_mm=radius,
        usable=radius <= USABLE_RADIUS_MM,
        field_x_mm=fx,
        field_y_mm=fy,
        in_x_mm=x - fx,
        in_y_mm=y - fy,
        field_col=col,
        field_row=row,
        full_field=corner <= USABLE_RADIUS_MM,
    )
