"""Overlay marks to 64x64 maps: mean, count and spread per pixel; interpolation only where it is asked for."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8, UInt16

from ikddit.mpom.schema import MAP_SIZE, PIXELS
from ikddit.overlay.grid import PITCH_MM, WAFER_RADIUS_MM, wafer_grid


@dataclass(frozen=True)
class Raster:
    """Marks of one wafer on the pixel grid.

    Args:
        map_nm: mean overlay of the marks in each pixel, NaN where there is none.
        valid: 1 where `map_nm` has a value.
        count: marks per pixel; 0 with `valid` 1 means interpolated.
        spread_nm: sample standard deviation per pixel and axis, NaN below two marks.
    """

    map_nm: Float32[np.ndarray, "2 64 64"]
    valid: UInt8[np.ndarray, "64 64"]
    count: UInt16[np.ndarray, "64 64"]
    spread_nm: Float32[np.ndarray, "2 64 64"]


def bin_marks(
    x_mm: Float[np.ndarray, " marks"], y_mm: Float[np.ndarray, " marks"], ovl_nm: Float[np.ndarray, "2 marks"]
) -> Raster:
    """Average marks per pixel.

    Args:
        x_mm: mark positions from the wafer's centre, -150 to 150.
        y_mm: the same, upwards.
        ovl_nm: overlay dx, dy of each mark.

    >>> raster = bin_marks(np.array([1.0, 2.0]), np.array([1.0, 1.0]), np.array([[1.0, 3.0], [0.0, 0.0]]))
    >>> raster.map_nm[:, 31, 32].tolist(), int(raster.count[31, 32]), int(raster.valid.sum())
    ([2.0, 0.0], 2, 1)
    """
    # The last pixel takes its outer edge too.
    col = np.minimum(np.floor((x_mm + WAFER_RADIUS_MM) / PITCH_MM), MAP_SIZE - 1).astype(np.intp)
    row = np.minimum(np.floor((WAFER_RADIUS_MM - y_mm) / PITCH_MM), MAP_SIZE - 1).astype(np.intp)
    pixel = row * MAP_SIZE + col
    count = np.bincount(pixel, minlength=PIXELS)
    mean = np.full((2, PIXELS), np.nan)
    spread = np.full((2, PIXELS), np.nan)
    some, several = count > 0, count > 1
    for axis in range(2):
        total = np.bincount(pixel, weights=ovl_nm[axis], minlength=PIXELS)
        mean[axis, some] = total[some] / count[some]
        # Around the mean, not sum of squares less square of sum: that loses all digits of a small spread.
        squares = np.bincount(pixel, weights=(ovl_nm[axis] - mean[axis, pixel]) ** 2, minlength=PIXELS)
        spread[axis, several] = np.sqrt(squares[several] / (count[several] - 1))
    shape = (2, MAP_SIZE, MAP_SIZE)
    return Raster(
        mean.reshape(shape).astype(np.float32),
        some.reshape(shape[1:]).astype(np.uint8),
        np.minimum(count, np.iinfo(np.uint16).max).reshape(shape[1:]).astype(np.uint16),
        spread.reshape(shape).astype(np.float32),
    )


def interpolate(raster: Raster) -> Raster:
    """Fill usable pixels between the marks linearly (Delaunay); nothing is extrapolated.

    Filled pixels are told by `count` 0 and `valid` 1.

    Raises:
        ValueError: fewer than three pixels with marks, or all of them on one line.
    """
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import QhullError

    grid = wafer_grid()
    known = raster.valid == 1
    wanted = grid.usable & ~known
    try:
        surface = LinearNDInterpolator(
            np.column_stack([grid.x_mm[known], grid.y_mm[known]]),
            raster.map_nm[:, known].T.astype(np.float64),
        )
    except (QhullError, ValueError):
        raise ValueError(f"{int(known.sum())} pixels with marks do not span an area") from None
    filled = raster.map_nm.copy()
    filled[:, wanted] = surface(grid.x_mm[wanted], grid.y_mm[wanted]).T
    valid = np.isfinite(filled[0]).astype(np.uint8)
    return Raster(filled, valid, raster.count, raster.spread_nm)
