"""Run a trained student on the wafers that are scored, and write what it says to disk; no figure is made here.

The maps stream into `.npy` files a few wafers at a time, so that memory does not grow with their number.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float

from ikddit.atomic import new_array, write_json
from ikddit.console import log, progress
from ikddit.dataset.arrow import PreparedSplit
from ikddit.diffusion.plan import Inference
from ikddit.embedding.conditions import gather_conditions
from ikddit.evaluation.gate import serving_report
from ikddit.evaluation.generated import GATE, POINTS, SAMPLES, SETTINGS, WAFER_COLUMNS, WAFERS, WITHHELD
from ikddit.evaluation.inputs import MODALITIES, shuffled, take, without
from ikddit.evaluation.scores import evaluation_subset
from ikddit.evaluation.serving import measure_serving
from ikddit.generator import SAMPLES_AT_ONCE, Generator
from ikddit.params import EvaluateParams

WITHHELD_WAFERS = 100
"""Wafers that are sampled without an input: 200 M3S values, enough to tell an interval that is much too narrow."""
POINT_WAFERS = 256
"""Wafers of a point forecast held at a time."""


def generate(
    generator: Generator,
    test: PreparedSplit,
    unseen: PreparedSplit,
    params: EvaluateParams,
    seed: int,
    folder: Path,
) -> None:
    """Write everything that scores need of the model; see `ikddit.evaluation.generated` for the files.

    Args:
        generator: the student.
        test: the test split; `params.wafers` of it are drawn.
        unseen: wafers of scanner x reticle pairs that train never saw; may be empty.
        params: the `evaluate` section of params.yaml.
        seed: of the noise.
        folder: where the files go; must exist.
    """
    gate: dict[str, Any] = {}
    _timed("masked or full", lambda: gate.update(measure_serving(generator, test, params, seed)))
    write_json(folder / GATE, gate)
    inference = serving_report(gate)[0].served if params.inference == "served" else params.inference
    part = take(test, evaluation_subset(test, params.wafers))
    _timed("samples", partial(write_samples, generator, part, params, inference, seed, folder / SAMPLES))
    (folder / POINTS).mkdir()
    conditions = {"given": part, "shuffled": shuffled(part, seed)}
    conditions |= {f"without_{name}": without(part, name) for name in MODALITIES}
    if len(unseen):
        other = take(unseen, evaluation_subset(unseen, params.wafers))
        conditions["unseen"] = other
        pq.write_table(other.table.select(WAFER_COLUMNS), folder / f"unseen_{WAFERS}")
    for name, split in conditions.items():
        target = folder / POINTS / f"{name}.npy"
        _timed(f"point forecast, {name}", partial(write_points, generator, split, seed, target))
    few = take(part, evaluation_subset(part, WITHHELD_WAFERS))
    (folder / WITHHELD).mkdir()
    pq.write_table(few.table.select(WAFER_COLUMNS), folder / WITHHELD / WAFERS)
    for name in MODALITIES:
        target = folder / WITHHELD / f"{name}.npy"
        less = without(few, name)
        _timed(
            f"samples without {name}",
            partial(write_samples, generator, less, params, inference, seed, target),
        )
    mean_only = folder / POINTS / "mean_only.npy"
    _timed("mean alone", partial(_write_maps, partial(conditional_mean, generator), part, mean_only))
    pq.write_table(part.table.select(WAFER_COLUMNS), folder / WAFERS)
    settings = params.model_dump(include={"samples", "steps"}) | {"inference": inference, "seed": seed}
    machine = {"device": str(generator.model.usable.device), "threads": torch.get_num_threads()}
    write_json(folder / SETTINGS, settings | {"mask_ratio": generator.model.config.mask_ratio} | machine)


def write_samples(
    generator: Generator,
    part: PreparedSplit,
    params: EvaluateParams,
    inference: Inference,
    seed: int,
    path: Path,
) -> None:
    """Draw `params.samples` maps of each wafer into one float16 `.npy` of shape (n, m, 2, 64, 64), nm."""
    shape = (len(part), params.samples, 2, 64, 64)
    out = new_array(path, shape)
    blocks = generator.sample_blocks(part, params.samples, params.steps, seed=seed, inference=inference)
    total = -(-len(part) // max(1, SAMPLES_AT_ONCE // params.samples))
    for rows, maps in progress(blocks, "generate", total=total, unit="block"):
        out[rows] = maps
    out.flush()


def write_points(generator: Generator, split: PreparedSplit, seed: int, path: Path) -> None:
    """Point forecasts of a split as one float16 `.npy` of shape (n, 2, 64, 64), nm."""
    _write_maps(lambda part: generator.point(part, seed), split, path)


def _write_maps(forecast: Callable[[PreparedSplit], np.ndarray], split: PreparedSplit, path: Path) -> None:
    out = new_array(path, (len(split), 2, 64, 64))
    for start in range(0, len(split), POINT_WAFERS):
        rows = np.arange(start, min(start + POINT_WAFERS, len(split)))
        out[rows] = forecast(take(split, rows))
    out.flush()


@torch.inference_mode()
def conditional_mean(generator: Generator, split: PreparedSplit) -> Float[np.ndarray, "n 2 64 64"]:
    """mu(c) alone, nm: what the student adds to shows beside it."""
    sigma_nm = generator.normaliser.sigma_nm
    conditions = gather_conditions(split, slice(None), sigma_nm).to(generator.model.usable.device)
    maps = generator.model.mean(conditions) * generator.model.usable
    out: np.ndarray = (maps * sigma_nm).cpu().numpy()
    return out


def _timed(what: str, work: Callable[[], object]) -> None:
    start = time.monotonic()
    work()
    log.info("generate: %s: %.1f s", what, time.monotonic() - start)
