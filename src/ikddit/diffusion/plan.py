"""What one sampling run does: sampler, steps, full or masked inference and its masks, guidance."""

from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from jaxtyping import Int
from torch import Tensor

from ikddit.diffusion.guidance import Guidance, GuidanceKind
from ikddit.diffusion.sampler import Sampler

Inference = Literal["full", "masked"]
FULL_ENDS = 2
"""Masked inference: this many first and last evaluations are full."""


@dataclass(frozen=True)
class SamplingPlan:
    """Everything a sampling run needs besides noise and condition."""

    steps: int = 20
    """Steps of the sampler; Heun takes 2 * steps - 1 evaluations, the others one each."""
    inference: Inference = "full"
    mask_ratio: float | None = None
    """Share of tokens hidden from the deep encoder in masked inference; None: as trained."""
    guidance: Guidance | None = None
    sampler: Sampler = "trig"

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations per sample, guidance apart."""
        return 2 * self.steps - 1 if self.sampler == "heun" else self.steps


class RareOptions(TypedDict, total=False):
    """Options of a sampling request that have good defaults."""

    guidance_kind: GuidanceKind
    """The weak denoiser: `cfg` (no condition; the default) or `path_drop` (no deep encoder)."""
    sigma_low: float
    """Guided above this noise level, in standard deviations of the residual."""
    sigma_high: float
    """Guided up to this noise level, in the same unit."""
    inference: Inference | None
    """`full` or `masked`; None takes what the acceptance gate decided."""
    sampler: Sampler
    """`trig` (default), `dpm`, `heun` or `ddpm`; the last is there to be compared with, at 1,000 steps."""


class SamplingOptions(RareOptions, total=False):
    """What may be said about sampling besides `n`, `steps` and `seed`; what is absent has its default."""

    mask_ratio: float | None
    """Share of tokens hidden from the deep encoder in masked inference; None: as trained."""
    guidance: float | None
    """Weight w of D_weak + w (D - D_weak); None or 1: unguided."""


def draw_order(batch: int, groups: Int[Tensor, " N"], generator: torch.Generator) -> Int[Tensor, "B N"]:
    """Token positions of each sample in the order in which masked inference shows them.

    The systematic sampling of `draw_visible`: tokens in order of their group, shuffled inside it; every fourth of
    them is one quarter of the order. So its halves are the 2-of-4 masks of training, and every shorter window is
    spread over the wafer.

    Args:
        groups: the 2x2 group of each token (`Encoder.groups`).
    """
    tokens = len(groups)
    key = groups.cpu() + torch.rand(batch, tokens, generator=generator, dtype=torch.float64)
    in_groups = key.argsort(1)
    quarters = []
    for first in (0, 2, 1, 3):
        part = in_groups[:, first::4]
        quarters.append(part.gather(1, torch.rand(part.shape, generator=generator).argsort(1)))
    first_half = sum(part.shape[1] for part in quarters[:2])
    order = torch.cat(quarters, dim=1)
    swapped = order.roll(-first_half, 1)
    return torch.where(torch.rand(batch, 1, generator=generator) < 0.5, order, swapped)


def visible_at(
    order: Int[Tensor, "B N"], number: int, evaluations: int, count: int
) -> Int[Tensor, "B V"] | None:
    """Positions the deep encoder sees at evaluation `number`, sorted; None for all of them.

    The middle evaluations take the next `count` positions of `order` in turn, which at mask ratio 0.5 are
    complementary halves A, B, A, B; the first and the last two are full.

    >>> order = torch.tensor([[3, 0, 2, 1]])
    >>> [visible_at(order, i, 6, 2) for i in (1, 2, 3, 4)]
    [None, tensor([[0, 3]]), tensor([[1, 2]]), None]
    """
    tokens = order.shape[1]
    if count >= tokens or not FULL_ENDS <= number < evaluations - FULL_ENDS:
        return None
    first = (number - FULL_ENDS) * count % tokens
    return order.roll(-first, 1)[:, :count].sort(1).values
