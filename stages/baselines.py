"""Stage `baselines`: what a fab does without a network, and the oracle, on the wafers that are scored."""

from pathlib import Path

from ikddit.atomic import atomic_dir, read_json, write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.splits import SPLITS
from ikddit.evaluation.table import baseline_table
from ikddit.params import load_params

PREPARED = Path("data/prepared")


def main() -> None:
    """Read data/prepared, write reports/baselines.json and the maps behind its rows."""
    params = load_params()
    splits = {name: PreparedSplit.open(PREPARED / f"{name}.arrow") for name in SPLITS}
    with atomic_dir("data/baselines") as folder:
        table = baseline_table(
            splits,
            Normaliser.load(PREPARED / "normaliser.json").mean_map,
            read_json(PREPARED / "dataset.json"),
            params.baselines,
            params.evaluate.wafers,
            params.evaluate.tau_nm,
            params.seed,
            folder,
        )
    write_json("reports/baselines.json", table)


if __name__ == "__main__":
    run_plainly(main)
