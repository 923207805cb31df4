"""Spatial patterns of overlay on the 64x64 grid: the columns every simulated map is a sum of."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ikddit.overlay.grid import (
    FIELD_HEIGHT_MM,
    FIELD_WIDTH_MM,
    MAP_SIZE,
    USABLE_RADIUS_MM,
    WAFER_RADIUS_MM,
    WaferGrid,
    wafer_grid,
)

SMOOTH_MODES = 24
"""Plane waves of the unexplained smooth field, most of 60-200 mm wavelength."""
EDGE_DECAY_MM = 8.0
MIN_FIELD_SHARE = 0.3
"""A field with less of its area on the usable wafer is not exposed."""

# Terms by group. Within a polynomial group the order is x-axis then y-axis of each monomial.
LINEAR = slice(0, 6)
"""Translation, expansion, rotation of the wafer grid: x, y of 1, X, Y."""
TRANSLATION = slice(0, 2)
"""Of these, the translation: x, y."""
HIGHER = slice(6, 20)
"""Second and third order of the wafer grid."""
INTRA = slice(20, 38)
"""Intra-field terms k3 to k20."""
PROCESS = slice(38, 42)
"""edge_rad, edge_tan, bow, saddle: what deposition and etch do."""
PARTIAL = slice(42, 44)
"""Radial and tangential shift of partial fields, levelled with fewer sensor spots."""
SMOOTH = slice(44, 44 + SMOOTH_MODES)
TERMS = SMOOTH.stop


@dataclass(frozen=True)
class Basis:
    """Patterns on the usable pixels; a map in nm is `matrix @ coefficients`.

    Rows are the usable pixels in C order of the (64, 64) grid, first all dx, then all dy. A polynomial or
    smooth column has RMS 1 nm on its own axis, a vector pattern RMS 1 nm over both axes, so coefficients
    are nm.
    """

    matrix: Float[np.ndarray, "rows terms"]
    matrix32: Float[np.ndarray, "rows terms"]
    """The same in float32, for drawing maps."""
    names: tuple[str, ...]
    usable: Bool[np.ndarray, "64 64"]
    exposed: Bool[np.ndarray, "64 64"]
    """Usable pixels of fields that are exposed."""
    x_mm: Float[np.ndarray, " pixels"]
    y_mm: Float[np.ndarray, " pixels"]

    @property
    def pixels(self) -> int:
        """Usable pixels (3,088)."""
        return len(self.x_mm)

    def to_maps(self, rows: Float[np.ndarray, "*n rows"]) -> Float[np.ndarray, "*n 2 64 64"]:
        """Scatter row vectors to maps; pixels that are not exposed hold 0."""
        out = np.zeros((*rows.shape[:-1], 2, MAP_SIZE, MAP_SIZE), rows.dtype)
        out[..., self.usable] = rows.reshape(*rows.shape[:-1], 2, self.pixels)
        out *= self.exposed
        return out

    def to_rows(self, maps: Float[np.ndarray, "*n 2 64 64"]) -> Float[np.ndarray, "*n rows"]:
        """Gather the usable pixels of maps into row vectors (inverse of `to_maps`)."""
        rows: np.ndarray = maps[..., self.usable].reshape(*maps.shape[:-3], 2 * self.pixels)
        return rows


def exposed_pixels(grid: WaferGrid) -> Bool[np.ndarray, "64 64"]:
    """Find the usable pixels whose field has at least `MIN_FIELD_SHARE` of its area on the usable wafer.

    >>> int(exposed_pixels(wafer_grid()).sum())
    3056
    """
    step = 0.5
    u, v = np.meshgrid(  # a fine raster of one field, cell centres
        np.arange(step / 2, FIELD_WIDTH_MM, step) - FIELD_WIDTH_MM / 2,
        np.arange(step / 2, FIELD_HEIGHT_MM, step) - FIELD_HEIGHT_MM / 2,
    )
    centres = np.stack([grid.field_x_mm, grid.field_y_mm], axis=-1).reshape(-1, 2)
    fields, where = np.unique(centres, axis=0, return_inverse=True)
    share = [(np.hypot(u + x, v + y) <= USABLE_RADIUS_MM).mean() for x, y in fields]
    return grid.usable & (np.asarray(share)[where.ravel()].reshape(MAP_SIZE, MAP_SIZE) >= MIN_FIELD_SHARE)


def build_basis(rng: np.random.Generator) -> Basis:
    """Build the patterns of one fab; `rng` draws the waves of its smooth field."""
    grid = wafer_grid()
    ok = grid.usable
    x, y, r = grid.x_mm[ok], grid.y_mm[ok], grid.radius_mm[ok]
    columns: list[np.ndarray] = []
    names: list[str] = []

    def scalar(f: np.ndarray, name: str) -> None:
        f = f / np.sqrt(np.mean(f**2))
        zero = np.zeros_like(f)
        columns.extend([np.concatenate([f, zero]), np.concatenate([zero, f])])
        names.extend([f"{name}_x", f"{name}_y"])

    def vector(fx: np.ndarray, fy: np.ndarray, name: str) -> None:
        f = np.concatenate([fx, fy])
        columns.append(f / np.sqrt(np.mean(f**2)))
        names.append(name)

    def polynomial(u: np.ndarray, v: np.ndarray, lowest: int, prefix: str) -> None:
        for degree in range(lowest, 4):
            for i in range(degree, -1, -1):
                scalar(u**i * v ** (degree - i), f"{prefix}{i}{degree - i}")

    polynomial(x / WAFER_RADIUS_MM, y / WAFER_RADIUS_MM, 0, "wafer")
    polynomial(grid.in_x_mm[ok] / (FIELD_WIDTH_MM / 2), grid.in_y_mm[ok] / (FIELD_HEIGHT_MM / 2), 1, "field")
    edge = np.exp(-(USABLE_RADIUS_MM - r) / EDGE_DECAY_MM)
    vector(x / r * edge, y / r * edge, "edge_rad")
    vector(-y / r * edge, x / r * edge, "edge_tan")
    # Film stress bends the wafer. Its part cubic in position lies within the third-order grid terms; the
    # next radial order is what alignment cannot model.
    vector(x * r**3, y * r**3, "bow")
    vector(x * r, -y * r, "saddle")
    partial = np.where(grid.full_field[ok], 0.0, 1.0)
    fx, fy = grid.field_x_mm[ok], grid.field_y_mm[ok]
    fr = np.maximum(np.hypot(fx, fy), 1.0)  # the centre field is full, its radius never matters
    vector(partial * fx / fr, partial * fy / fr, "partial_rad")
    vector(-partial * fy / fr, partial * fx / fr, "partial_tan")
    phase = rng.uniform(0.0, 2 * np.pi, SMOOTH_MODES)
    kx, ky = rng.normal(0.0, 0.05, (2, SMOOTH_MODES))
    for j in range(SMOOTH_MODES):
        wave = np.cos(kx[j] * x + ky[j] * y + phase[j])
        zero = np.zeros_like(wave)
        wave = wave / np.sqrt(np.mean(wave**2))
        columns.append(np.concatenate([wave, zero] if j % 2 else [zero, wave]))
        names.append(f"smooth{j:02d}_{'x' if j % 2 else 'y'}")
    matrix = np.column_stack(columns)
    assert matrix.shape[1] == TERMS
    return Basis(
        matrix=matrix,
        matrix32=np.ascontiguousarray(matrix, np.float32),
        names=tuple(names),
        usable=ok,
        exposed=exposed_pixels(grid),
        x_mm=x,
        y_mm=y,
    )
