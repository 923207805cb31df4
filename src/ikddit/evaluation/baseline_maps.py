"""The baselines' and the oracle's forecasts of the scored wafers, from stage `baselines` to stage `evaluate`.

    NAME.npy             float16 (n, 2, 64, 64), nm: forecast of each baseline; `oracle` is the exact conditional mean
    oracle_sd.npy        float16 (n, 2, 64, 64), nm: exact posterior sd of a measured mark
    oracle_samples.npy   float16 (n, 8, 2, 64, 64), nm: draws from the exact posterior
    wafers.parquet       barcode, in the order of the maps

The oracle's files are there for simulated data only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float16

from ikddit.atomic import new_array
from ikddit.errors import InputError

WAFERS = "wafers.parquet"
ORACLE, ORACLE_SD, ORACLE_DRAWS = "oracle", "oracle_sd", "oracle_samples"


class MapWriter:
    """Writes forecasts into a folder as they come, a few wafers at a time; without a folder it writes nothing."""

    def __init__(self, folder: Path | None, barcodes: Sequence[str]) -> None:
        self._folder, self._count = folder, len(barcodes)
        self._open: dict[str, np.ndarray] = {}
        if folder is not None:
            pq.write_table(pa.table({"barcode": list(barcodes)}), folder / WAFERS)

    def put(self, name: str, maps: np.ndarray, start: int = 0) -> None:
        """Write the maps of the wafers from `start` on."""
        if self._folder is None:
            return
        if name not in self._open:
            self._open[name] = new_array(self._folder / f"{name}.npy", (self._count, *maps.shape[1:]))
        self._open[name][start : start + len(maps)] = maps


@dataclass(frozen=True)
class BaselineMaps:
    """Forecasts by baseline, in their order in the table; the maps stay on disk until they are read."""

    maps: dict[str, Float16[np.ndarray, "n 2 64 64"]]
    oracle_sd: Float16[np.ndarray, "n 2 64 64"] | None
    oracle_samples: Float16[np.ndarray, "n m 2 64 64"] | None

    @classmethod
    def open(cls, folder: Path | str, names: Sequence[str], barcodes: Sequence[str]) -> "BaselineMaps":
        """Map the files of `names` (those of reports/baselines.json).

        Raises:
            InputError: a file is missing, or the maps are of other wafers than `barcodes`.
        """
        folder = Path(folder)

        def load(name: str) -> np.ndarray:
            out: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            return out

        try:
            found = pq.read_table(folder / WAFERS).column("barcode").to_pylist()
            maps = {name: load(name) for name in names}
            oracle = ORACLE in maps
            sd, draws = (load(name) if oracle else None for name in (ORACLE_SD, ORACLE_DRAWS))
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise InputError(str(folder), "files", str(error), "run `dvc repro baselines`") from None
        if found != list(barcodes):
            raise InputError(
                str(folder),
                "wafers",
                "are not those that were generated",
                "run `dvc repro baselines generate` with one value of evaluate.wafers",
            )
        return cls(maps, sd, draws)
