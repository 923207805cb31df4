"""Fit the conditional mean: principal components, ridge, located spots, screened interactions, fold scores."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ikddit.dataset.components import component_scores
from ikddit.embedding.conditions import (
    Conditions,
    gather_conditions,
    gather_maps,
    missing_inputs,
    withhold,
)
from ikddit.networks.mean import (
    SPOT_HALF,
    SPOT_SIDE,
    ConditionalMean,
    MeanConfig,
    SpotLine,
    codes,
    interaction_columns,
)
from ikddit.overlay.grid import PITCH_MM
from ikddit.params import MeanParams

if TYPE_CHECKING:
    from ikddit.dataset.arrow import PreparedSplit

log = logging.getLogger("ikddit")
CHUNK = 512
PREV_COMPONENTS = 62
CROSSED_IDS = (1, 3, 4, 6, 8, 9)
"""Positions in ID_FIELDS of scanner, reticle and chamber, current and previous."""
STAGE = 10
RARE_SHARE = 0.01
"""A flag set on fewer wafers than this share (or on all but them) is not crossed: too few to learn from."""
LOST_WAFERS = 2000
"""Training wafers on which it is measured what an input tells: a variance to 3 %."""
RIDGE_ALPHAS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


@dataclass(frozen=True)
class MeanFit:
    """The fitted mean and what the student needs from the fit."""

    mean: ConditionalMean
    out_of_fold: Float[Tensor, "N K"]
    """Scores of each training wafer from a ridge that has not seen its lot."""
    report: dict[str, float]


def located_lines(templates: list[str], values: int) -> tuple[SpotLine, ...]:
    """Find templates that name a place in mm: `x=<num> y=<num> mm` and one more number.

    Args:
        templates: vocabulary in index order, pad and unknown included.
        values: numbers kept of a line; a template that needs one beyond them is left out.

    >>> located_lines(["", "?", "WARN levelling hot spot x=<num> y=<num> mm dz=<num> nm"], 6)
    (SpotLine(template=2, x=0, y=1, height=2),)
    """
    found = []
    for index, text in enumerate(templates):
        keys = re.findall(r"(?:(\w+)\s*=\s*)?<num>", text)
        if " mm" in text and "x" in keys and "y" in keys:
            others = [i for i, key in enumerate(keys) if key not in ("x", "y")]
            if others and max(place := (keys.index("x"), keys.index("y"), others[0])) < values:
                found.append(SpotLine(index, *place))
    return tuple(found)


def _chunks(n: int) -> Iterator[slice]:
    for start in range(0, n, CHUNK):
        yield slice(start, min(n, start + CHUNK))


def _components(rows: Tensor, count: int, seed: int) -> Float[Tensor, "K P"]:
    """Leading principal components (orthonormal rows) of centred rows, by randomised SVD."""
    torch.manual_seed(seed)
    count = min(count, *rows.shape)
    _, _, v = torch.svd_lowrank(rows, q=min(count + 20, *rows.shape), niter=3)
    return v[:, :count].T.contiguous()


def _ridge(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    return _solved(x.T @ x, x.T @ y, alpha)


def _solved(gram: Tensor, moment: Tensor, alpha: float) -> Tensor:
    """Weights of a ridge from its normal equations, which do not depend on the penalty."""
    penalised = gram.clone()
    penalised.diagonal().add_(alpha)
    weights: Tensor = torch.linalg.solve(penalised, moment)
    return weights


@torch.no_grad()
def fit_mean(
    train: "PreparedSplit",
    val: "PreparedSplit",
    templates: list[str],
    id_sizes: tuple[int, ...],
    sigma_nm: float,
    params: MeanParams,
    seed: int,
) -> MeanFit:
    """Fit mu(c) on train; the ridge penalty and the interactions are chosen on val, folds are whole lots.

    An empty val leaves the choice to lots of train that a ridge has not seen; the report is then without `val_rmse_*`.
    Holds the training maps once in memory as float32 (32 kB a wafer).
    """
    config = MeanConfig(
        kind=params.kind,
        id_sizes=id_sizes,
        log_channels=train.log_features.shape[1],
        templates=len(templates),
        components=min(params.components, len(train)),
        prev_components=min(PREV_COMPONENTS, len(train)),
        interactions=0,
        spots=located_lines(templates, train.line_values.shape[2]) if params.kind == "learned" else (),
        pitch_mm=PITCH_MM,
    )
    mean = ConditionalMean(config)
    n = len(train)
    if params.kind == "none":
        return MeanFit(mean, torch.zeros(n, config.components), {})
    conditions = gather_conditions(train, slice(None), sigma_nm)
    maps, valid = gather_maps(train, slice(None), sigma_nm)
    mean.prev_basis.copy_(_components(conditions.prev_map.flatten(1), config.prev_components, seed))
    mean.mean_map.copy_(maps.sum(0) / valid.sum(0).clamp(min=1))
    residual = (maps - mean.mean_map).mul_(valid).flatten(1)
    known = valid.bool()
    del maps, valid
    raw = torch.cat([mean.raw_features(conditions[s]) for s in _chunks(n)])
    mean.feature_mean.copy_(raw.mean(0))
    std = raw.std(0)
    mean.feature_std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))
    x = (raw - mean.feature_mean) / mean.feature_std
    del raw
    report: dict[str, float] = {}
    lots = np.array(train.lots)
    val_conditions = gather_conditions(val, slice(None), sigma_nm)
    val_maps, val_valid = gather_maps(val, slice(None), sigma_nm)
    if not len(val):
        log.info("conditional mean: no val wafers, so lots left out of train choose penalty and interactions")

    def val_rmse() -> float:
        error = (mean(val_conditions) - val_maps) * val_valid
        return float((error.square().sum() / (2 * val_valid.sum())).sqrt() * sigma_nm)

    def unseen_error(features: Tensor, scores: Tensor, alpha: float) -> float:
        found = _out_of_fold(features, scores, lots, alpha, params.folds, seed)
        return float((found - scores).square().mean())

    def note(name: str) -> None:
        if len(val):
            report[f"val_rmse_{name}_nm"] = val_rmse()

    gram = x.T @ x

    def fit_ridge() -> tuple[float, Tensor]:
        """The chosen penalty, and the training scores that the ridge was fitted to."""
        mean.basis.copy_(_components(residual, config.components, seed))
        parts = [
            component_scores(residual[s], known[s].expand(-1, 2, -1, -1).flatten(1).float(), mean.basis)
            for s in _chunks(n)
        ]
        scores = torch.cat(parts)
        moment = x.T @ scores
        weights = {a: _solved(gram, moment, a) for a in RIDGE_ALPHAS}
        if len(val):
            target = (val_maps - mean.mean_map - mean.spots(val_conditions)).flatten(1)
            wanted = component_scores(target, val_valid.expand_as(val_maps).flatten(1), mean.basis)
            x_val = mean.features(val_conditions)
            errors = {a: float((x_val @ w - wanted).square().mean()) for a, w in weights.items()}
        else:
            errors = {a: unseen_error(x, scores, a) for a in RIDGE_ALPHAS}
        alpha = min(errors, key=lambda a: errors[a])
        mean.ridge = weights[alpha]
        return alpha, scores

    alpha, scores = fit_ridge()
    note("ridge")
    if config.spots:
        _fit_spots(mean, conditions, residual - (x @ mean.ridge) @ mean.basis, train.valid)
        for s in _chunks(n):
            mask = torch.from_numpy(np.array(train.valid[s], dtype=np.float32))[:, None]
            residual[s] -= (mean.spots(conditions[s]) * mask).flatten(1)
        alpha, scores = fit_ridge()
        note("ridge_spots")
    if params.kind == "learned":

        def error(features: Tensor) -> float:
            return val_rmse() if len(val) else unseen_error(features, scores, alpha)

        x = _add_interactions(mean, x, codes(conditions), scores, alpha, params.interactions, error)
        report["interactions"] = float(len(mean.interaction))
        note("learned")
    report["ridge_alpha"] = alpha
    log.info("conditional mean: %s", ", ".join(f"{k} {v:.4g}" for k, v in report.items()))
    _measure_lost(mean, conditions[:: -(-n // LOST_WAFERS)])
    out_of_fold = _out_of_fold(x, scores, lots, alpha, params.folds, seed)
    return MeanFit(mean.eval(), out_of_fold, report)


def _measure_lost(mean: ConditionalMean, conditions: Conditions) -> None:
    """Fill `ConditionalMean.lost`: withhold each input from the wafers that have it, and see how the scores move.

    No measurement is looked at, so training wafers are as good as others.
    """
    known = mean.features(conditions) @ mean.ridge
    missing = missing_inputs(conditions)
    for number in range(missing.shape[1]):
        have = ~missing[:, number]
        if have.any():
            less = withhold(conditions[have], number)
            told = known[have] - mean.features(less) @ mean.ridge
            values, vectors = torch.linalg.eigh(told.T @ told / len(told))
            mean.lost[number] = (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _add_interactions(
    mean: ConditionalMean,
    x: Tensor,
    code: Tensor,
    scores: Tensor,
    alpha: float,
    most: int,
    judge: Callable[[Tensor], float],
) -> Tensor:
    """Stagewise screening: the products that explain most of the residual enter, ten at a time, while wafers gain
    that were not fitted: `judge` gives their error, of `mean` as it is or of the training features it is handed.

    Returns the training features with the chosen columns.
    """
    base = mean.interaction
    best = (judge(x), base, mean.ridge, x)
    chosen, features, patience = base, x, 2
    crossed = _crossed_columns(code, len(mean.config.id_sizes))
    while len(chosen) < most and patience:
        left = scores - features @ mean.ridge
        found = _screen(x, code, crossed, left, mean.config.one_hot, chosen)
        chosen = torch.cat([chosen, found[: most - len(chosen)]])
        features = torch.cat([x, interaction_columns(x, code, chosen)], dim=1)
        mean.interaction, mean.ridge = chosen, _ridge(features, scores, alpha)
        error = judge(features)
        patience = 2 if error < best[0] else patience - 1
        if error < best[0]:
            best = (error, chosen, mean.ridge, features)
    _, mean.interaction, mean.ridge, features = best
    mean.config = replace(mean.config, interactions=len(mean.interaction))
    return features


def _crossed_columns(code: Tensor, ids: int) -> list[tuple[int, list[int]]]:
    """Columns of `codes` worth crossing, with their values: machine ids, and each distinct flag of absence.

    Channels of one report are missing together, so their flags are the same column; one stands for all.
    """
    crossed = [(position, torch.unique(code[:, position]).tolist()) for position in CROSSED_IDS]
    seen: set[bytes] = set()
    for position in range(ids, code.shape[1]):
        flag = code[:, position].bool()
        pattern = flag.numpy().tobytes()
        if RARE_SHARE < float(flag.float().mean()) < 1 - RARE_SHARE and pattern not in seen:
            seen.add(pattern)
            crossed.append((position, [1]))
    return crossed


def _screen(
    x: Tensor,
    code: Tensor,
    crossed: list[tuple[int, list[int]]],
    left: Tensor,
    first: int,
    chosen: Tensor,
) -> Tensor:
    """The ten products (code == value) * number whose own least squares removes most of `left` (rows of three)."""
    number = x[:, first:]
    found: list[tuple[float, int, int, int]] = []
    taken = {tuple(row) for row in chosen.tolist()}
    for position, values in crossed:
        for value in values:
            rows = code[:, position] == value
            part = number[rows]
            gain = (part.T @ left[rows]).square().sum(1) / part.square().sum(0).clamp(min=1.0)
            for column in gain.topk(min(2 * STAGE, len(gain))).indices.tolist():
                entry = (position, value, first + column)
                if entry not in taken:
                    found.append((float(gain[column]), *entry))
    best = sorted(found, key=lambda entry: (-entry[0], entry[1:]))[:STAGE]
    return torch.tensor([entry[1:] for entry in best], dtype=torch.long).view(-1, 3)


def _out_of_fold(x: Tensor, y: Tensor, lots: np.ndarray, alpha: float, folds: int, seed: int) -> Tensor:
    """Scores (N, K) of each wafer from a ridge that has not seen its lot."""
    unique = np.unique(lots)
    fold_of = dict(zip(unique, np.random.default_rng(seed).permutation(len(unique)) % folds, strict=True))
    fold = torch.from_numpy(np.array([fold_of[lot] for lot in lots]))
    out = torch.zeros_like(y)
    for k in range(folds):
        held = fold == k
        if held.any() and not held.all():
            out[held] = x[held] @ _ridge(x[~held], y[~held], alpha)
    return out


@torch.no_grad()
def _fit_spots(mean: ConditionalMean, c: Conditions, residual: Tensor, valid: np.ndarray) -> None:
    """Kernel of each located template by normalised splatting, then a shrunk gain per (scanner, chuck)."""
    maps = residual.view(-1, 2, 64, 64)
    gain = mean.gain_index(c)
    for _ in range(2):
        fitted, energy = torch.zeros_like(mean.spot_gain), torch.zeros_like(mean.spot_gain)
        for number, spot in enumerate(mean.config.spots):
            wafer, line = (c.line_templates == spot.template).nonzero(as_tuple=True)
            values = c.line_values[wafer, line]
            height = values[:, spot.height] * mean.spot_gain[gain[wafer]]
            mask = torch.from_numpy(np.array(valid[wafer.numpy()], dtype=np.float32))[:, None]
            mean.spot_kernel[number] = _splat(
                maps[wafer], mask, values[:, spot.x], values[:, spot.y], height, mean.config.pitch_mm
            )
            for part in _chunks(len(wafer)):
                one = c[wafer[part]]
                shape = mean.spots(one) * mask[part]
                rows = gain[wafer[part]]
                fitted.index_add_(0, rows, (shape * maps[wafer[part]]).sum((1, 2, 3)))
                energy.index_add_(0, rows, shape.square().sum((1, 2, 3)))
        # shrink towards 1 with the weight of about one typical wafer in twenty
        prior = 0.05 * energy.sum() / (energy > 0).sum().clamp(min=1)
        mean.spot_gain.mul_(((fitted + prior) / (energy + prior).clamp(min=1e-9)).clamp(0.1, 10.0))


def _splat(maps: Tensor, mask: Tensor, x_mm: Tensor, y_mm: Tensor, height: Tensor, pitch: float) -> Tensor:
    """Least-squares kernel on the pixel pitch: every pixel's residual is shared by its four nearest offsets."""
    total = torch.zeros(2, SPOT_SIDE * SPOT_SIDE)
    weight = torch.zeros(SPOT_SIDE * SPOT_SIDE)
    axis = (torch.arange(64) + 0.5) * pitch - 32 * pitch
    for part in _chunks(len(maps)):
        u = (axis[None] - x_mm[part][:, None]) / pitch + SPOT_HALF  # (S, 64) columns
        v = (y_mm[part][:, None] - axis.flip(0)[None]) / pitch + SPOT_HALF  # (S, 64) rows
        for du in (0, 1):
            for dv in (0, 1):
                col, row = u.floor() + du, v.floor() + dv
                w = (1 - (u - col).abs())[:, None] * (1 - (v - row).abs())[:, :, None]
                inside = ((col >= 0) & (col < SPOT_SIDE))[:, None] & ((row >= 0) & (row < SPOT_SIDE))[
                    :, :, None
                ]
                index = (
                    (row[:, :, None] * SPOT_SIDE + col[:, None]).clamp(0, SPOT_SIDE**2 - 1).long().flatten()
                )
                w = w * inside * mask[part, 0]
                h = height[part][:, None, None]
                weight.index_add_(0, index, (w * h**2).flatten())
                for channel in (0, 1):
                    total[channel].index_add_(0, index, (w * h * maps[part, channel]).flatten())
    prior = 0.01 * weight.mean()
    return (total / (weight + prior)).view(2, SPOT_SIDE, SPOT_SIDE)
