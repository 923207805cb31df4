"""Does masking pay? Training step, sampling and DDPM-1000 as ratios, by number of tokens.

    python benchmarks/bench_masking.py [--repeats 3] [--threads 2] [--clock wall]

A student of T/8's width with patches of 8, 4 and 2 pixels (64, 256 and 1,024 tokens), weights as initialised:
what it measures is time, not quality (whether masked samples are good enough is the acceptance gate's question,
`reports/evaluation/serving.json`). All variants of a comparison take turns in one process; a ratio is the median
over rounds of the two times of one round. On a machine that others use, `--threads 1 --clock cpu` counts the time
of this process alone. Prints one JSON object.
"""

import argparse

import numpy as np
import torch
from common import (
    Runs,
    add_torch_options,
    clock_of,
    made_data,
    made_model,
    median,
    precision_of,
    ratio,
    sampling_runs,
    training_params,
    training_run,
)
from ratios import Ratio, print_result

from ikddit.diffusion.guidance import Guidance
from ikddit.diffusion.plan import SamplingPlan
from ikddit.evaluation.timing import interleaved, peak_memory
from ikddit.networks.sizes import SIZES

MODELS = {"T/8": 64, "T/4": 256, "T/2": 1024}
AIMS = {"training_256": 1.3, "training_1024": 1.6, "masked": 1.4, "masked_vs_guided": 2.0, "ddpm": 50.0}
TRAIN_BATCH = {64: 32, 256: 8, 1024: 2}
SAMPLE_BATCH = {64: 16, 256: 4, 1024: 1}
STEPS = 20


def bench_training(name: str, tokens: int, settings: argparse.Namespace) -> dict[str, float]:
    """A whole step (student, teacher, discriminator, optimisers) and one of the student alone."""
    batch = TRAIN_BATCH[tokens]
    data = made_data(4 * batch)
    runs: Runs = {}
    for discriminator in ("implicit", "none"):
        for mask in (0.0, 0.5):
            params = training_params(batch, settings.precision, "cpu", mask, discriminator)
            _, run = training_run(made_model(name, settings.precision), params, data)
            runs[f"{discriminator}_{mask}"] = run
    seconds = interleaved(runs, 1, settings.repeats, f"train {name}", settings.now)
    return {
        "batch": batch,
        "step_s_mask_0": median(seconds["implicit_0.0"]),
        "step_s_mask_0.5": median(seconds["implicit_0.5"]),
        "speedup": ratio(seconds["implicit_0.0"], seconds["implicit_0.5"]),
        "speedup_without_teacher_and_discriminator": ratio(seconds["none_0.0"], seconds["none_0.5"]),
    }


def bench_sampling(name: str, tokens: int, steps: int, settings: argparse.Namespace) -> dict[str, float]:
    """Full, masked and guided sampling of the same noise."""
    plans = {
        "full": SamplingPlan(steps),
        "masked": SamplingPlan(steps, "masked"),
        "cfg": SamplingPlan(steps, guidance=Guidance(2.0, "cfg")),
        "path_drop": SamplingPlan(steps, guidance=Guidance(2.0, "path_drop")),
        "cfg_everywhere": SamplingPlan(steps, guidance=Guidance(2.0, "cfg", 0.0, 1e9)),
    }
    batch = SAMPLE_BATCH[tokens]
    seconds = interleaved(
        sampling_runs(made_model(name, settings.precision).eval(), batch, plans),
        1,
        settings.repeats,
        f"sample {name}",
        settings.now,
    )
    full, masked = seconds["full"], seconds["masked"]
    return {
        "batch": batch,
        "steps": steps,
        "full_s": median(full),
        "masked_s": median(masked),
        "masked_speedup": ratio(full, masked),
        "masked_vs_cfg_in_interval": ratio(seconds["cfg"], masked),
        "masked_vs_path_drop_in_interval": ratio(seconds["path_drop"], masked),
        "masked_vs_cfg_everywhere": ratio(seconds["cfg_everywhere"], masked),
    }


def bench_ddpm(settings: argparse.Namespace) -> dict[str, float]:
    """DDPM with all its 1,000 steps, really run, between two runs of the default sampler."""
    plans = {
        "full": SamplingPlan(STEPS),
        "masked": SamplingPlan(STEPS, "masked"),
        "ddpm1000": SamplingPlan(1000, sampler="ddpm"),
    }
    batch = 2
    runs = sampling_runs(made_model("T/8", settings.precision).eval(), batch, plans)
    runs["full"](), runs["masked"]()  # warm up
    few = interleaved({"full": runs["full"], "masked": runs["masked"]}, 0, 3, "before ddpm", settings.now)
    many = interleaved({"ddpm1000": runs["ddpm1000"]}, 0, 1, "ddpm", settings.now)["ddpm1000"]
    after = interleaved({"full": runs["full"], "masked": runs["masked"]}, 0, 3, "after ddpm", settings.now)
    full, masked = few["full"] + after["full"], few["masked"] + after["masked"]
    return {
        "batch": batch,
        "steps": STEPS,
        "ddpm1000_s": round(many[0], 3),
        "full_s": median(full),
        "full_vs_ddpm1000": round(many[0] / float(np.median(full)), 1),
        "masked_vs_ddpm1000": round(many[0] / float(np.median(masked)), 1),
    }


def verdict(training: dict[str, dict[str, float]], sampling: dict[str, dict[str, float]]) -> list[str]:
    """One line per aim: reached or not."""
    lines = []
    for tokens in (256, 1024):
        found, aim = training[str(tokens)]["speedup"], AIMS[f"training_{tokens}"]
        lines.append(f"training step, {tokens} tokens: {found}x, aim {aim}x, {_reached(found, aim)}")
    for key, figures in sampling.items():
        found = figures["masked_speedup"]
        lines.append(
            f"masked sampling, {key}: {found}x, aim {AIMS['masked']}x, {_reached(found, AIMS['masked'])}"
        )
        found = figures["masked_vs_cfg_everywhere"]
        aim = AIMS["masked_vs_guided"]
        lines.append(
            f"masked against guided at every step, {key}: {found}x, aim {aim}x, {_reached(found, aim)}"
        )
    return lines


def ratios_of(
    training: dict[str, dict[str, float]], sampling: dict[str, dict[str, float]], ddpm: dict[str, float]
) -> list[Ratio]:
    """The figures that can be read alone."""
    ratios = [
        Ratio(f"training step, {tokens} tokens: nothing masked / half masked", figures["speedup"])
        for tokens, figures in training.items()
    ]
    for key, figures in sampling.items():
        ratios.append(Ratio(f"sampling, {key}: full / masked", figures["masked_speedup"]))
        ratios.append(
            Ratio(f"sampling, {key}: guided at every step / masked", figures["masked_vs_cfg_everywhere"])
        )
    ratios.append(Ratio(f"sampling: DDPM-1000 / {STEPS} steps", ddpm["full_vs_ddpm1000"]))
    return ratios


def _reached(found: float, aim: float) -> str:
    return "reached" if found >= aim else "not reached" if found > 1 else "does not pay"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    add_torch_options(parser)
    args = parser.parse_args()
    args.precision = precision_of(args)
    args.now = clock_of(args.clock)
    if args.threads:
        torch.set_num_threads(args.threads)
    training = {str(tokens): bench_training(name, tokens, args) for name, tokens in MODELS.items()}
    sampling = {
        f"{tokens} tokens, {STEPS} steps": bench_sampling(name, tokens, STEPS, args)
        for name, tokens in MODELS.items()
    }
    sampling["64 tokens, 8 steps"] = bench_sampling("T/8", 64, 8, args)
    ddpm = bench_ddpm(args)
    lines = verdict(training, sampling)
    found = ddpm["full_vs_ddpm1000"]
    lines.append(
        f"sampling against DDPM-1000: {found}x, aim {AIMS['ddpm']}x, {_reached(found, AIMS['ddpm'])}"
    )
    result = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "precision": args.precision,
        "repeats": args.repeats,
        "width": SIZES["T/8"].width,
        "training": training,
        "sampling": sampling,
        "ddpm": ddpm,
        "verdict": lines,
        **peak_memory(torch.device("cpu")),
    }
    print_result(result, ratios_of(training, sampling, ddpm))


if __name__ == "__main__":
    main()
