"""Masked overlay maps in reading order: the measured ones of a split, and the generated ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Int, Shaped, UInt8

from ikddit.dataset.arrow import PreparedSplit


@dataclass(frozen=True)
class MapSet:
    """Maps in nm, each of a wafer whose mask it takes."""

    name: str
    """In progress lines."""
    maps: Shaped[np.ndarray, "n 2 64 64"]
    """nm, any float type; a memory map is read block by block."""
    valid: UInt8[np.ndarray, "w 64 64"]
    """Of each wafer."""
    wafer: Int[np.ndarray, " n"]
    """Row of `valid` of each map."""
    barcode: list[str] = field(default_factory=list)
    """Of each wafer; empty where nobody asks."""

    def __len__(self) -> int:
        """Count the maps."""
        return len(self.maps)

    def blocks(
        self, size: int
    ) -> Iterator[tuple[slice, Float32[np.ndarray, "b 2 64 64"], UInt8[np.ndarray, "b 64 64"]]]:
        """Walk `size` maps at a time: rows, maps in nm (0 where invalid), masks."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            valid = self.valid[self.wafer[rows]]
            maps = np.where(valid[:, None] != 0, self.maps[rows], 0).astype(np.float32)
            yield rows, maps, valid


def measured_maps(split: PreparedSplit, name: str) -> MapSet:
    """The measured maps of a split; wafers without a single valid mark (no target) are left out."""
    found, barcodes = np.flatnonzero(split.valid.any(axis=(1, 2))), split.barcode
    if len(found) == len(split):
        return MapSet(name, split.map, split.valid, found, barcodes)
    left = [barcodes[row] for row in found]
    return MapSet(name, split.map[found], split.valid[found], np.arange(len(found)), left)
