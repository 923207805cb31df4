"""Stage `evaluate`: data/generated/ -> reports/evaluation/, data/evaluation/; every figure, no map is generated."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ikddit.atomic import atomic_dir, read_json, write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation import evidence as tables
from ikddit.evaluation.baseline_maps import BaselineMaps
from ikddit.evaluation.embedding_distance import frechet_embedding
from ikddit.evaluation.gate import serving_metrics, serving_report
from ikddit.evaluation.generated import Generated, wafers_of
from ikddit.evaluation.student import (
    Measured,
    showcase,
    student_metrics,
    unseen_metrics,
    wafer_table,
    withheld_metrics,
)
from ikddit.generator import Generator
from ikddit.params import load_params

GENERATED = "data/generated"
PREPARED = Path("data/prepared")
REPORTS = Path("reports/evaluation")


def main() -> None:
    """Score the student, put the baselines and the floor of the same wafers beside it, decide what is served."""
    params = load_params().evaluate
    generator = Generator.load("models/student")
    generated = Generated.open(GENERATED)
    mean_map = generator.normaliser.mean_map
    test = PreparedSplit.open(PREPARED / "test.arrow")
    measured = Measured.of(wafers_of(test, generated.wafers, GENERATED), mean_map)
    table = read_json("reports/baselines.json")
    floors = {k: v for k, v in table.items() if k.startswith("floor_")}
    baselines = {k: v for k, v in table["test"].items() if isinstance(v, dict)}
    maps = BaselineMaps.open("data/baselines", list(baselines), measured.split.barcode)
    evidence = tables.Evidence.of(generated, measured, maps)

    metrics = student_metrics(
        generated, measured, evidence.m3s_samples, evidence.scores, params.tau_nm, evidence.ensemble
    )
    tables.write_kpis(evidence, params.tau_nm, REPORTS)
    metrics |= tables.write_out_of_spec(evidence, params.limit_nm, REPORTS)
    metrics |= tables.write_uncertainty(evidence, REPORTS)
    metrics |= tables.write_spectrum(evidence, REPORTS)
    metrics |= tables.copy_metrics(evidence, PreparedSplit.open(PREPARED / "train.arrow"))
    metrics |= withheld_metrics(generated, test, mean_map)
    metrics["frechet_embedding"] = frechet_embedding(generator, measured.split, generated.samples)
    count, samples = generated.samples.shape[:2]
    metrics |= {"n_wafers": count, "n_samples": samples}
    metrics |= {name: generated.settings[name] for name in ("steps", "inference", "device", "threads")}
    decision, serving = serving_report(generated.gate)
    metrics |= serving_metrics(decision) | floors | {"baselines": baselines}
    unseen = PreparedSplit.open(PREPARED / "test_unseen.arrow")
    if figures := unseen_metrics(generated, unseen, mean_map, params.tau_nm):
        metrics["test_unseen"] = figures
    with atomic_dir("data/evaluation") as folder:
        np.savez(folder / "showcase.npz", **showcase(generated, measured))  # type: ignore[arg-type]
        pq.write_table(
            pa.table(wafer_table(generated, measured, evidence.m3s_samples)), folder / "wafers.parquet"
        )
    write_json(REPORTS / "serving.json", serving)
    write_json(REPORTS / "metrics.json", metrics)


if __name__ == "__main__":
    run_plainly(main)
