"""Inception features of every measured map, by barcode: once per data set, whatever the seed, the split, the embedding.

This is the dearest part of the measured side (ten minutes of two cores for 16,000 maps), and the only one that no
model and no split can change.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32, UInt8

from ikddit.atomic import atomic_dir, read_json, write_json
from ikddit.errors import ModelError
from ikddit.evaluation.fid.inception import InceptionFeatures, make_inception, wanted_spaces
from ikddit.evaluation.fid.rendering import render_scale_nm
from ikddit.evaluation.fid.weights import NoWeights, Weights
from ikddit.mpom.parts import lists_to_numpy, part_files, read_batches
from ikddit.mpom.schema import MAP_SIZE
from ikddit.params import FidParams

log = logging.getLogger("ikddit")
_FACTS, _BARCODES = "measured.json", "barcodes.npy"
Block = tuple[list[str], Float32[np.ndarray, "b 2 64 64"], UInt8[np.ndarray, "b 64 64"]]
"""Barcodes, maps in nm (0 where invalid), masks."""


@dataclass(frozen=True)
class MeasuredFeatures:
    """Features by barcode; they stay on disk until they are asked for."""

    facts: dict[str, Any]
    """`n` maps, `weights`, `missing` spaces with the reason, `scale_nm` of the rendering."""
    row_of: dict[str, int]
    spaces: dict[str, Float32[np.ndarray, "n d"]]

    @classmethod
    def open(cls, folder: Path | str) -> "MeasuredFeatures":
        """Map what `write_measured` wrote.

        Raises:
            ModelError: a file is missing or damaged.
        """
        folder = Path(folder)
        try:
            facts = read_json(folder / _FACTS)
            barcodes = np.load(folder / _BARCODES, allow_pickle=False).tolist()
            spaces = {
                space: np.load(folder / f"{space}.npy", mmap_mode="r", allow_pickle=False)
                for space in facts["spaces"]
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{folder}: no readable features ({error}); run `dvc repro fid_measured`"
            ) from error
        return cls(facts, {code: row for row, code in enumerate(barcodes)}, spaces)

    def of(self, barcodes: Sequence[str]) -> dict[str, Float32[np.ndarray, "n d"]]:
        """Features of these wafers' maps, by space.

        Raises:
            ModelError: a wafer is not among the measured ones.
        """
        if not self.spaces:
            return {}
        if unknown := [code for code in barcodes if code not in self.row_of]:
            raise ModelError(f"data/fid/measured: no map of wafer {unknown[0]}; run `dvc repro fid_measured`")
        rows = np.array([self.row_of[code] for code in barcodes], np.int64)
        return {space: np.asarray(values[rows]) for space, values in self.spaces.items()}


def write_measured(
    records: Path | str, params: FidParams, weights: Weights | NoWeights, folder: Path | str
) -> None:
    """Take the features of all measured maps of validated records; without weights, write down that there are none.

    Args:
        records: folder of `part-*.parquet` and dataset.json.
        params: section `fid`.
        weights: from `find_weights`.
        folder: written as a whole or not at all.

    Raises:
        ModelError: the weights do not fit the network, or a GPU is missing (DeviceError).
    """
    parts, description = part_files(records), read_json(Path(records) / "dataset.json")
    if description["units"] != "nm":
        weights = NoWeights(f"maps in {description['units']}, not in nm")
    declared = description.get("scale_nm")
    # Looked at only where the data set names no range.
    sigma_nm = 0.0 if params.scale_nm or declared else _sd_nm(parts)
    scale_nm = render_scale_nm(params.scale_nm, declared, sigma_nm)
    facts: dict[str, Any] = {"weights": weights.facts, "scale_nm": scale_nm}
    with atomic_dir(folder) as scratch:
        barcodes: list[str] = []
        if isinstance(weights, NoWeights):
            log.warning("no Inception figures: %s", weights.reason)
            facts |= {"missing": dict.fromkeys(wanted_spaces(params.dims), "no weights"), "spaces": []}
        else:
            inception = make_inception(params, weights, scale_nm)
            facts["dtype"] = "bf16" if inception.bf16 else "fp32"
            barcodes = _write_features(parts, inception, scratch)
            facts |= {"missing": inception.missing, "spaces": inception.spaces, "n": len(barcodes)}
        np.save(scratch / _BARCODES, np.array(barcodes, np.str_))
        write_json(scratch / _FACTS, facts)


def _write_features(parts: Sequence[Path], inception: InceptionFeatures, folder: Path) -> list[str]:
    """Write one .npy for each space, a row for each map; returns the barcodes of the rows."""
    at_most = sum(pq.read_metadata(part).num_rows for part in parts)
    rows: dict[str, np.ndarray] = {}
    barcodes: list[str] = []
    for codes, maps, valid in measured_blocks(parts, inception.label, inception.batch):
        here = slice(len(barcodes), len(barcodes) + len(codes))
        barcodes += codes
        for space, values in inception(maps, valid).items():
            rows.setdefault(space, np.empty((at_most, values.shape[1]), np.float32))[here] = values
    for space in inception.spaces:
        np.save(folder / f"{space}.npy", rows[space][: len(barcodes)])
    return barcodes


def measured_blocks(parts: Sequence[Path], label: str, size: int) -> Iterator[Block]:
    """Walk the measured maps of record parts, up to `size` at a time; wafers without a valid mark are left out."""
    for table in read_batches(list(parts), label, ["barcode", "map", "valid"]):
        valid = lists_to_numpy(table["valid"], 0).reshape(-1, MAP_SIZE, MAP_SIZE)
        maps = lists_to_numpy(table["map"], np.nan).reshape(len(valid), -1, MAP_SIZE, MAP_SIZE)
        codes = table["barcode"].to_pylist()
        found = np.flatnonzero(valid.any(axis=(1, 2)))
        for start in range(0, len(found), size):
            rows = found[start : start + size]
            masked = np.where(valid[rows, None] != 0, maps[rows], np.float32(0.0))
            yield [str(codes[row]) for row in rows], masked, valid[rows]


def _sd_nm(parts: Sequence[Path]) -> float:
    """Standard deviation of both axes over all valid marks, nm; 1 where nothing varies."""
    count, total, squares = 0, 0.0, 0.0
    for _, maps, valid in measured_blocks(parts, "range of the measured maps", 250):
        count += 2 * int(np.count_nonzero(valid))
        total += float(maps.sum(dtype=np.float64))
        squares += float(np.square(maps, dtype=np.float64).sum())
    variance = squares / count - (total / count) ** 2 if count else 0.0
    return float(np.sqrt(variance)) if variance > 0 else 1.0
