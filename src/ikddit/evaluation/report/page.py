"""The report: one HTML file that opens anywhere, offline, and says first whether the model is any good.

Figures come from the JSON and CSV files of the stages, as they are; what is missing is named, never made up.
"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

from ikddit import atomic
from ikddit.console import log
from ikddit.evaluation.report import tables
from ikddit.evaluation.report.fid import fid_rows, fid_title
from ikddit.evaluation.report.pictures import DrawnWafer, Picture, drawn_wafers, pictures
from ikddit.evaluation.report.scored import KPIS, SHARES, model_name, overall, pivot
from ikddit.evaluation.report.sources import Origin, Sources, read_sources
from ikddit.evaluation.report.summary import ABLATED, ablation, modes, repeated_runs, suites
from ikddit.evaluation.report.templates import environment
from ikddit.evaluation.scores import ome_name

PAGE = Path("reports/index.html")
FIGURES = Path("reports/figures")
UI = "http://127.0.0.1:5000"
"""Where `make ui` serves MLflow."""
PLOT_DPI = 110
WAFER_DPI = 75
PIVOTS = ("rmse_nm", "ome", "m3s_error_nm", "p997_error_nm")
"""KPIs that are shown by axis, zone, chuck and scanner."""
SECTIONS = {
    "table": "Baselines",
    "wafers": "Wafers",
    "kpi": "KPIs",
    "spec": "Out of spec",
    "uncertainty": "Uncertainty",
    "distribution": "FID",
    "ablations": "Ablations",
    "speed": "Speed",
    "training": "Training",
    "data": "Data",
    "provenance": "Provenance",
}


def build_report(
    sources: Sources,
    origin: Origin | None = None,
    drawn: list[DrawnWafer] | None = None,
    plots: dict[str, Picture] | None = None,
) -> str:
    """The page as one string: no network, no file beside it, the same for the same sources.

    Args:
        sources: from `read_sources`.
        origin: commit, seed and where the run is found.
        drawn, plots: the pictures, if they are drawn already.
    """
    origin = origin or Origin()
    drawn = drawn_wafers(sources) if drawn is None else drawn
    plots = pictures(sources) if plots is None else plots
    rows = tables.comparison(sources)
    tau = tables.tau_of(sources.metrics)
    repeated = repeated_runs(sources.ablations)
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            s=sources,
            origin=origin,
            sections=SECTIONS,
            verdict=tables.verdict(sources.metrics),
            get=lambda name: tables.lookup(sources.metrics, name),
            rows=rows,
            widest=max((row["rmse_nm"] or 0.0 for row in rows), default=0.0) or 1.0,
            tau=tau,
            ome=ome_name(tau),
            machines=tables.by_machine(sources.wafers),
            wafers=drawn,
            first=next((i for i, w in enumerate(drawn) if w.role.startswith("median")), 0),
            plots=plots,
            ablations=[ablation(name, rows) for name, rows in sources.ablations.items()],
            ablated=ABLATED,
            modes=modes(sources.timing or {}),
            suites=suites(sources.gates),
            kpi=overall(sources.tables.get("kpis", [])),
            pivots=[p for k in PIVOTS if (p := pivot(sources.tables.get("kpis", []), k)) is not None],
            kpis=KPIS,
            shares=SHARES,
            model_name=model_name,
            fid=fid_rows(sources.fid or {}, repeated),
            repeated=len(repeated),
            fid_title=fid_title(sources.fid or {}),
            matrix=tables.matrix,
            flat=tables.flat,
            device=device_of(sources),
            links=links(origin),
        )
    )


def device_of(sources: Sources) -> str | None:
    """The device that trained, with its threads; the scored and timed ones are named beside their figures."""
    for part in (sources.training, sources.serving, sources.timing):
        if part and part.get("device"):
            threads = part.get("threads")
            return f"{part['device']}, {threads} threads" if threads else str(part["device"])
    return None


def links(origin: Origin) -> dict[str, str]:
    """Addresses in the MLflow UI (`make ui`) and the search that finds this page's run in it."""
    out: dict[str, str] = {}
    if origin.model_name:
        out["model"] = f"{UI}/#/models/{quote(origin.model_name, safe='')}"
    if origin.commit:
        out["search"] = f"tags.git_commit LIKE '{origin.commit.removesuffix('+changes')}%'"
    return out


def write_report(root: Path | str = ".", origin: Origin | None = None) -> Path:
    """Read the sources under `root`, write reports/index.html and reports/figures/ there, atomically.

    The figures are the plots of the page and, of the wafers, best, median and worst, as PNG.

    Raises:
        InputError: see `read_sources`.
    """
    from ikddit.overlay.plots import figure_png

    root = Path(root)
    sources = read_sources(root)
    drawn, plots = drawn_wafers(sources), pictures(sources)
    page = build_report(sources, origin, drawn, plots)
    with atomic.atomic_dir(root / FIGURES) as folder:
        for name, picture in plots.items():
            png = figure_png(picture.figure, PLOT_DPI, background="white")
            (folder / f"{name}.png").write_bytes(png)
        for word, wafer in extremes(drawn).items():
            png = figure_png(wafer.picture.figure, WAFER_DPI, background="white")
            (folder / f"wafer-{word}.png").write_bytes(png)
    atomic.write_text(root / PAGE, page)
    log.info("report: %s, %.1f MB", root / PAGE, len(page.encode()) / 1e6)
    return root / PAGE


def extremes(drawn: list[DrawnWafer]) -> dict[str, DrawnWafer]:
    """Best, median and worst of all scored wafers, those that were drawn."""
    words = ("best", "median", "worst")
    found: dict[str, Any] = {w: next((d for d in drawn if d.role.startswith(w)), None) for w in words}
    return {word: wafer for word, wafer in found.items() if wafer is not None}
