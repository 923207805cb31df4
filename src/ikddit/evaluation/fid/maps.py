"""Masked overlay maps in reading order, and the one rule by which they become 8-bit RGB images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32, Int, Shaped, UInt8

from ikddit.dataset.arrow import PreparedSplit
from ikddit.errors import ModelError
from ikddit.mpom.encoding import rgb_from_nm

SIGMAS = 6.0
"""Range of the rendering, in sd of the measured maps, where the data set has no PNG scale of its own."""


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
    found = np.flatnonzero(split.valid.any(axis=(1, 2)))
    if len(found) == len(split):
        return MapSet(name, split.map, split.valid, found)
    return MapSet(name, split.map[found], split.valid[found], np.arange(len(found)))


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


def render_scale_nm(wanted: float | None, declared: float | None, sigma_nm: float) -> float:
    """Choose the range of the rendering, nm.

    Args:
        wanted: `fid.scale_nm`.
        declared: PNG scale of the data set (dataset.json); absent for mark tables.
        sigma_nm: standard deviation of the measured maps of train.

    >>> render_scale_nm(None, 16.0, 2.0), render_scale_nm(None, None, 2.0), render_scale_nm(8.0, 16.0, 2.0)
    (16.0, 12.0, 8.0)
    """
    if wanted is not None:
        return wanted
    return declared if declared is not None else SIGMAS * sigma_nm


def render(
    maps_nm: Float32[np.ndarray, "b 2 64 64"], valid: UInt8[np.ndarray, "b 64 64"], scale_nm: float
) -> UInt8[np.ndarray, "b 64 64 3"]:
    """Render maps as the RGB images that Inception sees: the PNG encoding of the MPOM format.

    R is dx, G is dy, -scale_nm..scale_nm to 0..255 (values beyond are clipped); B is 255 on valid marks; the
    corners of the wafer and invalid marks are black. With the data set's own scale a measured map is, pixel for
    pixel, the PNG it came as, and a generated map the PNG it would be sent as.
    """
    return rgb_from_nm(maps_nm, valid, scale_nm)
