"""Discriminators: what pulls the student's tokens towards the teacher's, behind one interface.

`implicit` is IKDDiT's D_phi; `cosine` regresses to the teacher's tokens (REPA 2410.06940, SRA 2505.02831); `prototype`
compares soft assignments to learned prototypes (SD-DiT 2403.17004, after DINO 2104.14294).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ikddit.networks.blocks import SigmaEmbedding
from ikddit.params import DiscriminatorKind


def standardise(tokens: Float[Tensor, "B V D"]) -> Float[Tensor, "B V D"]:
    """z-score each token over its width, so that scale alone tells nothing."""
    return F.layer_norm(tokens.float(), tokens.shape[-1:])


@dataclass(frozen=True)
class TokenContext:
    """Where and when the tokens were made."""

    position: Float[Tensor, "B V D"]
    c_noise: Float[Tensor, " B"]
    pooled: Float[Tensor, "B 3C"]


@dataclass(frozen=True)
class Judgement:
    """Losses of both sides; each carries gradients to its own side alone."""

    student: Float[Tensor, ""]
    """For the student's tokens; Eq. 8 weighs it with lambda2."""
    own: Float[Tensor, ""]
    """For the discriminator's parameters, through their own optimiser."""
    accuracy: Float[Tensor, ""]
    """Share of tokens recognised; what that means is said by each kind."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradient reaches the module's parameters inside."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class Discriminator(nn.Module, ABC):
    """Judges student tokens (`fake`) beside the teacher's (`real`) at the same places of the same wafers."""

    @abstractmethod
    def own_loss(
        self, real: Float[Tensor, "B V D"], fake: Float[Tensor, "B V D"], context: TokenContext
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Loss of the discriminator's parameters, and its accuracy."""

    @abstractmethod
    def student_loss(
        self, real: Float[Tensor, "B V D"], fake: Float[Tensor, "B V D"], context: TokenContext
    ) -> Float[Tensor, ""]:
        """Loss of the student's tokens."""

    def judge(
        self, real: Float[Tensor, "B V D"], fake: Float[Tensor, "B V D"], context: TokenContext
    ) -> Judgement:
        """Both losses; the teacher gets no gradient from either."""
        real = real.detach()
        own, accuracy = self.own_loss(real, fake.detach(), context)
        # the student is judged by a discriminator that its own gradient must not train
        with frozen(self):
            return Judgement(self.student_loss(real, fake, context), own, accuracy)

    def after_step(self) -> None:
        """Move what moves without a gradient; called after each optimiser step. Most kinds have nothing to move."""

    def batch_statistics(self) -> list[Tensor]:
        """Buffers that `after_step` moves by the batch; all others follow from the weights. Most kinds have none."""
        return []


class ImplicitDiscriminator(Discriminator):
    """Token-wise conditional D_phi(token, position, sigma, condition), spectrally normalised, hinge loss.

    Accuracy: share of tokens told apart rightly; 0.5 is chance.
    """

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

    def forward(self, tokens: Float[Tensor, "B V D"], context: TokenContext) -> Float[Tensor, "B V"]:
        """Logits, larger for tokens that look like the teacher's."""
        where = (self.sigma(context.c_noise) + self.pooled(context.pooled))[:, None]
        hidden = self.token(standardise(tokens)) + context.position + where
        return self.layers(hidden).squeeze(-1)  # type: ignore[no-any-return]

    def own_loss(self, real: Tensor, fake: Tensor, context: TokenContext) -> tuple[Tensor, Tensor]:
        """Hinge loss: 2 where it knows nothing, 0 where it separates by the margin."""
        real_logits, fake_logits = self(real, context), self(fake, context)
        return hinge_discriminator(real_logits, fake_logits), accuracy(real_logits, fake_logits)

    def student_loss(self, real: Tensor, fake: Tensor, context: TokenContext) -> Tensor:
        """Hinge loss of the generator: look like the teacher."""
        return hinge_generator(self(fake, context))


class CosineRegression(Discriminator):
    """1 - cos(h(student token), teacher token) with a learned head h on the student's side.

    Accuracy: share of student tokens nearest to their own teacher token among those of the same wafer; chance is
    one over the number of tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, tokens: Float[Tensor, "B V D"]) -> Float[Tensor, "B V D"]:
        """Predicted teacher tokens."""
        return self.head(standardise(tokens))  # type: ignore[no-any-return]

    def own_loss(self, real: Tensor, fake: Tensor, context: TokenContext) -> tuple[Tensor, Tensor]:
        """The head learns the regression too; between 0 and 2."""
        guess, target = self(fake), standardise(real)
        with torch.no_grad():
            nearest = (F.normalize(guess, dim=-1) @ F.normalize(target, dim=-1).transpose(1, 2)).argmax(-1)
            own = torch.arange(real.shape[1], device=real.device)
            found = (nearest == own).float().mean()
        return 1 - F.cosine_similarity(guess, target, dim=-1).mean(), found

    def student_loss(self, real: Tensor, fake: Tensor, context: TokenContext) -> Tensor:
        """The same regression, for the tokens."""
        return 1 - F.cosine_similarity(self(fake), standardise(real), dim=-1).mean()


class Prototypes(Discriminator):
    """Cross-entropy between soft assignments of teacher and student tokens to learned prototypes.

    The teacher's head is an EMA of the student's; its logits are centred by their running mean, so that no prototype
    takes all, and sharpened by a lower temperature, so that they do not become uniform (DINO). The logits are cosines,
    hence the low temperatures; a centre that follows as fast as DINO's (0.9) let assignments of small batches go
    uniform, one that hardly moves (0.999) let one prototype take all.

    Accuracy: share of tokens for which both prefer the same prototype.
    """

    centre: Tensor

    def __init__(
        self,
        width: int,
        prototypes: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.02,
        decay: float = 0.99,
        centre_decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.decay, self.centre_decay = decay, centre_decay
        self.head = PrototypeHead(width, prototypes)
        self.teacher_head = deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(prototypes))
        self._seen: Tensor | None = None

    def assignments(
        self, real: Float[Tensor, "B V D"], fake: Float[Tensor, "B V D"]
    ) -> tuple[Float[Tensor, "B V K"], Float[Tensor, "B V K"]]:
        """Teacher's probabilities (no gradient) and student's log-probabilities."""
        with torch.no_grad():
            logits = self.teacher_head(real)
            self._seen = logits.flatten(0, -2).mean(0)
            target = ((logits - self.centre) / self.teacher_temperature).softmax(-1)
        return target, (self.head(fake) / self.student_temperature).log_softmax(-1)

    def own_loss(self, real: Tensor, fake: Tensor, context: TokenContext) -> tuple[Tensor, Tensor]:
        """Cross-entropy in nats, for head and prototypes; ln K where nothing is known."""
        target, guess = self.assignments(real, fake)
        agreed = (target.argmax(-1) == guess.argmax(-1)).float().mean()
        return -(target * guess).sum(-1).mean(), agreed

    def student_loss(self, real: Tensor, fake: Tensor, context: TokenContext) -> Tensor:
        """The same cross-entropy, for the tokens."""
        target, guess = self.assignments(real, fake)
        return -(target * guess).sum(-1).mean()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher's head and the centre."""
        for kept, new in zip(self.teacher_head.parameters(), self.head.parameters(), strict=True):
            kept.lerp_(new, 1 - self.decay)
        if self._seen is not None:
            self.centre.lerp_(self._seen, 1 - self.centre_decay)

    def batch_statistics(self) -> list[Tensor]:
        """The centre."""
        return [self.centre]


class PrototypeHead(nn.Module):
    """Token -> cosine with each prototype in a narrow space."""

    def __init__(self, width: int, prototypes: int, narrow: int = 64) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, narrow))
        self.prototypes = nn.Parameter(torch.randn(prototypes, narrow))

    def forward(self, tokens: Float[Tensor, "B V D"]) -> Float[Tensor, "B V K"]:
        """Logits between -1 and 1."""
        place = F.normalize(self.mlp(standardise(tokens)).float(), dim=-1)
        # in bf16 a cosine is good to 0.004, a fifth of the teacher's temperature
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(place, F.normalize(self.prototypes.float(), dim=-1))


def make_discriminator(kind: DiscriminatorKind, width: int, context_dim: int) -> Discriminator | None:
    """The discriminator that `train.discriminator` names; None for `none`.

    >>> type(make_discriminator("cosine", 8, 4)).__name__, make_discriminator("none", 8, 4)
    ('CosineRegression', None)
    """
    if kind == "implicit":
        return ImplicitDiscriminator(width, context_dim)
    if kind == "cosine":
        return CosineRegression(width)
    if kind == "prototype":
        return Prototypes(width)
    return None


def hinge_discriminator(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Hinge loss of the discriminator: 2 where it knows nothing, 0 where it separates by the margin.

    >>> float(hinge_discriminator(torch.ones(2), -torch.ones(2)))
    0.0
    """
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Float[Tensor, ""]:
    """Hinge loss of the student."""
    return -fake.mean()


def accuracy(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """Share of tokens told apart rightly; 0.5 is chance."""
    return torch.cat([(real > 0).flatten(), (fake < 0).flatten()]).float().mean()
