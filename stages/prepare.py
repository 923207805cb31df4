"""Stage `prepare`: validated records to memory-mapped splits, normaliser and vocabularies."""

from ikddit.console import run_plainly
from ikddit.dataset.prepare import prepare
from ikddit.params import load_params


def main() -> None:
    """Read data/validated, write data/prepared."""
    params = load_params()
    prepare("data/validated", "data/prepared", params.prepare, params.seed)


if __name__ == "__main__":
    run_plainly(main)
