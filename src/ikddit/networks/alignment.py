"""How alike teacher and student tokens are, watched beside the losses: cosine and linear CKA.

Figures stay on the device: reading one would make a GPU wait in every step.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ikddit.networks.discriminator import standardise


def token_cosine(real: Float[Tensor, "B V D"], fake: Float[Tensor, "B V D"]) -> Float[Tensor, ""]:
    """Mean cosine of z-scored tokens at the same places, -1..1."""
    return F.cosine_similarity(standardise(real), standardise(fake.detach()), dim=-1).mean()


@torch.no_grad()
def linear_cka(x: Float[Tensor, "M D"], y: Float[Tensor, "M E"]) -> Float[Tensor, ""]:
    """Linear centred kernel alignment of two sets of features of the same M tokens (Kornblith, 1905.00414).

    0..1; 1 when one set is the other up to rotation, isotropic scale and shift, which a cosine does not see.
    NaN when a set is constant.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> round(float(linear_cka(x, 3 * x.flip(1) + 5)), 6)
    1.0
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = (v.float() - v.float().mean(0) for v in (x, y))
        shared = (x.T @ y).square().sum()
        alike: Tensor = shared / ((x.T @ x).norm() * (y.T @ y).norm())
        return alike


def token_cka(real: Float[Tensor, "B V D"], fake: Float[Tensor, "B V D"]) -> Float[Tensor, ""]:
    """Linear CKA of z-scored tokens, all tokens of the batch together."""
    return linear_cka(standardise(real).flatten(0, 1), standardise(fake.detach()).flatten(0, 1))
