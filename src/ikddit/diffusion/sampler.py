"""Samplers: Adams-Bashforth in each mode's angle; diffusers' DPM-Solver++(2M), EDM's Heun and DDPM to compare with."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ikddit.diffusion.edm import Preconditioning

Denoise = Callable[[Tensor, Tensor, int], Tensor]
"""(x, sigma as a scalar tensor, number of the evaluation from 0) -> D(x; sigma)."""
Sampler = Literal["trig", "dpm", "heun", "ddpm"]
DDPM_STEPS = 1000
"""Steps of the noise schedule with which DDPM models, the public IKDDiT code among them, are trained."""


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


def sample_trig(
    denoise: Denoise,
    noise: Float[Tensor, "B C H W"],
    steps: int,
    precondition: Preconditioning,
    sigma_min: float,
    sigma_max: float,
) -> Float[Tensor, "B C H W"]:
    """Adams-Bashforth of second order for the network's output, in each mode's own angle; one evaluation a step.

    With z = (Sigma + sigma^2)^-1/2 x and u = atan(sigma / sd) of a mode, EDM's flow dx/dsigma = (x - D) / sigma is
    dz/du = -F(x), F being the preconditioned network (TrigFlow, 2410.11081, mode by mode). So what Sigma says of
    the residual is integrated exactly: with F = 0 samples have the covariance Sigma after any number of steps, and
    steps are spent on F alone. Starts from residual + sigma_max noise: z is unit noise.

    Args:
        denoise: the preconditioned denoiser.
        noise: unit Gaussian noise; its shape is the shape of the samples.
        steps: evaluations.
        precondition: that of `denoise`.
    """
    sigmas = karras_sigmas(steps, sigma_min, sigma_max).to(noise.device)
    z, last = noise, None
    for i in range(steps):
        here, there = sigmas[i], sigmas[i + 1]
        x = precondition.noisy(z, here)
        raw = precondition.output(denoise(x, here, i), x, here)
        z = z + precondition.turned(raw, here, there)
        if last is not None:
            z = z + precondition.turned(raw - last, here, there, sigmas[i - 1])
        last = raw
    return precondition.noisy(z, sigmas[-1])


def sample_dpm(
    denoise: Denoise,
    start: Float[Tensor, "B C H W"],
    steps: int,
    sigma_data: float,
    sigma_min: float,
    sigma_max: float,
) -> Float[Tensor, "B C H W"]:
    """DPM-Solver++(2M), one evaluation a step.

    Args:
        denoise: the preconditioned denoiser.
        start: data + sigma_max * noise, or its best approximation; its shape is the shape of the samples.
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
    x = start
    for i, t in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        x0 = denoise(x, sigma, i)
        total = sigma**2 + sigma_data**2
        output = (x0 - x * sigma_data**2 / total) / (sigma * sigma_data / total.sqrt())
        x = scheduler.step(output, t, x).prev_sample
    return x


def sample_heun(
    denoise: Denoise, start: Float[Tensor, "B C H W"], steps: int, sigma_min: float, sigma_max: float
) -> Float[Tensor, "B C H W"]:
    """EDM algorithm 1 without churn: Heun's second-order method, 2 * steps - 1 evaluations; `start` as above."""
    sigmas = karras_sigmas(steps, sigma_min, sigma_max)
    x = start
    for i in range(steps):
        here, there = sigmas[i], sigmas[i + 1]
        slope = (x - denoise(x, here, 2 * i)) / here
        ahead = x + (there - here) * slope
        if there > 0:
            slope = (slope + (ahead - denoise(ahead, there, 2 * i + 1)) / there) / 2
            ahead = x + (there - here) * slope
        x = ahead
    return x


def sample_ddpm(
    denoise: Denoise,
    noise: Float[Tensor, "B C H W"],
    steps: int,
    scale: float,
    generators: list[torch.Generator],
) -> Float[Tensor, "B C H W"]:
    """DDPM's ancestral sampling (2006.11239, algorithm 2) with linear betas, for comparison only.

    DDPM diffuses z_t = sqrt(a_t) y / scale + sqrt(1 - a_t) n with unit-variance data y / scale. Divided by
    sqrt(a_t) / scale that is x = y + sigma n with sigma = scale sqrt((1 - a_t) / a_t), which is what the EDM
    denoiser reads (EDM, appendix C.1); its answer D(x; sigma) / scale is the scheduler's predicted sample. The
    added noise has the posterior variance (diffusers' `fixed_small`).

    Args:
        denoise: the preconditioned denoiser.
        noise: unit Gaussian noise; its shape is the shape of the samples.
        steps: ancestral steps, up to 1,000; fewer skip steps of the schedule evenly.
        scale: standard deviation of the data, in its units.
        generators: one per sample, of the noise added at every step.
    """
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=DDPM_STEPS, beta_schedule="linear", prediction_type="sample", clip_sample=False
    )
    scheduler.set_timesteps(steps)
    z: Tensor = noise
    for number, t in enumerate(scheduler.timesteps):
        kept = scheduler.alphas_cumprod[t]
        sigma = scale * ((1 - kept) / kept).sqrt()
        sample = denoise(z * scale / kept.sqrt(), sigma, number) / scale
        z = scheduler.step(sample, t, z, generator=generators).prev_sample
    return z * scale
