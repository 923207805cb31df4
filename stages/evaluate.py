"""Stage `evaluate`: student on the test split -> reports/evaluation/{metrics,serving}.json, data/generated/."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikddit.atomic import atomic_dir, read_json, write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.serving import choose_serving, serving_metrics
from ikddit.evaluation.student import evaluate, point_figures
from ikddit.generator import Generator
from ikddit.params import load_params


def main() -> None:
    """Score the student, put the baselines and the floor of the same wafers beside it, decide what is served."""
    params = load_params()
    generator = Generator.load("models/student")
    test = PreparedSplit.open("data/prepared/test.arrow")
    scored = evaluate(generator, test, params.evaluate, params.seed)
    decision, serving = choose_serving(generator, test, params.evaluate, params.seed)
    table = read_json("reports/baselines.json")
    baselines = {k: v for k, v in table["test"].items() if isinstance(v, dict)}
    floors = {k: v for k, v in table.items() if k.startswith("floor_")}
    with atomic_dir("data/generated") as folder:
        np.savez(folder / "showcase.npz", **scored.showcase)  # type: ignore[arg-type]
        pq.write_table(pa.table(scored.wafers), folder / "wafers.parquet")
    write_json("reports/evaluation/serving.json", serving)
    metrics = scored.metrics | serving_metrics(decision) | floors | {"baselines": baselines}
    unseen = PreparedSplit.open("data/prepared/test_unseen.arrow")
    if len(unseen):
        metrics["test_unseen"] = point_figures(generator, unseen, params.evaluate, params.seed)
    write_json("reports/evaluation/metrics.json", metrics)


if __name__ == "__main__":
    run_plainly(main)
