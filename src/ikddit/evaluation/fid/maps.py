"""Masked overlay maps in reading order: the measured ones of a split, and the generated ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32, Int, Shaped, UInt8

from ikddit.dataset.arrow import PreparedSplit
from ikddit.errors import ModelError


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


def generated_maps(folder: Path | str, *splits: PreparedSplit) -> MapSet:
    """What stage `generate` wrote, wafer by wafer, each map with the mask of its wafer.

    Args:
        folder: holds `samples.npy`, float16 (wafers, m, 2, 64, 64) in nm, and `wafers.parquet`, whose
            `barcode` names the wafers in the same order.
        splits: prepared splits in which the wafers are found.

    Raises:
        ModelError: a file is missing or damaged, they do not fit one another, or a wafer is in no split.
    """
    folder, remedy = Path(folder), "run `dvc repro generate`"
    try:
        samples = np.load(folder / "samples.npy", mmap_mode="r", allow_pickle=False)
        wafers = pq.read_table(folder / "wafers.parquet", columns=["barcode"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: no readable generated maps ({error}); {remedy}") from error
    barcodes = [str(code) for code in wafers["barcode"].to_pylist()]
    if samples.ndim != 5 or samples.shape[2:] != (2, 64, 64) or 0 in samples.shape:
        raise ModelError(f"{folder}/samples.npy: shape {samples.shape}, expected (n, m, 2, 64, 64); {remedy}")
    if len(samples) != len(barcodes):
        raise ModelError(f"{folder}: {len(samples)} wafers of samples, {len(barcodes)} barcodes; {remedy}")
    masks = {code: mask for split in splits for code, mask in zip(split.barcode, split.valid, strict=True)}
    if unknown := [code for code in barcodes if code not in masks]:
        raise ModelError(f"{folder}: wafer {unknown[0]} is not in the prepared data; {remedy}")
    return MapSet(
        "generated",
        samples.reshape(-1, 2, 64, 64),
        np.stack([masks[code] for code in barcodes]),
        np.repeat(np.arange(len(samples)), samples.shape[1]),
    )
