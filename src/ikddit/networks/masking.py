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
    batch: int, tokens: int, mask_ratio: float, generator: torch.Generator
) -> Int[Tensor, "B V"]:
    """Visible token positions of each wafer, sorted, drawn uniformly without replacement.

    At mask_ratio 0.5 on an even grid the draw is 2-of-4 structured: two of every 2x2 group of tokens, so that
    no region goes unseen.
    """
    side = int(tokens**0.5)
    if mask_ratio == 0.5 and side * side == tokens and side % 2 == 0:
        position = torch.arange(tokens).view(side // 2, 2, side // 2, 2).permute(0, 2, 1, 3).reshape(-1, 4)
        order = torch.rand(batch, len(position), 4, generator=generator).argsort(-1)[..., :2]
        chosen = position[None].expand(batch, -1, -1).gather(2, order)
        return chosen.reshape(batch, -1).sort(1).values
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
