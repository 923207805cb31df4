"""Stage `evaluate`: data/generated/ -> reports/evaluation/, data/evaluation/; every figure, no map is generated."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikddit.atomic import atomic_dir, read_json, write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.embedding_distance import frechet_embedding
from ikddit.evaluation.gate import serving_metrics, serving_report
from ikddit.evaluation.generated import Generated, wafers_of
from ikddit.evaluation.student import Measured, showcase, student_metrics, unseen_metrics, wafer_table
from ikddit.generator import Generator
from ikddit.overlay.kpi import samples_m3s_nm
from ikddit.params import load_params

GENERATED = "data/generated"
REPORTS = Path("reports/evaluation")


def main() -> None:
    """Score the student, put the baselines and the floor of the same wafers beside it, decide what is served."""
    params = load_params()
    generator = Generator.load("models/student")
    generated = Generated.open(GENERATED)
    test = PreparedSplit.open("data/prepared/test.arrow")
    mean_map, tau_nm = generator.normaliser.mean_map, params.evaluate.tau_nm
    measured = Measured.of(wafers_of(test, generated.wafers, GENERATED), mean_map)
    m3s = samples_m3s_nm(generated.samples, generator.usable)
    metrics = student_metrics(generated, measured, m3s, tau_nm)
    metrics["frechet_embedding"] = frechet_embedding(generator, measured.split, generated.samples)
    count, samples = generated.samples.shape[:2]
    metrics |= {"n_wafers": count, "n_samples": samples, "steps": generated.settings["steps"]}
    decision, serving = serving_report(generated.gate)
    table = read_json("reports/baselines.json")
    floors = {k: v for k, v in table.items() if k.startswith("floor_")}
    baselines = {k: v for k, v in table["test"].items() if isinstance(v, dict)}
    metrics |= serving_metrics(decision) | floors | {"baselines": baselines}
    unseen = PreparedSplit.open("data/prepared/test_unseen.arrow")
    if figures := unseen_metrics(generated, unseen, mean_map, tau_nm):
        metrics["test_unseen"] = figures
    with atomic_dir("data/evaluation") as folder:
        np.savez(folder / "showcase.npz", **showcase(generated, measured))  # type: ignore[arg-type]
        pq.write_table(pa.table(wafer_table(generated, measured, m3s)), folder / "wafers.parquet")
    write_json(REPORTS / "serving.json", serving)
    write_json(REPORTS / "metrics.json", metrics)


if __name__ == "__main__":
    run_plainly(main)
