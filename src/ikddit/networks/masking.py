"""Which tokens the student sees: draw, gather, scatter."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def visible_count(tokens: int, mask_ratio: float) -> int:
    """Tokens left visible, at least one.

    >>> visible_count(64, 0.5), visible_count(64, 0.7), visible_count(4, 0.99)
    (32, 19, 1)
    """
    return max(1, round(tokens * (1 - mask_ratio)))


def draw_visible(
    batch: int,
    tokens: int,
    mask_ratio: float,
    generator: torch.Generator,
    groups: Int[Tensor, " N"] | None = None,
) -> Int[Tensor, "B V"]:
    """Visible token positions of each wafer, sorted, drawn uniformly without replacement.

    At mask_ratio 0.5 with `groups` (the 2x2 group of each token) and an even number of tokens the draw is 2-of-4
    structured: two of every whole group and half of all, so that no region goes unseen.
    """
    if mask_ratio == 0.5 and groups is not None and tokens % 2 == 0:
        # Systematic sampling: tokens in order of their group, shuffled inside it, every second one. Four in a row
        # hold exactly two; groups cut by the wafer's edge give half of themselves up to one.
        key = groups.cpu() + torch.rand(batch, tokens, generator=generator, dtype=torch.float64)
        first = torch.randint(0, 2, (batch, 1), generator=generator)
        every_second = 2 * torch.arange(tokens // 2) + first
        return key.argsort(1).gather(1, every_second).sort(1).values
    count = visible_count(tokens, mask_ratio)
    return torch.rand(batch, tokens, generator=generator).argsort(1)[:, :count].sort(1).values


def complement(visible: Int[Tensor, "B V"], tokens: int) -> Int[Tensor, "B W"]:
    """The hidden positions, sorted.

    >>> complement(torch.tensor([[0, 2]]), 4)
    tensor([[1, 3]])
    """
    hidden = torch.ones(len(visible), tokens, dtype=torch.bool, device=visible.device)
    hidden.scatter_(1, visible, False)
    return hidden.nonzero()[:, 1].view(len(visible), -1)


def gather_tokens(x: Float[Tensor, "B N D"], visible: Int[Tensor, "B V"]) -> Float[Tensor, "B V D"]:
    """Tokens at the visible positions."""
    return x.gather(1, visible[..., None].expand(-1, -1, x.shape[-1]))


def scatter_tokens(
    base: Float[Tensor, "B N D"], visible: Int[Tensor, "B V"], x: Float[Tensor, "B V D"]
) -> Float[Tensor, "B N D"]:
    """`base` with the tokens at the visible positions replaced by `x`."""
    return base.scatter(1, visible[..., None].expand(-1, -1, x.shape[-1]), x.to(base.dtype))
