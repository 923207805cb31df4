"""Score a trained student on the test split: point forecast, ensemble, M3S, distribution, use of its inputs."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ikddit.console import progress
from ikddit.dataset.arrow import PreparedSplit, fixed_list
from ikddit.embedding.conditions import gather_conditions, gather_maps
from ikddit.evaluation.scores import (
    coverage,
    crps_nm,
    evaluation_subset,
    frechet_from_moments,
    gaussian_of,
    point_scores,
    r2,
    spread_skill,
)
from ikddit.generator import Generator
from ikddit.overlay import kpi
from ikddit.params import EvaluateParams

log = logging.getLogger("ikddit")
Modality = Literal["prev_map", "logs", "ids"]
MODALITIES: tuple[Modality, ...] = ("prev_map", "logs", "ids")
MODALITY_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "prev_map": ("prev_map", "prev_valid"),
    "logs": ("log_features", "line_templates", "line_values", "line_words"),
    "ids": ("ids",),
}
"""Columns of a prepared split that are 0 where a modality was not received."""
SHOWN = 8
"""Wafers of the showcase that the report draws."""


@dataclass(frozen=True)
class Scored:
    """Metrics, and the arrays and per-wafer table the report is drawn from."""

    metrics: dict[str, Any]
    showcase: dict[str, np.ndarray]
    wafers: dict[str, list[Any]]


def take(split: PreparedSplit, rows: np.ndarray) -> PreparedSplit:
    """The wafers at `rows`, in that order."""
    return PreparedSplit.from_table(split.table.take(rows).combine_chunks())


def evaluate(generator: Generator, test: PreparedSplit, params: EvaluateParams, seed: int) -> Scored:
    """Generate `samples` maps for each of `wafers` test wafers, all figures from this one set.

    `rmse_nm`, `r2` and OME are of the point forecast (mu(c) plus the denoiser's conditional mean);
    `ensemble_rmse_nm` is of the plain ensemble mean; M3S is forecast by the average over samples.
    """
    part = take(test, evaluation_subset(test, params.wafers))
    measured, valid = part.map.astype(np.float32), part.valid
    mean_map = generator.normaliser.mean_map
    samples = np.empty((len(part), params.samples, 2, 64, 64), np.float32)
    blocks = generator.sample_blocks(
        part, params.samples, params.steps, seed=seed, inference=params.inference
    )
    total = -(-len(part) // max(1, 256 // params.samples))
    for rows, maps in progress(blocks, "generate", total=total, unit="block"):
        samples[rows] = maps
    usable = generator.usable
    on_wafer = samples[..., usable]
    m3s_samples = np.abs(on_wafer.mean(-1)) + 3 * on_wafer.std(-1)
    m3s, measured_m3s = m3s_samples.mean(1), kpi.m3s_nm(measured, valid)
    point = generator.point(part, seed)
    ensemble = samples.mean(1)
    metrics: dict[str, Any] = point_scores(point, measured, valid, mean_map, params.tau_nm, m3s)
    metrics["ensemble_rmse_nm"] = float(kpi.rmse_nm(ensemble, measured, valid))
    metrics["ensemble_r2"] = r2(ensemble, measured, valid, mean_map)
    metrics["mean_only_rmse_nm"] = float(kpi.rmse_nm(conditional_mean(generator, part), measured, valid))
    metrics["crps_nm"] = crps_nm(samples, measured, valid)
    metrics["coverage_90"] = coverage(samples, measured, valid, 0.9)
    low, high = kpi.m3s_interval_nm(m3s_samples)
    metrics["m3s_coverage_90"] = float(((measured_m3s >= low) & (measured_m3s <= high)).mean())
    metrics["spread_skill"] = spread_skill(samples, measured, valid)
    shuffled = generator.point(_shuffled(part, seed), seed)
    metrics["shuffled_rmse_ratio"] = float(kpi.rmse_nm(shuffled, measured, valid)) / metrics["rmse_nm"]
    for modality in MODALITIES:
        less = generator.point(without(part, modality), seed)
        metrics[f"without_{modality}_rmse_nm"] = float(kpi.rmse_nm(less, measured, valid))
    metrics["frechet_embedding"] = frechet_embedding(generator, part, samples)
    metrics |= {"n_wafers": len(part), "n_samples": params.samples, "steps": params.steps}
    metrics["served"] = generator.model.config.served
    shown = np.linspace(0, len(part) - 1, min(SHOWN, len(part))).round().astype(int)
    showcase = {
        "barcodes": np.array([part.barcode[i] for i in shown]),
        "mean": point[shown],
        "sigma": samples[shown].std(1, ddof=1),
        "sample0": samples[shown, 0],
        "sample1": samples[shown, 1],
        "measured": measured[shown],
        "valid": valid[shown].astype(np.uint8),
    }
    wafers: dict[str, list[Any]] = {
        "barcode": part.barcode,
        **{name: part.table.column(name).to_pylist() for name in ("lot_id", "scanner_id", "chuck_id")},
        "rmse_nm": kpi.rmse_per_wafer_nm(point, measured, valid).tolist(),
    }
    for axis, name in enumerate("xy"):
        wafers[f"m3s_{name}_nm"] = measured_m3s[:, axis].tolist()
        wafers[f"pred_m3s_{name}_nm"] = m3s[:, axis].tolist()
    return Scored(metrics, showcase, wafers)


def point_figures(
    generator: Generator, split: PreparedSplit, params: EvaluateParams, seed: int
) -> dict[str, float | int]:
    """RMSE, R2 and OME of the point forecast on the scored wafers of another split, and their number."""
    part = take(split, evaluation_subset(split, params.wafers))
    point = generator.point(part, seed)
    mean_map = generator.normaliser.mean_map
    scores = point_scores(point, part.map.astype(np.float32), part.valid, mean_map, params.tau_nm)
    scores.pop("m3s_error_nm", None)  # a point forecast's M3S is biased low; only samples forecast it
    return {"n": len(part), **scores}


@torch.inference_mode()
def conditional_mean(generator: Generator, split: PreparedSplit) -> np.ndarray:
    """mu(c) alone, nm: what the student adds to shows beside it."""
    sigma_nm = generator.normaliser.sigma_nm
    maps = generator.model.mean(gather_conditions(split, slice(None), sigma_nm)) * generator.model.usable
    out: np.ndarray = (maps * sigma_nm).numpy()
    return out


def without(split: PreparedSplit, modality: Modality) -> PreparedSplit:
    """The same wafers as if one modality had never been received."""
    blank: dict[str, np.ndarray] = {
        name: np.zeros_like(getattr(split, name)) for name in MODALITY_COLUMNS[modality]
    }
    if modality == "logs":
        blank["log_missing"] = np.ones_like(split.log_missing)
    table = split.table
    for name, values in blank.items():
        position, kind = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(position, kind, fixed_list(values, kind.type))
    return PreparedSplit.from_table(table)


def _shuffled(split: PreparedSplit, seed: int) -> PreparedSplit:
    """Every wafer with the conditions of another one: a model that uses them must get much worse."""
    return take(split, np.random.default_rng([seed, 1]).permutation(len(split)))


@torch.inference_mode()
def frechet_embedding(generator: Generator, split: PreparedSplit, samples: np.ndarray) -> float:
    """Frechet distance of measured and generated maps on the project's own map embedding (128 numbers a map).

    Generated maps get the masks of the measured ones, so that the mask is no difference.
    """
    sigma_nm = generator.normaliser.sigma_nm
    embedding = generator.model.embedding
    real, fake = [], []
    for start in range(0, len(split), 128):
        part = slice(start, min(start + 128, len(split)))
        maps, valid = gather_maps(split, part, sigma_nm)
        real.append(embedding.embed_map(maps, valid))
        for k in range(samples.shape[1]):
            generated = torch.from_numpy(samples[part, k]) / sigma_nm * valid
            fake.append(embedding.embed_map(generated, valid))
    a, b = (gaussian_of(torch.cat(x).numpy()) for x in (real, fake))
    return frechet_from_moments(*a, *b)
