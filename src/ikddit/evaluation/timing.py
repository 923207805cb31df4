"""Speed of inference: every way of sampling in one process, taking turns, with median and interquartile range."""

import copy
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ikddit.console import progress
from ikddit.dataset.arrow import PreparedSplit
from ikddit.diffusion.plan import SamplingOptions
from ikddit.errors import ModelError
from ikddit.generator import Generator
from ikddit.params import TimingParams

GUIDANCE = 2.0
"""Weight of the guided modes; the time does not depend on it."""


def measure(
    generator: Generator,
    split: PreparedSplit,
    params: TimingParams,
    steps: int,
    seed: int,
    teacher: Generator | None = None,
) -> dict[str, float | int | str]:
    """Time one sample each of `batch` wafers, and of one wafer, in every mode.

    Modes: `full` and `masked` student, `guided_cfg` and `guided_path_drop` (full, guided in the default
    interval; absent where the model was not trained for it), `teacher` (the teacher's encoder in place of the
    student's). They take turns, `repeats` rounds after `warmup` rounds. DDPM is really run, once, for one wafer:
    `ddpm1000` if it is run with all of its 1,000 steps, as named otherwise.

    Returns:
        For each mode: `<mode>_s` (median seconds per batch, with `_q25`, `_q75`), `<mode>_samples_per_s`,
        `<mode>_latency_s` (one sample of one wafer, with quantiles), `<mode>_gflops_per_sample`;
        `masked_speedup`, `guided_*_over_masked`, `ddpm<steps>_latency_s` and `ddpm<steps>_speedup` against full
        at one wafer; peak memory, device, threads, tokens, batch and steps.
    """
    wafers = _first(split, params.batch)
    generators = {"student": generator} | ({"teacher": teacher} if teacher else {})
    modes = sampling_modes(generator, with_teacher=teacher is not None)

    def runs(part: PreparedSplit) -> dict[str, Callable[[], object]]:
        def once(name: str, options: SamplingOptions) -> Callable[[], object]:
            who = generators["teacher" if name == "teacher" else "student"]
            return lambda: who.sample(part, n=1, steps=steps, seed=seed, **options)

        return {name: once(name, options) for name, options in modes.items()}

    one = _first(split, 1)
    batches = interleaved(runs(wafers), params.warmup, params.repeats, "timing batches")
    latency = interleaved(runs(one), params.warmup, params.repeats, "timing latency")
    out: dict[str, float | int | str] = {
        "device": str(generator.model.usable.device),
        "threads": torch.get_num_threads(),
        "tokens": generator.model.student.encoder.tokens,
        "batch": len(wafers),
        "steps": steps,
        "repeats": params.repeats,
        "precision": generator.model.precision,
        "mask_ratio": generator.model.config.mask_ratio,
    }
    for name in modes:
        out |= quantiles(batches[name], f"{name}_s")
        out[f"{name}_samples_per_s"] = len(wafers) / float(np.median(batches[name]))
        out |= quantiles(latency[name], f"{name}_latency_s")
        out[f"{name}_gflops_per_sample"] = flops(runs(one)[name]) / 1e9
    out["masked_speedup"] = _speedup(batches["full"], batches["masked"])
    for name in [n for n in modes if n.startswith("guided")]:
        out[f"{name}_over_masked"] = _speedup(batches[name], batches["masked"])
    if params.ddpm_steps:
        name = f"ddpm{params.ddpm_steps}"
        generator.sample(one, n=1, steps=2, seed=seed, sampler="ddpm", inference="full")
        start = time.perf_counter()
        generator.sample(one, n=1, steps=params.ddpm_steps, seed=seed, sampler="ddpm", inference="full")
        out[f"{name}_latency_s"] = time.perf_counter() - start
        out[f"{name}_speedup"] = float(out[f"{name}_latency_s"]) / float(np.median(latency["full"]))
    return out | peak_memory(generator.model.usable.device)


def sampling_modes(generator: Generator, with_teacher: bool = False) -> dict[str, SamplingOptions]:
    """The ways of sampling that this model offers, by name."""
    modes: dict[str, SamplingOptions] = {"full": {"inference": "full"}, "masked": {"inference": "masked"}}
    if generator.model.config.condition_dropout:
        modes["guided_cfg"] = {"inference": "full", "guidance": GUIDANCE, "guidance_kind": "cfg"}
    if generator.model.config.path_dropout:
        modes["guided_path_drop"] = {"inference": "full", "guidance": GUIDANCE, "guidance_kind": "path_drop"}
    return modes | ({"teacher": {"inference": "full"}} if with_teacher else {})


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    warmup: int,
    repeats: int,
    title: str,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every run, by name: `repeats` rounds after `warmup` rounds, all runs once in each round.

    Args:
        clock: None takes the wall clock; `time.process_time` counts this process alone on a busy machine.
    """
    now = clock or time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in progress(range(warmup + repeats), title, unit="round"):
        for name, run in runs.items():
            start = now()
            run()
            if number >= warmup:
                seconds[name].append(now() - start)
    return seconds


def quantiles(values: list[float], name: str) -> dict[str, float]:
    """Median and quartiles.

    >>> quantiles([4.0, 1.0, 2.0, 3.0, 5.0], "full_s")
    {'full_s': 3.0, 'full_s_q25': 2.0, 'full_s_q75': 4.0}
    """
    low, median, high = (float(q) for q in np.quantile(values, [0.25, 0.5, 0.75]))
    return {name: median, f"{name}_q25": low, f"{name}_q75": high}


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions of one run."""
    # the counter knows matrix products, so attention must be spelled out in them
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


def peak_memory(device: torch.device) -> dict[str, float | str]:
    """Highest memory so far, MiB: of the GPU's allocator, else of the whole process."""
    if device.type == "cuda":
        return {
            "peak_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20,
            "peak_memory_of": "device",
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes
    return {
        "peak_memory_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "peak_memory_of": "process",
    }


def with_teacher(generator: Generator, folder: Path | str) -> Generator:
    """The same model with the teacher's encoder in place of the student's.

    Raises:
        ModelError: the teacher's folder is missing, damaged, or of another size.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = copy.deepcopy(generator.model)
    try:
        state: dict[str, Any] = load_file(Path(folder) / "model.safetensors")
        prefix = "encoder."
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        model.student.encoder.load_state_dict(weights)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{folder}: not the teacher of this student ({error}); run `dvc repro train`"
        ) from error
    return Generator(model, generator.normaliser, generator.vocabularies)


def _first(split: PreparedSplit, count: int) -> PreparedSplit:
    return PreparedSplit.from_table(split.table.slice(0, min(count, len(split))).combine_chunks())


def _speedup(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of runs of one round: what else ran then hit both alike."""
    return float(np.median(np.array(slow) / np.array(fast)))
