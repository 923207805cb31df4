"""Samplers: DPM-Solver++(2M) through diffusers' EDM scheduler, and EDM's Heun as the reference."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Denoise = Callable[[Tensor, Tensor, int], Tensor]
"""(x, sigma as a scalar tensor, number of the step) -> D(x; sigma)."""


def karras_sigmas(
    steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> Float[Tensor, " steps+1"]:
    """Noise levels from sigma_max down to sigma_min, then 0 (EDM eq. 5).

    >>> [round(v, 3) for v in karras_sigmas(3, 0.1, 10.0).tolist()]
    [10.0, 1.451, 0.1, 0.0]
    """
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)]).float()


def sample_dpm(
    denoise: Denoise,
    noise: Float[Tensor, "B C H W"],
    steps: int,
    sigma_data: float,
    sigma_min: float,
    sigma_max: float,
) -> Float[Tensor, "B C H W"]:
    """DPM-Solver++(2M), one evaluation a step.

    Args:
        denoise: the preconditioned denoiser.
        noise: unit Gaussian noise; its shape is the shape of the samples.
        steps: evaluations.
    """
    from diffusers import EDMDPMSolverMultistepScheduler

    # Our denoiser returns D(x) itself, which the scheduler calls `epsilon` output turned to x0 by its own
    # preconditioning; so hand it the inverse of that preconditioning.
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        sigma_data=sigma_data,
        solver_order=2,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    x: Tensor = noise * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        x0 = denoise(x, sigma, i)
        total = sigma**2 + sigma_data**2
        output = (x0 - x * sigma_data**2 / total) / (sigma * sigma_data / total.sqrt())
        x = scheduler.step(output, t, x).prev_sample
    return x


def sample_heun(
    denoise: Denoise, noise: Float[Tensor, "B C H W"], steps: int, sigma_min: float, sigma_max: float
) -> Float[Tensor, "B C H W"]:
    """EDM algorithm 1 without churn: Heun's second-order method, 2 * steps - 1 evaluations."""
    sigmas = karras_sigmas(steps, sigma_min, sigma_max)
    x = noise * sigmas[0]
    for i in range(steps):
        here, there = sigmas[i], sigmas[i + 1]
        slope = (x - denoise(x, here, i)) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + (ahead - denoise(ahead, there, i)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    return x


Sampler = Literal["dpm", "heun"]
