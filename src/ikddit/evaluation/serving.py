"""Measure masked against full inference on the same wafers and noise, for the gate that decides what is served."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from ikddit.console import progress
from ikddit.dataset.arrow import PreparedSplit
from ikddit.diffusion.plan import Inference
from ikddit.evaluation.embedding_distance import frechet_embedding, measured_moments
from ikddit.evaluation.gate import MODES, ModeFigures, without_nan
from ikddit.evaluation.inputs import take
from ikddit.evaluation.marks import on_wafer
from ikddit.evaluation.scores import evaluation_subset
from ikddit.generator import Generator
from ikddit.overlay import kpi
from ikddit.params import EvaluateParams


def compare_modes(
    generator: Generator, test: PreparedSplit, params: EvaluateParams, seed: int
) -> dict[Inference, ModeFigures]:
    """Draw `serving.samples` maps of `serving.wafers` wafers in both modes, for each of `serving.seeds` seeds.

    Both modes start from the same noise. They take turns, and the order is turned round from seed to seed, so
    that what else runs on the machine hits both alike; the first, untimed run warms both up. Frechet distances are
    to all measured maps of `test`: a covariance of 128 dimensions needs more than the drawn wafers.
    """
    settings = params.serving
    part = take(test, evaluation_subset(test, settings.wafers))
    measured, valid = part.map.astype(np.float32), on_wafer(part.valid)
    moments = measured_moments(generator, test)
    found: dict[Inference, dict[str, list[float]]] = {
        mode: {name: [] for name in ModeFigures.__dataclass_fields__} for mode in MODES
    }
    warm = take(part, np.arange(min(8, len(part))))
    for mode in MODES:
        generator.sample(warm, settings.samples, params.steps, seed=seed, inference=mode)
    for number in progress(range(settings.seeds), "masked or full", unit="seed"):
        for mode in MODES[:: 1 if number % 2 == 0 else -1]:
            start = time.perf_counter()
            samples = generator.sample(
                part, settings.samples, params.steps, seed=seed + number, inference=mode
            )
            seconds = time.perf_counter() - start
            mean = samples.mean(1)
            figures = {
                "frechet": frechet_embedding(generator, part, samples, moments),
                "rmse_nm": float(kpi.rmse_nm(mean, measured, valid)),
                "ome": float(kpi.ome(mean, measured, valid, settings.tau_nm)),
                "seconds": seconds,
            }
            for name, value in figures.items():
                found[mode][name].append(value)
    return {mode: ModeFigures(**figures) for mode, figures in found.items()}


def measure_serving(
    generator: Generator, test: PreparedSplit, params: EvaluateParams, seed: int
) -> dict[str, Any]:
    """Figures of both modes, a number per seed (None: not finite), and what they were measured with: gate.json."""
    modes = compare_modes(generator, test, params, seed)
    config, settings = generator.model.config, params.serving
    return {
        **without_nan({mode: asdict(figures) for mode, figures in modes.items()}),
        "wafers": min(settings.wafers, len(test)),
        "samples": settings.samples,
        "seeds": [seed + number for number in range(settings.seeds)],
        "steps": params.steps,
        "tau_nm": settings.tau_nm,
        "mask_ratio": config.mask_ratio,
        "model": config.model,
        "tokens": generator.model.student.encoder.tokens,
        "precision": generator.model.precision,
        "device": str(generator.model.usable.device),
        "threads": torch.get_num_threads(),
    }
