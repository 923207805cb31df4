"""EDM preconditioning and training noise (Karras et al. 2206.00364, table 1)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Preconditioning:
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), with sigma_data measured on the training data.

    >>> p = Preconditioning(sigma_data=0.5)
    >>> [round(float(v), 4) for v in p.coefficients(torch.tensor(0.5))]
    [0.5, 0.3536, 1.4142, -0.1733]
    """

    sigma_data: float

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise at `sigma`."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        return c_skip, sigma * self.sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """Loss weight lambda(sigma): makes the effective weight of F uniform over sigma."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


def draw_sigma(
    batch: int, p_mean: float, p_std: float, generator: torch.Generator
) -> Float[Tensor, " batch"]:
    """Log-normal training noise levels: ln sigma ~ N(p_mean, p_std^2)."""
    return (torch.randn(batch, generator=generator) * p_std + p_mean).exp()


def masked_mean(values: Float[Tensor, "B C H W"], valid: Float[Tensor, "B 1 H W"]) -> Float[Tensor, " B"]:
    """Mean of each map over its valid pixels (all channels); 0 where there are none."""
    total = (values * valid).sum((1, 2, 3))
    return total / (valid.sum((1, 2, 3)) * values.shape[1]).clamp(min=1)
