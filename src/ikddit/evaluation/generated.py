"""The files of stage `generate` in data/generated/, and how they are read.

    samples.npy            float16 (n, m, 2, 64, 64), nm: m maps of each wafer
    point/NAME.npy         float16 (n, 2, 64, 64), nm: point forecasts with everything `given`, with `shuffled`
                           conditions, `without_prev_map`, `without_logs`, `without_ids`; mu(c) alone `mean_only`;
                           `unseen`, of other wafers, where there are any
    withheld/NAME.npy      float16 (w, m, 2, 64, 64), nm: m maps of fewer wafers each without `prev_map`, `logs`, `ids`
    withheld/wafers.parquet  the same for these
    wafers.parquet         one row per wafer, in the order of the maps: barcode, lot_id, scanner_id, ...
    unseen_wafers.parquet  the same for point/unseen.npy
    gate.json              what the acceptance gate of masked inference measured
    settings.json          samples, steps, inference, seed, mask_ratio, device, threads they were drawn with

float16 keeps a map of a few nm to a thousandth of a nm or two, below a thousandth of its error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
WITHHELD = "withheld"
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
    withheld: dict[str, Float16[np.ndarray, "w m 2 64 64"]] = field(default_factory=dict)
    """nm, samples of `withheld_wafers`, by the modality that the model was not given."""
    withheld_wafers: pa.Table | None = None

    @classmethod
    def open(cls, folder: Path | str) -> "Generated":
        """Map the files of `folder`.

        Raises:
            InputError: a file is missing or not what `generate` writes.
        """
        folder = Path(folder)
        unseen = folder / f"unseen_{WAFERS}"
        samples, wafers = open_samples(folder)
        with _named(folder):
            points = _arrays(folder / POINTS)
            if "given" not in points:
                raise ValueError(f"no {POINTS}/given.npy")
            return cls(
                samples=samples,
                points=points,
                wafers=wafers,
                unseen_wafers=pq.read_table(unseen) if unseen.exists() else None,
                gate=read_json(folder / GATE),
                settings=read_json(folder / SETTINGS),
                withheld=_arrays(folder / WITHHELD),
                withheld_wafers=pq.read_table(folder / WITHHELD / WAFERS),
            )


def open_samples(folder: Path | str) -> tuple[Float16[np.ndarray, "n m 2 64 64"], pa.Table]:
    """Map the samples alone, nm, and read the table of their wafers.

    Raises:
        InputError: a file is missing, or they do not belong together.
    """
    folder = Path(folder)
    with _named(folder):
        samples: np.ndarray = np.load(folder / SAMPLES, mmap_mode="r", allow_pickle=False)
        wafers = pq.read_table(folder / WAFERS)
    shape = samples.shape
    if len(shape) != 5 or shape[0] != wafers.num_rows or shape[2:] != (2, 64, 64):
        reason = f"maps and wafers do not belong together: samples {shape} of {wafers.num_rows} wafers"
        raise InputError(str(folder), "files", reason, "run `dvc repro generate`")
    return samples, wafers


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise InputError(str(folder), "files", str(error), "run `dvc repro generate`") from None


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    """The `.npy` files of a folder by their names, mapped."""
    return {
        path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))
    }


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
