"""Marks that are missing at random make neither forecasts nor the spread of samples smaller."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))

from evaluation_fakes import GRID, small_fab

from ikddit.dataset.arrow import PreparedSplit
from ikddit.diffusion.edm import Preconditioning
from ikddit.embedding.conditions import gather_conditions
from ikddit.evaluation.baselines import Baselines
from ikddit.mpom.schema import ID_FIELDS
from ikddit.params import BaselineParams, MeanParams
from ikddit.training.mean import fit_mean


def gapped(split: PreparedSplit, share: float, seed: int) -> PreparedSplit:
    """The same wafers without a share of their marks, other ones in each map."""
    rng = np.random.default_rng(seed)
    kept, prev_kept = (rng.random(split.valid.shape) >= share for _ in range(2))
    return replace(
        split,
        valid=split.valid * kept,
        map=(split.map * kept[:, None]).astype(np.float16),
        prev_valid=split.prev_valid * prev_kept,
        prev_map=(split.prev_map * prev_kept[:, None]).astype(np.float16),
    )


def slope(forecast: np.ndarray, truth: np.ndarray, mean_map: np.ndarray) -> float:
    """Of the truth on the forecast, both less the mean map: above 1 where forecasts are too small."""
    usable = np.broadcast_to(GRID.usable, truth.shape)
    f, t = ((maps - mean_map)[usable].astype(np.float64) for maps in (forecast, truth))
    return float(f @ t / (f @ f))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_forecasts_have_the_size_of_what_comes(share: float) -> None:
    train, val, test = (small_fab(n, seed=s) for n, s in ((600, 0), (200, 1), (200, 2)))
    params = MeanParams(components=12, interactions=20)
    fit = fit_mean(
        gapped(train, share, 0),
        gapped(val, share, 1),
        ["", "?", "a", "b"],
        (6,) * len(ID_FIELDS),
        1.0,
        params,
        0,
    )
    seen = gapped(test, share, 2)
    with torch.inference_mode():
        forecast = fit.mean(gather_conditions(seen, slice(None), 1.0)).numpy()
    truth = np.asarray(small_fab(200, seed=2, noise_nm=0.0).map, np.float32)
    complete = truth / np.where(
        test.valid.mean(0) > 0, test.valid.mean(0), 1
    )  # its own gaps, one mark in twenty
    assert slope(forecast, complete, fit.mean.mean_map.numpy()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["ridge_all", "gbm"])
def test_baselines_are_not_made_smaller_either(name: str) -> None:
    train, val, test = (gapped(small_fab(n, seed=s), 0.4, s) for n, s in ((600, 0), (200, 1), (200, 2)))
    baselines = Baselines(train, val, BaselineParams(components=12))
    forecast = baselines.predict(name, test, np.arange(len(test)))
    truth = np.asarray(small_fab(200, seed=2).map, np.float32)
    assert slope(forecast, truth / 0.95, baselines.codes.mean_map) == pytest.approx(1.0, abs=0.06)


def test_modes_of_the_residual_keep_their_variances() -> None:
    g = torch.Generator().manual_seed(0)
    modes = torch.linalg.qr(torch.randn(8192, 2, generator=g)).Q.T
    scores = torch.randn(400, 2, generator=g) * torch.tensor([20.0, 10.0])
    residual = (scores @ modes + 0.05 * torch.randn(400, 8192, generator=g)).view(400, 2, 64, 64)
    valid = (torch.rand(400, 1, 64, 64, generator=g) > 0.4).float()
    p = Preconditioning(0.4, 2)
    p.measure(residual * valid, valid)
    np.testing.assert_allclose(p.mode_variance.sqrt(), scores.square().mean(0).sqrt(), rtol=0.03)
    # the modes are those of maps with gaps as zeros, and a little off: that is left over
    assert float(p.rest_variance.sqrt()) == pytest.approx(0.05, rel=0.1)
