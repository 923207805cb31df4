"""Does masking pay? Training step, sampling and DDPM-1000 as ratios, by number of tokens.

    python benchmarks/bench_masking.py [--repeats 3] [--threads 2] [--clock wall]

A student of T/8's width with patches of 8, 4 and 2 pixels (64, 256 and 1,024 tokens), weights as initialised:
what it measures is time, not quality (whether masked samples are good enough is the acceptance gate's question,
`reports/evaluation/serving.json`). All variants of a comparison take turns in one process; a ratio is the median
over rounds of the two times of one round. On a machine that others use, `--threads 1 --clock cpu` counts the time
of this process alone. Prints one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from ikddit.diffusion.guidance import Guidance
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.diffusion.plan import SamplingPlan, draw_order
from ikddit.embedding.encoders import ConditionTokens, EmbeddingConfig
from ikddit.evaluation.timing import interleaved, peak_memory
from ikddit.networks.mean import MeanConfig
from ikddit.networks.sizes import SIZES
from ikddit.params import parse_params
from ikddit.training.loop import Trainer, TrainingData

MODELS = {"T/8": 64, "T/4": 256, "T/2": 1024}
AIMS = {"training_256": 1.3, "training_1024": 1.6, "masked": 1.4, "masked_vs_guided": 2.0, "ddpm": 50.0}
TRAIN_BATCH = {64: 32, 256: 8, 1024: 2}
SAMPLE_BATCH = {64: 16, 256: 4, 1024: 1}
CONTEXT = 66
"""Condition tokens: 16 of the previous map, 8 of the log channels, 32 log lines, 10 ids."""
DIM = 128
STEPS = 20


def made_model(name: str, precision: str) -> OverlayModel:
    """An untrained model of the default profile's shape."""
    ids = (8,) * 10
    config = ModelConfig(
        model=name,
        embedding=EmbeddingConfig(DIM, ids, 20, 30, 6),
        mean=MeanConfig("none", ids, 20, 30, 5, 5, 0, (), 4.6875),
        sigma_nm=2.0,
        sigma_data=0.5,
        modes=64,
        sigma_min=0.02,
        sigma_max=40.0,
        mask_ratio=0.5,
        max_lines=32,
        precision=precision,
    )
    torch.manual_seed(0)
    return OverlayModel(config)


def made_condition(wafers: int) -> ConditionTokens:
    pad = torch.zeros(wafers, CONTEXT, dtype=torch.bool)
    return ConditionTokens(torch.randn(wafers, CONTEXT, DIM), pad, torch.randn(wafers, 3 * DIM))


def ratio(slow: list[float], fast: list[float]) -> float:
    return round(float(np.median(np.array(slow) / np.array(fast))), 3)


def median(values: list[float]) -> float:
    return round(float(np.median(values)), 4)


def bench_training(name: str, tokens: int, settings: argparse.Namespace) -> dict[str, float]:
    """A whole step (student, teacher, discriminator, optimisers) and one of the student alone."""
    batch = TRAIN_BATCH[tokens]
    data = TrainingData(
        0.5 * torch.randn(4 * batch, 2, 64, 64).half(),
        torch.ones(4 * batch, 1, 64, 64, dtype=torch.uint8),
        made_condition(4 * batch),
    )
    runs: dict[str, Callable[[], object]] = {}
    for discriminator in ("implicit", "none"):
        for mask in (0.0, 0.5):
            section = {
                "steps": 10_000,
                "batch": batch,
                "discriminator": discriminator,
                "precision": settings.precision,
                "device": "cpu",
            }
            params = parse_params({"mask_ratio": mask, "train": section})
            trainer = Trainer(made_model(name, settings.precision), params, torch.device("cpu"))
            runs[f"{discriminator}_{mask}"] = lambda trainer=trainer: trainer.train_step(data)
    seconds = interleaved(runs, 1, settings.repeats, f"train {name}", settings.now)
    return {
        "batch": batch,
        "step_s_mask_0": median(seconds["implicit_0.0"]),
        "step_s_mask_0.5": median(seconds["implicit_0.5"]),
        "speedup": ratio(seconds["implicit_0.0"], seconds["implicit_0.5"]),
        "speedup_without_teacher_and_discriminator": ratio(seconds["none_0.0"], seconds["none_0.5"]),
    }


def sampling_runs(
    model: OverlayModel, batch: int, plans: dict[str, SamplingPlan]
) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 2, 64, 64, generator=generator)
    order = draw_order(batch, model.student.encoder.groups, generator)
    tokens = made_condition(batch)

    def run(plan: SamplingPlan) -> Callable[[], object]:
        @torch.inference_mode()
        def once() -> object:
            with model.autocast():
                cache = model.student.encoder.cache(tokens)
            return model.sample_residual(noise, cache, plan, order, [generator] * batch)

        return once

    return {name: run(plan) for name, plan in plans.items()}


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


def _reached(found: float, aim: float) -> str:
    return "reached" if found >= aim else "not reached" if found > 1 else "does not pay"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves torch's choice")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    args.now = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    if args.threads:
        torch.set_num_threads(args.threads)
    for name in MODELS:
        SIZES.setdefault(name, replace(SIZES["T/8"], patch=int(name.split("/")[1])))
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
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
