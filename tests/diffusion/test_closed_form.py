"""Every sampler against correlated Gaussian data, whose ideal denoiser and exact flow are known."""

import itertools

import numpy as np
import pytest
import torch

from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.sampler import (
    DDPM_STEPS,
    karras_sigmas,
    sample_ddpm,
    sample_dpm,
    sample_heun,
    sample_trig,
)

LOW, HIGH = 0.002, 80.0
MEAN = torch.tensor([0.7, -0.3, 0.0, 0.2], dtype=torch.float64)
ROOT = torch.tensor(
    [[0.6, 0.0, 0.0, 0.0], [0.3, 0.4, 0.0, 0.0], [-0.2, 0.1, 0.5, 0.0], [0.1, 0.2, 0.3, 0.3]],
    dtype=torch.float64,
)
COVARIANCE = ROOT @ ROOT.T
"""y ~ N(MEAN, COVARIANCE) of four correlated pixels."""


def ideal(x, sigma, _number):
    """E[y | x] for x = y + sigma n."""
    gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + sigma.double() ** 2 * torch.eye(4, dtype=torch.float64))
    flat = x.flatten(1).double()
    return (MEAN + (flat - MEAN) @ gain.T).view_as(x).to(x.dtype)


def trig(noise, steps):
    return sample_trig(ideal, noise, steps, Preconditioning(0.5), LOW, HIGH)


def dpm(noise, steps):
    return sample_dpm(ideal, HIGH * noise, steps, 0.5, LOW, HIGH)


def heun(noise, steps):
    return sample_heun(ideal, HIGH * noise, steps, LOW, HIGH)


def affine_map(sampler, steps):
    """The sampler's output is A z + b in the noise z, since the ideal denoiser is affine: b and A, exactly."""
    probes = torch.cat([torch.zeros(1, 4), torch.eye(4)]).view(5, 1, 2, 2)
    out = sampler(probes, steps).flatten(1).double()
    return out[0], (out[1:] - out[0]).T


@pytest.mark.parametrize("sampler", [trig, dpm, heun])
def test_output_has_mean_and_covariance_of_the_data(sampler):
    mean, linear = affine_map(sampler, 100)
    # the exact flow from sigma_max to 0: each eigenvector of the covariance is scaled by sqrt(v s^2 / (v + s^2))
    values, vectors = torch.linalg.eigh(COVARIANCE)
    start = 1 - (values / (values + HIGH**2)).sqrt()
    torch.testing.assert_close(mean, vectors @ (start * (vectors.T @ MEAN)), atol=1e-3, rtol=0)
    torch.testing.assert_close(linear @ linear.T, COVARIANCE, atol=2e-3, rtol=0)
    torch.testing.assert_close(mean, MEAN, atol=1e-2, rtol=0)


@pytest.mark.parametrize("sampler", [trig, dpm, heun])
def test_few_steps_keep_the_mean_and_most_of_the_spread(sampler):
    mean, linear = affine_map(sampler, 20)
    torch.testing.assert_close(mean, MEAN, atol=2e-2, rtol=0)
    spread = (linear @ linear.T).diagonal().sqrt() / COVARIANCE.diagonal().sqrt()
    assert ((spread > 0.9) & (spread < 1.1)).all()


@pytest.mark.parametrize("sampler", [trig, dpm])
def test_one_evaluation_a_step_approaches_heun_as_steps_grow(sampler):
    noise = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    reference = heun(noise, 400)
    errors = [float((sampler(noise, steps) - reference).abs().max()) for steps in (25, 50, 100, 200)]
    for coarse, fine in itertools.pairwise(errors):
        assert fine < 0.6 * coarse
    assert errors[-1] < 2e-3


def ddpm_eigen_moments(steps=DDPM_STEPS):
    """Mean and variance of DDPM's output along each eigenvector, by its own recursion (2006.11239, eq. 7)."""
    betas = np.linspace(1e-4, 0.02, steps)
    kept = np.cumprod(1 - betas)
    before = np.append(1.0, kept[:-1])
    values, vectors = np.linalg.eigh(COVARIANCE.numpy())
    target = vectors.T @ MEAN.numpy()
    mean, variance = np.zeros(4), np.ones(4)
    for t in range(steps - 1, -1, -1):
        on_x0 = np.sqrt(before[t]) * betas[t] / (1 - kept[t])
        on_x = np.sqrt(1 - betas[t]) * (1 - before[t]) / (1 - kept[t])
        # E[y | z] along an eigenvector, z = sqrt(kept) y + sqrt(1 - kept) n
        gain = np.sqrt(kept[t]) * values / (kept[t] * values + 1 - kept[t])
        answer = target - gain * np.sqrt(kept[t]) * target
        added = betas[t] * (1 - before[t]) / (1 - kept[t])
        mean = on_x0 * (answer + gain * mean) + on_x * mean
        variance = (on_x0 * gain + on_x) ** 2 * variance + added
    return vectors, mean, variance


def test_ddpm_is_the_ancestral_sampler_of_the_paper():
    batch = 8000
    g = torch.Generator().manual_seed(2)
    noise = torch.randn(batch, 1, 2, 2, generator=g)
    # one generator for all samples; the scale is 1, so that z and x agree with the recursion
    out = sample_ddpm(ideal, noise, DDPM_STEPS, 1.0, [g]).flatten(1).double()
    vectors, mean, variance = ddpm_eigen_moments()
    along = out @ torch.from_numpy(vectors)
    error = 4 * variance**0.5 / batch**0.5  # four standard errors
    assert (np.abs(along.mean(0).numpy() - mean) < error).all()
    np.testing.assert_allclose(along.var(0).numpy(), variance, rtol=4 * (2 / batch) ** 0.5)
    # and that is the data, up to what 1,000 steps with the smaller variance lose
    np.testing.assert_allclose(variance, torch.linalg.eigvalsh(COVARIANCE).numpy(), rtol=0.04)
    torch.testing.assert_close(torch.cov(out.T), COVARIANCE, atol=0.03, rtol=0)
    torch.testing.assert_close(out.mean(0), MEAN, atol=0.03, rtol=0)


def test_ddpm_in_other_units_gives_the_same_samples_in_other_units():
    noise = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(3))

    def in_milli(x, sigma, number):
        return 1000 * ideal(x / 1000, sigma / 1000, number)

    a = sample_ddpm(ideal, noise, 50, 0.5, [torch.Generator().manual_seed(4)])
    b = sample_ddpm(in_milli, noise, 50, 500.0, [torch.Generator().manual_seed(4)])
    torch.testing.assert_close(1000 * a, b, rtol=1e-3, atol=0.5)


def test_noise_levels_fall_from_largest_to_zero():
    sigmas = karras_sigmas(20, LOW, HIGH)
    assert float(sigmas[0]) == pytest.approx(HIGH)
    assert float(sigmas[-2]) == pytest.approx(LOW)
    assert float(sigmas[-1]) == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize(("sampler", "evaluations"), [("trig", 7), ("dpm", 7), ("heun", 13), ("ddpm", 7)])
def test_evaluations_are_counted_from_zero(sampler, evaluations):
    seen = []

    def spy(x, sigma, number):
        seen.append(number)
        return ideal(x, sigma, number)

    noise = torch.zeros(1, 1, 2, 2)
    if sampler == "trig":
        sample_trig(spy, noise, 7, Preconditioning(0.5), LOW, HIGH)
    elif sampler == "dpm":
        sample_dpm(spy, noise, 7, 0.5, LOW, HIGH)
    elif sampler == "heun":
        sample_heun(spy, noise, 7, LOW, HIGH)
    else:
        sample_ddpm(spy, noise, 7, 0.5, [torch.Generator()])
    assert seen == list(range(evaluations))
