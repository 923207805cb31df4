"""Is the fast sampler as good as DDPM-1000? Frechet distance, RMSE and time of both, with the trained student.

    python benchmarks/bench_ddpm.py [--wafers 24] [--samples 2] [--seeds 3] [--steps 10 20] [--threads 1]

Needs `dvc repro train`. All samplers draw the same test wafers with the same seeds, so that a Frechet distance,
biased by its small number of maps, is compared at equal number. Prints one JSON object: per sampler mean and
standard deviation over the seeds, and ratios to DDPM-1000 of the same seed (CPU time of this process).
"""

import argparse
import time

import numpy as np
import torch
from ratios import Ratio, print_result

from ikddit.console import progress
from ikddit.dataset.arrow import PreparedSplit
from ikddit.diffusion.sampler import DDPM_STEPS
from ikddit.evaluation.embedding_distance import frechet_embedding
from ikddit.evaluation.inputs import take
from ikddit.evaluation.scores import evaluation_subset
from ikddit.generator import Generator
from ikddit.overlay import kpi

FIGURES = ("frechet_embedding", "rmse_nm", "cpu_s")


def figures(
    generator: Generator, part: PreparedSplit, samples: int, steps: int, sampler: str, seed: int
) -> dict[str, float]:
    """Draw once and score."""
    start = time.process_time()
    options = {"sampler": sampler, "inference": "full"}
    maps = generator.sample(part, samples, steps, seed=seed, **options)  # type: ignore[arg-type]
    seconds = time.process_time() - start
    measured, valid = part.map.astype(np.float32), part.valid
    return {
        "frechet_embedding": frechet_embedding(generator, part, maps),
        "rmse_nm": kpi.rmse_nm(maps.mean(1), measured, valid),
        "cpu_s": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wafers", type=int, default=24)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20], help="of the default sampler")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    generator = Generator.load("models/student")
    test = PreparedSplit.open("data/prepared/test.arrow")
    part = take(test, evaluation_subset(test, args.wafers))
    ways = {f"trig{steps}": (steps, "trig") for steps in args.steps} | {"ddpm1000": (DDPM_STEPS, "ddpm")}
    generator.sample(take(part, np.arange(2)), 1, 2)  # warms up
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for seed in progress(range(args.seeds), "samplers", unit="seed"):
        for name, (steps, sampler) in ways.items():
            found[name].append(figures(generator, part, args.samples, steps, sampler, seed))
    out: dict[str, object] = {
        "wafers": len(part),
        "samples": args.samples,
        "maps": len(part) * args.samples,
        "seeds": args.seeds,
        "threads": args.threads,
        "device": "cpu",
    }
    for name, runs in found.items():
        for figure in FIGURES:
            values = np.array([run[figure] for run in runs])
            out[f"{name}_{figure}"] = round(float(values.mean()), 5)
            out[f"{name}_{figure}_sd"] = round(float(values.std(ddof=1)), 5) if len(values) > 1 else 0.0
            if name == "ddpm1000":
                continue
            ratio = np.array([run[figure] for run in found["ddpm1000"]]) / values
            out[f"ddpm1000_over_{name}_{figure}"] = round(float(np.median(ratio)), 4)
    ratios = []
    for steps in args.steps:
        for figure, said in (("cpu_s", "CPU time"), ("frechet_embedding", "Frechet distance")):
            value = float(str(out[f"ddpm1000_over_trig{steps}_{figure}"]))
            ratios.append(Ratio(f"{said} of sampling: DDPM-1000 / {steps} steps", value))
    print_result(out, ratios)


if __name__ == "__main__":
    main()
