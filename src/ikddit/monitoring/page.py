"""The monitoring page: data quality, overlay and forecast error over time, per scanner and chuck.

One HTML file without a network, as the report. `control_charts` does the statistics; here wafers are read from
what the stages wrote and charts are drawn.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ikddit import atomic
from ikddit.console import log
from ikddit.errors import InputError
from ikddit.monitoring.control_charts import METRICS, SHARES, Chart, control_charts, maintenance_times
from ikddit.params import ControlParams

RECORDS = "data/validated"
SCORES = "data/evaluation/wafers.parquet"
"""Written by the evaluate stage (`wafer_table`)."""
SPLITS = "data/prepared/splits.json"
PAGE = "reports/monitoring.html"


@dataclass(frozen=True)
class Monitoring:
    """What the page shows."""

    charts: list[Chart]
    maintenance: dict[str, list[pd.Timestamp]]
    wafers: int
    scored: int
    reference_until: pd.Timestamp

    @property
    def alarms(self) -> list[dict[str, Any]]:
        """Judged periods beyond a limit, newest first."""
        found = []
        for chart in self.charts:
            outside, drifting = chart.outside, chart.drifting
            for i in map(int, np.flatnonzero(outside | drifting)):
                found.append(
                    {
                        "start": chart.start[i],
                        "metric": chart.metric,
                        "scanner": chart.scanner,
                        "chuck": chart.chuck,
                        "wafers": int(chart.wafers[i]),
                        "value": float(chart.value[i]),
                        "low": float(chart.low[i]),
                        "high": float(chart.high[i]),
                        "kind": " and ".join(
                            name for name, on in (("point", outside[i]), ("EWMA", drifting[i])) if on
                        ),
                    }
                )
        return sorted(found, key=lambda a: (a["start"], a["metric"], a["scanner"]), reverse=True)


# Reading -------------------------------------------------------------------------------------------------


def read_wafers(records: Path, scores: Path | None, maintenance: str) -> pd.DataFrame:
    """One row per wafer: barcode, exposed_at, scanner_id, chuck_id, maintenance, and the columns of `METRICS`.

    Args:
        records: folder of record Parquet files (`data/validated`).
        scores: the evaluate stage's per-wafer table; None: no errors.
        maintenance: regular expression of the log lines that tell of a maintenance.

    Raises:
        InputError: there are no records, they carry no lengths in nm, or the table lacks its columns.
    """
    import re

    import pyarrow.parquet as pq

    from ikddit.mpom.parts import lists_to_numpy, part_files, read_batches
    from ikddit.mpom.schema import MAP_SIZE
    from ikddit.overlay import kpi
    from ikddit.overlay.grid import wafer_grid

    parts = part_files(records)
    if not parts:
        raise InputError(str(records), "part-*.parquet", "no records here", "run `dvc repro validate` first")
    units = (pq.read_schema(parts[0]).metadata or {}).get(b"units")
    if units != b"nm":
        raise InputError(str(records), "units", f"{units!r}, expected nm", "set ingest.scale_nm")
    usable, pattern = int(wafer_grid().usable.sum()), re.compile(maintenance)
    columns = ["barcode", "exposed_at", "scanner_id", "chuck_id", "log_lines", "log_features", "map", "valid"]
    frames = []
    for table in read_batches(parts, "monitor", columns):
        maps = lists_to_numpy(table.column("map"), np.nan).reshape(-1, 2, MAP_SIZE, MAP_SIZE)
        valid = lists_to_numpy(table.column("valid"), 0).reshape(-1, MAP_SIZE, MAP_SIZE)
        logs = lists_to_numpy(table.column("log_features"), np.nan)
        measured = valid.any(axis=(1, 2))
        mean = kpi.mean_nm(maps, valid)
        frame = table.select(columns[:4]).to_pandas()
        frame["maintenance"] = [
            any(pattern.search(line) for line in lines or [])
            for lines in table.column("log_lines").to_pylist()
        ]
        frame["valid_share"] = np.where(measured, valid.sum(axis=(1, 2), dtype=np.int64) / usable, np.nan)
        frame["missing_logs"] = np.isnan(logs).mean(axis=1) if logs.shape[1] else np.nan
        frame["mean_x_nm"], frame["mean_y_nm"] = mean[:, 0], mean[:, 1]
        frame["m3s_nm"] = kpi.m3s_nm(maps, valid).max(axis=1)
        frames.append(frame)
    wafers = pd.concat(frames, ignore_index=True)
    if scores is not None:
        if not scores.is_file():
            raise InputError(
                str(scores), "file", "missing", "run `dvc repro evaluate`, or leave --scores out"
            )
        wafers = wafers.merge(_errors(scores), on="barcode", how="left")
    return wafers


def _errors(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    names = ["barcode", "rmse_nm", *(f"{p}m3s_{a}_nm" for a in "xy" for p in ("", "pred_"))]
    if absent := set(names) - set(pq.read_schema(path).names):
        raise InputError(str(path), "columns", f"no {sorted(absent)}", "run `dvc repro evaluate`")
    table = pq.read_table(path, columns=names).to_pandas()
    off = np.stack([(table[f"pred_m3s_{a}_nm"] - table[f"m3s_{a}_nm"]).abs() for a in "xy"])
    return table[["barcode", "rmse_nm"]].assign(m3s_error_nm=off.max(axis=0))


def training_end(splits: Path) -> pd.Timestamp:
    """When the last training wafer was exposed.

    Raises:
        InputError: the file is missing or has no time in it.
    """
    try:
        end = atomic.read_json(splits)["splits"]["train"]["to"]
    except FileNotFoundError:
        raise InputError(str(splits), "file", "missing", "run `dvc repro prepare`, or give --until") from None
    if end is None:
        raise InputError(str(splits), "splits.train.to", "the wafers carry no time", "give --until")
    return pd.Timestamp(end)


def monitor(
    records: Path, scores: Path | None, reference_until: pd.Timestamp, params: ControlParams
) -> Monitoring:
    """Read the wafers and chart them.

    Raises:
        InputError: as `read_wafers`; or no machine has wafers enough for limits.
    """
    wafers = read_wafers(records, scores, params.maintenance)
    scored = int(wafers["rmse_nm"].notna().sum()) if "rmse_nm" in wafers else 0
    charts = control_charts(wafers, reference_until, params)
    earlier = int((wafers["exposed_at"] < reference_until).sum())
    if not charts:
        raise InputError(
            str(records),
            "exposed_at",
            f"no machine has two reference periods of {params.period_days} days; {earlier} of {len(wafers)} "
            f"wafers are from before {reference_until:%Y-%m-%d}, where limits come from",
            "the folder must hold earlier wafers too, with times and ids; or give a later --until",
        )
    if not earlier:
        log.warning(
            "no wafer is from before %s: each machine is judged by limits from its own first %d periods of %d "
            "days; a folder that holds earlier wafers too has limits from those",
            f"{reference_until:%Y-%m-%d}",
            params.reference_periods,
            params.period_days,
        )
    return Monitoring(charts, maintenance_times(wafers), len(wafers), scored, reference_until)


# The page ------------------------------------------------------------------------------------------------


def figure_text(metric: str, value: float) -> str:
    """A value as text: shares in percent, lengths in nm.

    >>> figure_text("valid_share", 0.98651), figure_text("m3s_nm", 5.13449)
    ('98.65 %', '5.134')
    """
    return f"{100 * value:.2f} %" if metric in SHARES else f"{value:.3f}"


def small_multiples(charts: list[Chart], maintenance: dict[str, list[pd.Timestamp]], period_days: int) -> Any:
    """One metric of all machines as a Matplotlib figure: a row per scanner, a column per chuck, one scale.

    Judged periods are shaded, up to the end of the last one.
    """
    import matplotlib.dates as mdates
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from ikddit.evaluation.report.figures import COLOURS, INK, plain_axes

    scanners = sorted({chart.scanner for chart in charts})
    chucks = sorted({chart.chuck for chart in charts})
    size = (1.0 + 4.4 * len(chucks), 0.4 + 1.25 * len(scanners))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(scanners), len(chucks), sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for chart in charts:
        ax = axes[scanners.index(chart.scanner), chucks.index(chart.chuck)]
        ax.set_visible(True)
        for time in maintenance.get(chart.scanner, []):
            ax.axvline(time, color=INK, linewidth=0.6, linestyle=":", alpha=0.45)
        ax.axhline(chart.center, color=INK, linewidth=0.6, alpha=0.6)
        judged = ~chart.reference
        if judged.any():
            ax.axvspan(
                chart.start[judged][0],
                chart.start[-1] + pd.Timedelta(days=period_days),
                color=COLOURS[0],
                alpha=0.1,
                lw=0,
            )
        for limit in (chart.low, chart.high):
            ax.plot(chart.start, limit, color=INK, linewidth=0.6, linestyle="--", alpha=0.8)
        ax.plot(chart.start, chart.value, color=COLOURS[0], linewidth=0.8, marker=".", markersize=3)
        ax.plot(chart.start, chart.ewma, color="#c07a1d", linewidth=1.3)
        for mask, marker in ((chart.outside, "o"), (chart.drifting & ~chart.outside, "D")):
            ax.plot(
                chart.start[mask], chart.value[mask], linestyle="none", marker=marker,
                markersize=5, markerfacecolor="none", markeredgecolor="#d22f27", markeredgewidth=1.3,
            )  # fmt: skip
        ax.set_title(f"{chart.scanner} {chart.chuck}", color=INK, fontsize=8, loc="left", pad=2)
        locator = mdates.AutoDateLocator(maxticks=7)  # type: ignore[no-untyped-call]
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
        ax.xaxis.get_offset_text().set_color(INK)
        ax.xaxis.get_offset_text().set_fontsize(8)
        if chart.metric in SHARES:
            ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        plain_axes(ax)
    return figure


def build_page(found: Monitoring, params: ControlParams) -> str:
    """The page as one string: no network, no file beside it."""
    from jinja2 import Environment, StrictUndefined

    from ikddit.evaluation.report.figures import inline_svg
    from ikddit.evaluation.report.text import number

    sections = []
    for metric, title in METRICS.items():
        charts = [chart for chart in found.charts if chart.metric == metric]
        if charts:
            alt = f"{title}: one chart per scanner and chuck, points by period, EWMA and control limits."
            svg = inline_svg(small_multiples(charts, found.maintenance, params.period_days), metric, alt)
            inside = all(
                bool(c.reference[0] and c.start[c.reference][-1] < found.reference_until) for c in charts
            )
            pooled = sum(chart.pooled for chart in charts)
            sections.append(
                {
                    "metric": metric,
                    "title": title,
                    "svg": svg,
                    "trained": inside,
                    "pooled": pooled,
                    "n": len(charts),
                }
            )
    style = (resources.files("ikddit.evaluation.report") / "templates" / "page.css").read_text(
        encoding="utf-8"
    )
    text = (resources.files("ikddit.monitoring") / "templates" / "monitoring.html.j2").read_text(
        encoding="utf-8"
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    judged = sum(int((~chart.reference).sum()) for chart in found.charts)
    return environment.from_string(text).render(
        m=found,
        alarms=found.alarms,
        sections=sections,
        p=params,
        style=style,
        titles=METRICS,
        judged=judged,
        figure=figure_text,
    )


def write_monitoring(
    root: Path | str,
    params: ControlParams,
    records: Path | None = None,
    scores: Path | None = None,
    reference_until: pd.Timestamp | None = None,
    out: Path | None = None,
) -> Monitoring:
    """Write reports/monitoring.html of a checkout, atomically.

    Args:
        root: the checkout; the other paths are taken from it where they are None.
        params: section `control` of params.yaml.
        records: folder of record Parquet files.
        scores: per-wafer table of the evaluate stage; without one there, and none named, errors are not charted.
        reference_until: end of the period the limits come from; by default that of training.
        out: the HTML file.

    Raises:
        InputError: there is nothing to read.
    """
    root = Path(root)
    until = training_end(root / SPLITS) if reference_until is None else reference_until
    if scores is None and (root / SCORES).is_file():
        scores = root / SCORES
    if scores is None:
        log.warning("%s: missing, so no forecast errors are charted; run `dvc repro evaluate`", SCORES)
    found = monitor(records or root / RECORDS, scores, until, params)
    target = out or root / PAGE
    atomic.write_text(target, build_page(found, params))
    log.info("monitoring: %s, %d charts, %d alarms", target, len(found.charts), len(found.alarms))
    return found
