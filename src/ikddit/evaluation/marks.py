"""The usable marks of the scored wafers as plain rows, the centre's first, so that zones are slices."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from ikddit.overlay.grid import EDGE_ZONE_MM, wafer_grid

Zone = Literal["centre", "edge"]
ZONES: tuple[Zone, ...] = ("centre", "edge")
"""Marks up to `EDGE_ZONE_MM` from the wafer's centre, and beyond."""


def on_wafer(valid: Shaped[np.ndarray, "n 64 64"]) -> Shaped[np.ndarray, "n 64 64"]:
    """The mask without marks off the usable wafer: no map is generated there, so every figure leaves them out."""
    return np.asarray(valid * wafer_grid().usable)


@dataclass(frozen=True)
class Marks:
    """Where the marks of n wafers are, p usable pixels of each in one order."""

    pixels: Int[np.ndarray, " p"]
    """Positions in a flat 64 x 64 map."""
    order: Int[np.ndarray, " p"]
    """Their places among the usable pixels of a map from its top."""
    split: int
    """So many of them are the centre's."""
    valid: Bool[np.ndarray, "n p"]

    @classmethod
    def of(cls, valid: Shaped[np.ndarray, "n 64 64"]) -> "Marks":
        """The usable pixels; marks elsewhere are not counted."""
        grid = wafer_grid()
        usable = np.flatnonzero(grid.usable)
        edge = grid.radius_mm.reshape(-1)[usable] > EDGE_ZONE_MM
        order = np.argsort(edge, kind="stable")
        pixels = usable[order]
        return cls(pixels, order, int((~edge).sum()), valid.reshape(len(valid), -1)[:, pixels] != 0)

    def zone(self, name: Zone) -> slice:
        """The zone's places in a row."""
        return slice(0, self.split) if name == "centre" else slice(self.split, None)

    def rows(self, maps: Shaped[np.ndarray, "n 2 64 64"]) -> Float[np.ndarray, "n 2 p"]:
        """Maps as rows of marks, float32, 0 where invalid (whatever lies there)."""
        values = maps.reshape(len(maps), 2, -1)[..., self.pixels].astype(np.float32)
        return np.where(self.valid[:, None], values, np.float32(0))

    def sums(self, rows: Shaped[np.ndarray, "n 2 p"]) -> Float[np.ndarray, "n 2 2"]:
        """Sums per wafer, axis and zone, float64; invalid marks must be 0."""
        parts = [rows[..., self.zone(name)].sum(axis=-1, dtype=np.float64) for name in ZONES]
        return np.stack(parts, axis=-1)

    @property
    def counts(self) -> Float[np.ndarray, "n 1 2"]:
        """Valid marks per wafer and zone."""
        parts = [self.valid[:, self.zone(name)].sum(axis=-1) for name in ZONES]
        return np.stack(parts, axis=-1).astype(np.float64)[:, None]
