"""What a sweep's table looks like: mean and standard deviation over the seeds, a figure, and docs/ablations.md."""

import csv
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikddit.atomic import atomic_path, write_text
from pipelines.sweeps import PaperRow, Scalar, Sweep, spelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = {
    "rmse_nm": "RMSE, nm",
    "ensemble_rmse_nm": "RMSE of ensemble mean, nm",
    "crps_nm": "CRPS, nm",
    "frechet_embedding": "Frechet distance",
    "ome_1p5": "OME(1.5 nm)",
    "coverage_90": "coverage of 90 %",
    "train.cpu_seconds": "training, CPU s",
}
"""Metrics of tables and figures, and their headings."""
TRUST = {
    "spread_skill": "spread / skill",
    "spectrum_ratio_high": "power of samples below 25 mm over measured",
}
"""Metrics of tables alone: whether what is said of samples is of wafers or of noise."""
SEED = "seed"
DOCUMENT = Path("docs/ablations.md")
HEAD = """# Ablations

Written by `python -m pipelines.ablate` from the tables in `reports/ablations/`; the sweeps are defined in
`pipelines/ablations.yaml`, and `make ablate` repeats them. Every figure is of the project's own simulated data and of
a student trained for minutes (the profile of the sweep), so it compares rows of one table and nothing else. Each
section names the devices of its runs and the last commit that changed their code. +- is the standard deviation over the
seeds. A seed stands for its own split, embedding, training and noise.

Of a sampler that is trained, spread / skill and the power of its samples over that measured are near 1. Where they are
not, samples hold noise that the student has not learnt to remove, and it is in their columns too (ensemble mean, CRPS,
Frechet distance, coverage): there only RMSE and OME, which are of the point forecast, speak of the axes.
"""
PAPER_NOTE = (
    "The paper's {name} ({source}) is of its own, unpublished data, of larger models trained for days, and on "
    "Inception features of rendered images: only where a column turns can be compared, no figure with ours."
)


def shown(sweep: Sweep) -> dict[str, str]:
    """The metrics that can be compared in this sweep."""
    return {name: heading for name, heading in SHOWN.items() if name not in sweep.leave_out}


def known_of_all(
    sweep: Sweep, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Those of `metrics` (default: `shown`) that every finished run has.

    A mean over some of a cell's runs would be of other seeds.
    """
    finished = [row for row in rows if not row.get("failed")]
    return {
        name: heading
        for name, heading in (shown(sweep) if metrics is None else metrics).items()
        if finished and all(row.get(name) not in (None, "") for row in finished)
    }


Cell = tuple[Scalar, ...]


def grouped(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> dict[Cell, list[Mapping[str, Any]]]:
    """The rows that differ in nothing but the seed, by their values of the other axes, in the sweep's order."""
    axes = [axis for axis in sweep.axes if axis != SEED]
    groups: dict[Cell, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    return groups


def statistic(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float | None, int] | None:
    """Mean, standard deviation (n - 1; None for one run) and number of the runs that have the metric."""
    values = [float(row[metric]) for row in rows if row.get(metric) not in (None, "")]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)


def shown_statistic(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """As in a table.

    >>> shown_statistic([{"a": 1.0}, {"a": 3.0}], "a"), shown_statistic([{"a": 150.2}], "a")
    ('2 +- 1.4', '150')
    >>> shown_statistic([{"failed": "no memory"}], "a")
    'failed'
    """
    found = statistic(rows, metric)
    if found is None:
        return "failed" if all("failed" in row and row["failed"] for row in rows) else ""
    mean, sd, _ = found
    return f"{mean:.3g}" if sd is None else f"{mean:.3g} +- {sd:.2g}"


def summary_lines(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Mean +- sd of every cell, for the terminal."""
    axes = [axis for axis in sweep.axes if axis != SEED]
    lines = []
    for cell, runs in grouped(sweep, rows).items():
        where = ", ".join(f"{axis} {spelled(value)}" for axis, value in zip(axes, cell, strict=True))
        what = ", ".join(f"{name} {shown_statistic(runs, name)}" for name in known_of_all(sweep, rows))
        lines.append(f"{where} (n = {len(runs)}): {what}")
    return lines


def markdown(name: str, sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> str:
    """The sweep's section of docs/ablations.md: title, table, the paper's figures beside, failed runs by name."""
    axes = [axis for axis in sweep.axes if axis != SEED]
    paper = [sweep.paper.name + " of the paper"] if sweep.paper else []
    metrics = (known_of_all(sweep, rows) or shown(sweep)) | known_of_all(sweep, rows, TRUST)
    heads = [*(f"`{axis}`" for axis in axes), "runs", *metrics.values(), *paper]
    lines = [
        f"## {sweep.title}",
        "",
        f"`reports/ablations/{name}.csv`, profile `{sweep.profile}`{provenance(rows)}.",
        "",
    ]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for cell, runs in grouped(sweep, rows).items():
        known = [run for run in runs if not run.get("failed")]
        row = [*map(spelled, cell), str(len(known)), *(shown_statistic(runs, m) for m in metrics)]
        if sweep.paper:
            row.append(_paper_value(sweep.paper, cell[axes.index(sweep.x)]))
        lines.append("| " + " | ".join(row) + " |")
    failed = [f"`{row['run']}` failed: {row['failed']}" for row in rows if row.get("failed")]
    notes = [PAPER_NOTE.format(name=sweep.paper.name, source=sweep.paper.source)] if sweep.paper else []
    return "\n".join([*lines, "", *notes, *failed]).rstrip() + "\n"


def provenance(rows: Sequence[Mapping[str, Any]]) -> str:
    """Devices and commits of the runs, as the end of a sentence; rows of before devices were noted are of a CPU.

    >>> provenance([{"device": "cuda:0", "code_commit": "ab12"}, {"device": "cuda:0", "code_commit": "ab12"}, {}])
    '; device cuda (2), cpu (1); code of ab12'
    """
    devices = Counter(str(row.get("device") or "cpu").partition(":")[0] for row in rows)
    commits = sorted({str(row["code_commit"]) for row in rows if row.get("code_commit")})
    said = "; device " + ", ".join(f"{device} ({count})" for device, count in devices.most_common())
    return said + (f"; code of {', '.join(commits)}" if commits else "")


def _paper_value(paper: PaperRow, x: Scalar) -> str:
    return f"{paper.values[float(x)]:g}" if float(x) in paper.values else ""


def draw(sweep: Sweep, rows: Sequence[Mapping[str, Any]], stem: Path) -> None:
    """Write `stem`.png and .svg: a panel for each metric, the x axis of the sweep, a line for each value of `lines`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels = list(known_of_all(sweep, rows))
    figure = Figure(figsize=(13.0, 5.6), layout="constrained")
    figure.suptitle(sweep.title)
    for number, metric in enumerate(panels):
        axes = figure.add_subplot(2, 4, number + 1)
        _panel(axes, sweep, rows, metric)
        axes.set_title(SHOWN[metric], fontsize=10)
        axes.set_xlabel(sweep.x, fontsize=9)
    if sweep.lines and figure.axes:
        # where the eighth panel would be
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, title=sweep.lines, loc="lower right", bbox_to_anchor=(0.9, 0.2))
    stem.parent.mkdir(parents=True, exist_ok=True)
    # words stay words in the SVG; without date and random ids the same table gives the same file
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": stem.name}):
        for ending, metadata in (("png", None), ("svg", {"Date": None})):
            with atomic_path(stem.with_name(f"{stem.name}.{ending}")) as scratch:
                figure.savefig(scratch, format=ending, dpi=110, metadata=metadata)


def _panel(axes: "Axes", sweep: Sweep, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    """Mean with the standard deviation as a bar, and the single runs as points."""
    places = sweep.axes[sweep.x]
    numeric = all(isinstance(place, int | float) and not isinstance(place, bool) for place in places)
    position = {place: float(place) if numeric else float(i) for i, place in enumerate(places)}
    lines = sweep.axes[sweep.lines] if sweep.lines else [None]
    width = (max(position.values()) - min(position.values())) or 1.0
    for number, line in enumerate(lines):
        # side by side, so that bars do not hide one another
        shift = (number - (len(lines) - 1) / 2) * 0.012 * width
        points, means, bars = [], [], []
        for place in places:
            runs = [r for r in rows if r[sweep.x] == place and (line is None or r[sweep.lines or ""] == line)]
            found = statistic(runs, metric)
            if found is None:
                continue
            points.append(position[place] + shift)
            means.append(found[0])
            bars.append(found[1] or 0.0)
            values = [float(r[metric]) for r in runs if r.get(metric) not in (None, "")]
            axes.plot([points[-1]] * len(values), values, ".", color=f"C{number}", alpha=0.35, markersize=5)
        label = None if line is None else spelled(line)
        # names have no order: a line between them would say that they had one
        style: dict[str, Any] = {
            "fmt": "o-" if numeric else "o",
            "color": f"C{number}",
            "capsize": 3.0,
            "markersize": 4.0,
        }
        axes.errorbar(points, means, bars if any(bars) else None, label=label, **style)
    axes.set_xticks([position[place] for place in places], [spelled(place) for place in places])
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def read_rows(sweep: Sweep, path: Path) -> list[dict[str, Any]]:
    """The rows of a table that was written; values of the axes as in the sweep's definition.

    An axis that the definition had not when the table was written is empty.
    """
    with path.open(newline="", encoding="utf-8") as handle:
        rows: list[dict[str, Any]] = list(csv.DictReader(handle))
    for row in rows:
        for axis, values in sweep.axes.items():
            found = row.get(axis, "")
            row[axis] = next((v for v in values if str(v) == found), found)
    return rows


def write_document(sweeps: Mapping[str, Sweep], root: Path) -> Path:
    """Write docs/ablations.md from the tables there are; a sweep that was never run is named as such."""
    parts = [HEAD]
    for name, sweep in sweeps.items():
        table = root / "reports" / "ablations" / f"{name}.csv"
        if table.is_file():
            parts.append(markdown(name, sweep, read_rows(sweep, table)))
        else:
            parts.append(f"## {sweep.title}\n\nNot run yet: `python -m pipelines.ablate {name}`.\n")
    write_text(root / DOCUMENT, "\n".join(parts))
    return root / DOCUMENT
