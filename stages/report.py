"""Stage `report`: reports/index.html, one page for people, from what the other stages wrote."""

import subprocess

from ikddit.console import run_plainly
from ikddit.evaluation.report import write_report


def main() -> None:
    """Read reports/ and data/, write reports/index.html."""
    write_report(commit=code_version())


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
