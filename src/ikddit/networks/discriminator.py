"""The implicit discriminator D_phi: is a token the teacher's (real) or the student's (fake)?"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ikddit.networks.blocks import SigmaEmbedding


def standardise(tokens: Float[Tensor, "B V D"]) -> Float[Tensor, "B V D"]:
    """z-score each token over its width, so that scale alone tells nothing."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


class ImplicitDiscriminator(nn.Module):
    """Token-wise conditional discriminator D_phi(token, position, sigma, condition), spectrally normalised."""

    def __init__(self, width: int, context_dim: int) -> None:
        super().__init__()
        self.sigma = SigmaEmbedding(width)
        self.pooled = nn.Linear(3 * context_dim, width)
        self.token = spectral_norm(nn.Linear(width, width))
        self.layers = nn.Sequential(
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(width, width)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Linear(width, 1)),
        )

    def forward(
        self,
        tokens: Float[Tensor, "B V D"],
        position: Float[Tensor, "B V D"],
        c_noise: Float[Tensor, " B"],
        pooled: Float[Tensor, "B 3C"],
    ) -> Float[Tensor, "B V"]:
        """Logits, larger for tokens that look like the teacher's."""
        context = (self.sigma(c_noise) + self.pooled(pooled))[:, None]
        hidden = self.token(standardise(tokens)) + position + context
        return self.layers(hidden).squeeze(-1)  # type: ignore[no-any-return]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Hinge loss of the discriminator: 2 where it knows nothing, 0 where it separates by the margin.

    >>> float(hinge_discriminator(torch.ones(2), -torch.ones(2)))
    0.0
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Float[Tensor, ""]:
    """Hinge loss of the student."""
    return -fake.mean()


def accuracy(real: Tensor, fake: Tensor) -> float:
    """Share of tokens told apart rightly; 0.5 is chance."""
    return float(torch.cat([(real > 0).flatten(), (fake < 0).flatten()]).float().mean())
