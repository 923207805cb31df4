"""Stage `report`: all metrics and the showcase -> reports/index.html, one page that opens offline."""

from ikddit.console import run_plainly
from ikddit.evaluation.report import write_report


def main() -> None:
    """Read reports/ and data/, write reports/index.html."""
    write_report(".")


if __name__ == "__main__":
    run_plainly(main)
