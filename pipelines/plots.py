"""`make plots`: DVC's plots as a page that renders without a network (DVC's own page asks a CDN for Vega)."""

import argparse
import sys
from pathlib import Path

from ikddit.atomic import write_text
from ikddit.checkout import checkout_root
from pipelines.process import CommandError, dvc_command, run_command

BUNDLE = "window.vegaEmbed=vegaEmbed; window.vega=vega; window.vegaLite=vegaLite;"


def write_bundle(path: Path) -> None:
    """Write Vega, Vega-Lite and Vega-Embed as one script, from the installed vl-convert."""
    import vl_convert

    write_text(path, vl_convert.javascript_bundle(BUNDLE))


def write_page(revisions: list[str], folder: Path) -> Path:
    """Write `folder/index.html` with DVC's plots of the workspace, or of these revisions side by side.

    Raises:
        CommandError: DVC failed; the message holds its reason.
    """
    root = checkout_root()
    if not (folder / "vega.js").is_file():
        write_bundle(folder / "vega.js")
    command, env = dvc_command("plots", "diff" if revisions else "show", *revisions, "-o", str(folder))
    run_command(command, root, lambda line: print(line, file=sys.stderr), env)
    return folder / "index.html"


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.plots", description=__doc__)
    parser.add_argument("revisions", nargs="*", help="git revisions or experiment names to compare")
    parser.add_argument("--out", type=Path, default=checkout_root() / "dvc_plots")
    arguments = parser.parse_args()
    try:
        print(write_page(arguments.revisions, arguments.out.resolve()))
    except CommandError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
