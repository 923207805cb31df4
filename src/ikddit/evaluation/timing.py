"""Speed of inference: full and masked student, interleaved in one process, median and interquartile range."""

import time
from collections.abc import Callable

import numpy as np
import torch

from ikddit.console import progress
from ikddit.dataset.arrow import PreparedSplit
from ikddit.diffusion.plan import Inference
from ikddit.generator import Generator
from ikddit.params import TimingParams


def measure(
    generator: Generator, split: PreparedSplit, params: TimingParams, steps: int, seed: int
) -> dict[str, float | int | str]:
    """Time one batch of samples per mode, `repeats` times after `warmup` rounds, modes taking turns.

    Returns:
        Seconds per batch (median, 25 % and 75 % quantile), samples/s and `masked_speedup` = full / masked,
        with device, threads, tokens, batch and steps.
    """
    wafers = PreparedSplit.from_table(split.table.slice(0, min(params.batch, len(split))).combine_chunks())

    def once(mode: Inference) -> Callable[[], object]:
        return lambda: generator.sample(wafers, n=1, steps=steps, seed=seed, inference=mode)

    modes: tuple[Inference, ...] = ("full", "masked")
    runs = {mode: once(mode) for mode in modes}
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    for number in progress(range(params.warmup + params.repeats), "timing", unit="round"):
        for mode, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= params.warmup:
                seconds[mode].append(time.perf_counter() - start)
    out: dict[str, float | int | str] = {
        "device": str(generator.model.usable.device),
        "threads": torch.get_num_threads(),
        "tokens": generator.model.student.encoder.size.tokens,
        "batch": len(wafers),
        "steps": steps,
        "precision": generator.model.config.precision,
        "mask_ratio": generator.model.config.mask_ratio,
    }
    for name, values in seconds.items():
        low, median, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
        out |= {f"{name}_s": median, f"{name}_s_q25": low, f"{name}_s_q75": high}
        out[f"{name}_samples_per_s"] = len(wafers) / median
    out["masked_speedup"] = float(np.median(seconds["full"]) / np.median(seconds["masked"]))
    return out
