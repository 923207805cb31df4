"""Stage `baselines`: what a fab does without a network, and the oracle, on the wafers that are scored."""

from pathlib import Path

from ikddit.atomic import read_json, write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.splits import SPLITS
from ikddit.evaluation.table import baseline_table
from ikddit.params import load_params

PREPARED = Path("data/prepared")


def main() -> None:
    """Read data/prepared, write reports/baselines.json."""
    params = load_params()
    table = baseline_table(
        {name: PreparedSplit.open(PREPARED / f"{name}.arrow") for name in SPLITS},
        Normaliser.load(PREPARED / "normaliser.json").mean_map,
        read_json(PREPARED / "dataset.json"),
        params.baselines,
        params.evaluate.wafers,
        params.evaluate.tau_nm,
        params.seed,
    )
    write_json("reports/baselines.json", table)


if __name__ == "__main__":
    run_plainly(main)
