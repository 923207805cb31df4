"""What a forecast is and the files it goes to: Parquet of forecasts and samples, one picture per wafer."""

import re
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped

from ikddit.atomic import atomic_path
from ikddit.errors import InputError

if TYPE_CHECKING:
    import pyarrow.parquet as pq
    from matplotlib.figure import Figure

TITLE_WIDTH = 48
"""Characters of a line above two panels."""
MAP_VALUES = 2 * 64 * 64
_SAMPLE_FIELDS: "list[pa.Field[Any]]" = [
    pa.field("barcode", pa.string(), nullable=False),
    pa.field("sample", pa.int32(), nullable=False),
    pa.field("map", pa.list_(pa.float32(), MAP_VALUES), nullable=False),
]
SAMPLES_SCHEMA = pa.schema(
    _SAMPLE_FIELDS,
    metadata={"units": "nm", "shape": "2,64,64"},
)
"""One sample a row: its number from 0 and its map (dx then dy, rows from the top), 0 where no map is generated."""


@dataclass(frozen=True)
class Forecast:
    """What is known of W wafers before they are measured; all lengths in nm.

    `mean` is the point forecast (conditional mean plus the denoiser's answer at the highest noise), `sigma`
    the standard deviation of the samples per pixel (measurement noise included).
    """

    barcode: list[str]
    mean: Float[np.ndarray, "W 2 64 64"]
    sigma: Float[np.ndarray, "W 2 64 64"]
    m3s: Float[np.ndarray, "W 2"]
    """Expected |mean| + 3 sigma of the measured map per axis: the average over samples, not of the mean map."""
    m3s_low: Float[np.ndarray, "W 2"]
    """Lower end of the 90 % prediction interval of the measured M3S."""
    m3s_high: Float[np.ndarray, "W 2"]
    """Its upper end."""
    out_of_spec: Float[np.ndarray, " W"]
    """Probability that the larger measured M3S exceeds the limit, by the law of the intervals."""
    missing: list[str]
    """Inputs that the wafer lacks or, of ids, that training did not know, as `prev_map, scanner_id`; empty: none."""


def forecast_table(forecast: Forecast) -> pa.Table:
    """A forecast as a table, one wafer a row: barcode, mean and sigma (flat lists, nm), M3S, out_of_spec, missing."""
    columns: dict[str, Any] = {
        "barcode": forecast.barcode,
        "mean": list(forecast.mean.reshape(len(forecast.mean), -1)),
        "sigma": list(forecast.sigma.reshape(len(forecast.sigma), -1)),
    }
    for axis, name in enumerate("xy"):
        columns[f"m3s_{name}_nm"] = forecast.m3s[:, axis]
        columns[f"m3s_{name}_low_nm"] = forecast.m3s_low[:, axis]
        columns[f"m3s_{name}_high_nm"] = forecast.m3s_high[:, axis]
    return pa.table(columns | {"out_of_spec": forecast.out_of_spec, "missing": forecast.missing})


def forecast_of_table(table: pa.Table) -> Forecast:
    """The forecast that `forecast_table` made this table of."""

    def numbers(name: str) -> np.ndarray:
        return table.column(name).to_numpy()

    def maps(name: str) -> np.ndarray:
        column: Any = table.column(name).combine_chunks()
        flat: np.ndarray = column.flatten().to_numpy()
        return flat.reshape(-1, 2, 64, 64)

    def axes(kind: str) -> np.ndarray:
        return np.stack([numbers(f"m3s_{name}{kind}_nm") for name in "xy"], axis=1)

    def texts(name: str) -> list[str]:
        return [str(text) for text in table.column(name).to_pylist()]

    intervals = axes(""), axes("_low"), axes("_high")
    law = numbers("out_of_spec")
    return Forecast(texts("barcode"), maps("mean"), maps("sigma"), *intervals, law, texts("missing"))


def samples_table(barcodes: list[str], maps: Float[np.ndarray, "W n 2 64 64"]) -> pa.Table:
    """Sample maps in nm as a table, one sample a row (`SAMPLES_SCHEMA`)."""
    n = maps.shape[1]
    values = pa.array(np.ascontiguousarray(maps, np.float32).reshape(-1))
    columns: list[pa.Array[Any]] = [
        pa.array(np.repeat(np.array(barcodes, object), n), pa.string()),
        pa.array(np.tile(np.arange(n, dtype=np.int32), len(barcodes))),
        pa.FixedSizeListArray.from_arrays(values, MAP_VALUES),
    ]
    return pa.table(columns, schema=SAMPLES_SCHEMA)


def m3s_line(forecast: Forecast, wafer: int, limit_nm: float) -> str:
    """M3S of one wafer with its interval and the out-of-spec probability, in words for a picture's title."""
    axes = [
        f"{name} {forecast.m3s[wafer, i]:.1f} ({forecast.m3s_low[wafer, i]:.1f} to {forecast.m3s_high[wafer, i]:.1f})"
        for i, name in enumerate("xy")
    ]
    risk = f"P(M3S > {limit_nm:g} nm) = {forecast.out_of_spec[wafer]:.0%}"
    return f"M3S, nm (90 %): {', '.join(axes)}\n{risk}"


def forecast_figure(
    forecast: Forecast,
    wafer: int,
    usable: Shaped[np.ndarray, "64 64"],
    limit_nm: float = 8.0,
    scale_nm: float = 6.0,
) -> "Figure":
    """Predicted mean (dx, dy, vectors) beside its sigma (dx, dy) with fields and wafer edge; M3S above.

    Args:
        wafer: row of the forecast.
        usable: where a map is generated.
        limit_nm: the limit that `out_of_spec` is of.
        scale_nm: colours run from -scale_nm to scale_nm for the mean, from 0 to a quarter of it for sigma: fixed,
            so that pictures of wafers compare.
    """
    from ikddit.overlay.plots import Limits, Panel, panel_figure

    panels = [
        Panel("predicted mean", forecast.mean[wafer], shown=usable, vectors=True),
        Panel("sigma", forecast.sigma[wafer], shown=usable, kind="sigma"),
    ]
    limits = Limits(map_nm=scale_nm, sigma_nm=scale_nm / 4)
    lines = [forecast.barcode[wafer], m3s_line(forecast, wafer, limit_nm)]
    if forecast.missing[wafer]:
        lines += textwrap.wrap(f"forecast without {forecast.missing[wafer]}", TITLE_WIDTH)
    return panel_figure(panels, limits, title="\n".join(lines))


@dataclass(frozen=True)
class ForecastFiles:
    """Where a forecast goes; what is None is not written."""

    forecast: Path
    samples: Path | None = None
    """Parquet of all sample maps, 32 KiB a sample."""
    plots: Path | None = None
    """Folder for one PNG per wafer; other files in it are left alone."""
    plot_wafers: int = 20
    """The first so many wafers get a picture."""
    plot_scale_nm: float = 6.0
    """See `forecast_figure`."""

    def check(self, source: Path) -> None:
        """Refuse, before anything is computed, what could not be written or would be read as records next time.

        Raises:
            InputError: names the path or number.
        """
        if self.plot_wafers < 0 or not self.plot_scale_nm > 0:
            found = f"{self.plot_wafers} and {self.plot_scale_nm} nm"
            raise InputError(
                "request", "plot wafers, scale", found, "use 0 or more wafers, a scale above 0 nm"
            )
        if self.plots is not None and self.plots.exists() and not self.plots.is_dir():
            raise InputError(str(self.plots), "plots", "is a file", "name a folder")
        tables = [path for path in (self.forecast, self.samples) if path is not None]
        for path in tables:
            if path.is_dir():
                raise InputError(str(path), "output", "is a folder", "name a Parquet file")
            if path.resolve().parent == source.resolve():
                raise InputError(
                    str(path),
                    "output",
                    "lies among the records",
                    "write it to another folder than the records'",
                )
        if len({path.resolve() for path in tables}) < len(tables):
            raise InputError(str(self.samples), "samples", "is the forecast's file too", "name another file")


@dataclass(frozen=True)
class Written:
    """What a run of `ikddit.batch.write_forecast` left behind."""

    wafers: int = 0
    samples: int = 0
    plots: int = 0
    plots_skipped: int = 0
    """Wafers beyond `plot_wafers`; 0 where no pictures were asked for."""
    resumed: int = 0
    """Wafers whose forecasts were taken over from a run that did not end."""


class ForecastWriter:
    """Writes forecasts batch by batch; see `forecast_writer`."""

    def __init__(
        self,
        files: ForecastFiles,
        usable: Shaped[np.ndarray, "64 64"],
        limit_nm: float,
        stack: ExitStack,
        metadata: dict[bytes, bytes],
    ) -> None:
        self._files, self._usable, self._limit_nm, self._stack = files, usable, limit_nm, stack
        self._metadata = metadata
        self._scratch = stack.enter_context(atomic_path(files.forecast))
        self._forecasts: pq.ParquetWriter | None = None
        self._samples: pq.ParquetWriter | None = None
        if files.samples is not None:
            scratch = stack.enter_context(atomic_path(files.samples))
            self._samples = self._open(scratch, SAMPLES_SCHEMA)
        self._wafers = self._sampled = self._plots = 0

    def _open(self, scratch: Path, schema: pa.Schema) -> "pq.ParquetWriter":
        import pyarrow.parquet as pq

        schema = schema.with_metadata((schema.metadata or {}) | self._metadata)
        # closed by the stack before the file takes its name
        return self._stack.enter_context(pq.ParquetWriter(scratch, schema, compression="zstd"))

    @property
    def written(self) -> Written:
        """Counts so far."""
        skipped = self._wafers - self._plots if self._files.plots is not None else 0
        return Written(self._wafers, self._sampled, self._plots, skipped)

    def add_samples(self, barcodes: list[str], maps: Float[np.ndarray, "W n 2 64 64"]) -> None:
        """Write sample maps, where they are wanted."""
        if self._samples is not None:
            self.add_sample_table(samples_table(barcodes, maps))

    def add_sample_table(self, table: pa.Table) -> None:
        """Write sample maps that are a table already."""
        if self._samples is not None:
            self._samples.write_table(table)
            self._sampled += table.num_rows

    def add(self, forecast: Forecast) -> None:
        """Write forecasts, and pictures of those within the limit."""
        table = forecast_table(forecast)
        self._forecasts = self._forecasts or self._open(self._scratch, table.schema)
        self._forecasts.write_table(table)
        for row in range(len(forecast.barcode)):
            if self._files.plots is not None and self._plots < self._files.plot_wafers:
                self._draw(forecast, row, self._files.plots)
        self._wafers += len(forecast.barcode)

    def _draw(self, forecast: Forecast, row: int, folder: Path) -> None:
        from ikddit.overlay.plots import figure_png

        figure = forecast_figure(forecast, row, self._usable, self._limit_nm, self._files.plot_scale_nm)
        self._plots += 1
        with atomic_path(folder / plot_name(self._plots, forecast.barcode[row])) as scratch:
            scratch.write_bytes(figure_png(figure, background="white"))


def plot_name(number: int, barcode: str) -> str:
    """File name of a wafer's picture: unique by its number, and safe whatever the barcode holds.

    >>> plot_name(3, "LOT 7/W.02")
    '0003_LOT_7_W.02.png'
    """
    return f"{number:04d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', barcode)[:80]}.png"


@contextmanager
def forecast_writer(
    files: ForecastFiles,
    usable: Shaped[np.ndarray, "64 64"],
    limit_nm: float,
    metadata: dict[bytes, bytes] | None = None,
) -> Iterator[ForecastWriter]:
    """Write forecasts as they come; Parquet files take their names at the end, all of it or nothing.

    `metadata` stands in the schema of both Parquet files.

    A picture takes its name when it is whole.
    """
    with ExitStack() as stack:
        yield ForecastWriter(files, usable, limit_nm, stack, metadata or {})
