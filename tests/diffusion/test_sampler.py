"""Samplers against the closed form of a Gaussian, where the ideal denoiser is known."""

import pytest
import torch

from ikddit.diffusion.edm import Preconditioning, masked_mean
from ikddit.diffusion.sampler import sample_dpm, sample_heun

MEAN, SD = 0.7, 0.5


def ideal(x, sigma, _number):
    """E[y | x] for y ~ N(MEAN, SD^2), x = y + sigma n."""
    return (SD**2 * x + sigma**2 * MEAN) / (SD**2 + sigma**2)


@pytest.mark.parametrize("sampler", ["dpm", "heun"])
def test_sampler_reproduces_a_gaussian(sampler):
    noise = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    if sampler == "dpm":
        out = sample_dpm(ideal, noise, 40, 0.5, 0.002, 80.0)
    else:
        out = sample_heun(ideal, noise, 40, 0.002, 80.0)
    assert abs(float(out.mean()) - MEAN) < 0.01
    assert abs(float(out.std()) - SD) < 0.01


def test_samplers_agree_map_by_map():
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    a = sample_dpm(ideal, noise, 60, 0.5, 0.002, 80.0)
    b = sample_heun(ideal, noise, 60, 0.002, 80.0)
    torch.testing.assert_close(a, b, atol=5e-3, rtol=0)


def test_preconditioned_input_and_target_have_unit_variance():
    g = torch.Generator().manual_seed(2)
    p = Preconditioning(0.5)
    y, n = 0.5 * torch.randn(200_000, generator=g), torch.randn(200_000, generator=g)
    for sigma in (0.05, 0.5, 5.0):
        c_skip, c_out, c_in, _ = p.coefficients(torch.tensor(sigma))
        x = y + sigma * n
        assert abs(float((c_in * x).var()) - 1) < 0.02
        assert abs(float(((y - c_skip * x) / c_out).var()) - 1) < 0.02


def test_masked_mean_ignores_invalid_pixels():
    values, valid = torch.ones(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)
    valid[..., :2, :] = 1
    values[..., 2:, :] = 1e9
    assert float(masked_mean(values, valid)) == 1.0
