"""The model card, docs/model-card.md: who the model is for and how good it is, from the committed reports alone."""

from pathlib import Path
from typing import Any

from ikddit import atomic
from ikddit.console import log
from ikddit.errors import InputError
from ikddit.evaluation.report import tables
from ikddit.evaluation.report.fid import fid_rows, fid_title
from ikddit.evaluation.report.sources import Sources, read_tables, stored_json
from ikddit.evaluation.report.summary import ABLATED, ablation, modes, repeated_runs
from ikddit.evaluation.report.templates import environment
from ikddit.evaluation.scores import ome_name
from ikddit.params import Params, load_params

CARD = Path("docs/model-card.md")
REPORTS = {
    "metrics": "evaluation/metrics.json",
    "serving": "evaluation/serving.json",
    "fid": "evaluation/fid.json",
    "baselines": "baselines.json",
    "ingest": "ingest.json",
    "validation": "validation.json",
    "training": "train/summary.json",
    "timing": "timing.json",
}


def build_card(reports: Path | str, params: Params) -> str:
    """The card as Markdown: the same for the same committed files, so that a test can hold it to them.

    Args:
        reports: a folder like reports/; what is missing there is said in the card.
        params: the run's.

    Raises:
        InputError: evaluation/metrics.json or baselines.json is missing, or a file is damaged.
    """
    folder = Path(reports)
    found: dict[str, Any] = {}
    for name, path in REPORTS.items():
        found[name] = stored_json(folder / path) if (folder / path).exists() else None
    for name in ("metrics", "baselines"):
        if found[name] is None:
            raise InputError(str(folder / REPORTS[name]), "file", "missing", "run `dvc repro evaluate`")
    sources = Sources(**found)
    tau = tables.tau_of(sources.metrics)
    runs = read_tables(folder / "ablations")
    repeated = repeated_runs(runs)
    return (
        environment(escape=False)
        .get_template("card.md.j2")
        .render(
            s=sources,
            p=params,
            verdict=tables.verdict(sources.metrics),
            get=lambda name: tables.lookup(sources.metrics, name),
            rows=tables.comparison(sources),
            tau=tau,
            ome=ome_name(tau),
            seeds=ablation("seeds", repeated) if repeated else None,
            ablated=ABLATED,
            modes=modes(sources.timing or {}),
            fid=fid_rows(sources.fid or {}, repeated),
            repeated=len(repeated),
            fid_title=fid_title(sources.fid or {}),
        )
    )


def write_card(root: Path | str = ".", params: Params | None = None) -> Path:
    """Write docs/model-card.md under `root` from its reports/.

    Raises:
        InputError: see `build_card`.
    """
    root = Path(root)
    atomic.write_text(root / CARD, build_card(root / "reports", params or load_params()))
    log.info("report: %s", root / CARD)
    return root / CARD
