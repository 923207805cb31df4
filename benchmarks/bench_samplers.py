"""How exact are the samplers in few steps? Spread and mean of samples where the denoiser is known in closed form.

    python benchmarks/bench_samplers.py [--steps 6 10 20] [--explained 0 0.5]

Needs `dvc repro train`: the modes and variances are those of models/student. Its network is replaced by what an ideal
one would say if the condition explained a share of every mode's variance: residual ~ N(m, (1 - share) Sigma). The flow
is linear then, so one map of noise gives every mode's factor exactly. Prints one JSON object; by mode (1 is the leading
one, `rest` what is outside the modes) `sd` over the data's standard deviation, and `mean`, the part of m that is kept.
"""

import argparse
import copy
from collections.abc import Callable

import torch
from jaxtyping import Float
from ratios import Ratio, print_result
from torch import Tensor

from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.sampler import sample_dpm, sample_heun, sample_trig
from ikddit.generator import Generator

SHOWN = (1, 2, 8, 32, 64)


def closed_form(
    p: Preconditioning, share: float
) -> tuple[Callable[[Tensor, Tensor, int], Tensor], Float[Tensor, " K"]]:
    """E[y | x] for y ~ N(m, (1 - share) Sigma), and the scores of m, one standard deviation of what is explained."""
    left = copy.deepcopy(p)
    left.mode_variance *= 1 - share
    left.rest_variance *= 1 - share
    scores = (share * p.mode_variance).sqrt()
    mean = (scores @ p.modes).view(1, 2, 64, 64)

    def denoise(x: Tensor, sigma: Tensor, _number: int) -> Tensor:
        return mean + left.linear_estimate(x - mean, sigma.expand(len(x)))

    return denoise, scores


def factors(
    sample: Callable[[Tensor], Tensor], p: Preconditioning, share: float, scores: Tensor
) -> dict[str, dict[str, float]]:
    """By mode: standard deviation over the data's, and the part of the mean that is kept."""
    noise = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    out = sample(torch.cat([torch.zeros_like(noise), noise])).flatten(1)
    drawn, unit = out[1] - out[0], noise.flatten()
    in_modes, unit_modes = p.modes @ drawn, p.modes @ unit
    rest, unit_rest = drawn - in_modes @ p.modes, unit - unit_modes @ p.modes
    sd = in_modes / unit_modes / ((1 - share) * p.mode_variance).sqrt()
    rest_sd = (rest @ unit_rest) / unit_rest.square().sum() / ((1 - share) * p.rest_variance).sqrt()
    found = {f"mode {k}": {"sd": round(float(sd[k - 1]), 4)} for k in SHOWN if k <= len(p.modes)}
    if share:
        kept = (p.modes @ out[0]) / scores
        for k in SHOWN[: len(found)]:
            found[f"mode {k}"]["mean"] = round(float(kept[k - 1]), 4)
    return found | {"rest": {"sd": round(float(rest_sd), 4)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 10, 20])
    parser.add_argument(
        "--explained", type=float, nargs="+", default=[0.0, 0.5], help="shares of the variance"
    )
    args = parser.parse_args()
    model = Generator.load("models/student").model
    p, config = model.precondition, model.config
    low, high = config.sigma_min, config.sigma_max

    def start(noise: Tensor) -> Tensor:
        return p.noisy(noise, torch.tensor(high))

    result: dict[str, object] = {"sigma_max": high}
    ratios = []
    with torch.inference_mode():
        for share in args.explained:
            denoise, scores = closed_form(p, share)
            for steps in args.steps:
                ways = {
                    "trig": lambda z, d=denoise, n=steps: sample_trig(d, z, n, p, low, high),
                    "dpm": lambda z, d=denoise, n=steps: sample_dpm(
                        d, start(z), n, config.sigma_data, low, high
                    ),
                    "heun": lambda z, d=denoise, n=steps: sample_heun(d, start(z), n, low, high),
                }
                for name, sample in ways.items():
                    found = factors(sample, p, share, scores)
                    result[f"{name}, {steps} steps, {share:.0%} explained"] = found
                    said = f"sd of mode 1: {name}, {steps} steps / data, {share:.0%} explained"
                    ratios.append(Ratio(said, found["mode 1"]["sd"]))
    print_result(result, ratios)


if __name__ == "__main__":
    main()
