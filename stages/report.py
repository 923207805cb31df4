"""Stage `report`: reports/index.html, reports/figures/ and docs/model-card.md from what the other stages wrote."""

import subprocess

from ikddit.console import run_plainly
from ikddit.evaluation.report.card import write_card
from ikddit.evaluation.report.page import write_report
from ikddit.evaluation.report.sources import Origin
from ikddit.params import load_params


def main() -> None:
    """Read reports/ and data/, write the page, its figures and the model card."""
    params = load_params()
    register = params.register_
    write_report(origin=Origin(code_version(), params.seed, register.experiment, register.model_name))
    write_card()


def code_version() -> str | None:
    """Commit of the checkout, with `+changes` when code or params differ from it; None outside git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "stages", "params.yaml", "dvc.yaml")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run_plainly(main)
