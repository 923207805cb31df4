"""The files of stage `generate` in data/generated/, and how they are read.

    samples.npy            float16 (n, m, 2, 64, 64), nm: m maps of each wafer
    point/NAME.npy         float16 (n, 2, 64, 64), nm: point forecasts with everything `given`, with `shuffled`
                           conditions, `without_prev_map`, `without_logs`, `without_ids`; mu(c) alone `mean_only`;
                           `unseen`, of other wafers, where there are any
    wafers.parquet         one row per wafer, in the order of the maps: barcode, lot_id, scanner_id, ...
    unseen_wafers.parquet  the same for point/unseen.npy
    gate.json              what the acceptance gate of masked inference measured
    settings.json          samples, steps, inference, seed, mask_ratio, device, threads they were drawn with

float16 keeps a map of a few nm to a thousandth of a nm or two, below a thousandth of its error.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from ikddit.atomic import read_json
from ikddit.dataset.arrow import PreparedSplit
from ikddit.errors import InputError
from ikddit.evaluation.inputs import take

SAMPLES = "samples.npy"
POINTS = "point"
WAFERS = "wafers.parquet"
GATE = "gate.json"
SETTINGS = "settings.json"
WAFER_COLUMNS = ["barcode", "lot_id", "slot", "scanner_id", "chuck_id", "reticle_id", "exposed_at"]


@dataclass(frozen=True)
class Generated:
    """What a student generated for n wafers; the maps stay on disk until they are read."""

    samples: Float16[np.ndarray, "n m 2 64 64"]
    """nm."""
    points: dict[str, Float16[np.ndarray, "n 2 64 64"]]
    """nm, by what the model was given."""
    wafers: pa.Table
    unseen_wafers: pa.Table | None
    gate: dict[str, Any]
    settings: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> "Generated":
        """Map the files of `folder`.

        Raises:
            InputError: a file is missing or not what `generate` writes.
        """
        folder = Path(folder)
        unseen = folder / f"unseen_{WAFERS}"
        try:
            generated = cls(
                samples=np.load(folder / SAMPLES, mmap_mode="r", allow_pickle=False),
                points={
                    path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
                    for path in sorted((folder / POINTS).glob("*.npy"))
                },
                wafers=pq.read_table(folder / WAFERS),
                unseen_wafers=pq.read_table(unseen) if unseen.exists() else None,
                gate=read_json(folder / GATE),
                settings=read_json(folder / SETTINGS),
            )
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise InputError(str(folder), "files", str(error), "run `dvc repro generate`") from None
        shape, wafers = generated.samples.shape, generated.wafers.num_rows
        if (
            len(shape) != 5
            or shape[0] != wafers
            or shape[2:] != (2, 64, 64)
            or "given" not in generated.points
        ):
            reason = f"maps and wafers do not belong together: samples {shape} of {wafers} wafers"
            raise InputError(str(folder), "files", reason, "run `dvc repro generate`")
        return generated


def wafers_of(split: PreparedSplit, wafers: pa.Table, what: str) -> PreparedSplit:
    """The wafers with the barcodes of a table, in its order.

    Args:
        split: where they are looked up.
        wafers: a table with the column `barcode`.
        what: was made for them, for the error.

    Raises:
        InputError: the split lacks one of them.
    """
    barcodes = [str(text) for text in wafers.column("barcode").to_pylist()]
    row_of = {barcode: row for row, barcode in enumerate(split.barcode)}
    if unknown := next((barcode for barcode in barcodes if barcode not in row_of), None):
        raise InputError(
            what, "barcode", f"{unknown!r} is not in this split", "run the stage that wrote it again"
        )
    return take(split, np.array([row_of[barcode] for barcode in barcodes], np.int64))
