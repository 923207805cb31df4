"""Stage `fid_measured`: Inception features of every measured map, by barcode -> data/fid/measured/."""

from ikddit.console import run_plainly
from ikddit.evaluation.fid.measured import write_measured
from ikddit.evaluation.fid.weights import find_weights
from ikddit.params import load_params


def main() -> None:
    """Take them once for a data set; without weights, say so in their place."""
    params = load_params().fid
    write_measured(
        "data/validated", params, find_weights(params.weights, params.timeout_s), "data/fid/measured"
    )


if __name__ == "__main__":
    run_plainly(main)
