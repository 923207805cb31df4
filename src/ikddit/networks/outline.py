"""Which patches of a 64x64 map lie on the wafer: the others are no tokens at all."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ikddit.overlay.grid import wafer_grid

Outline = Literal["wafer", "square"]
"""`wafer`: patches with a pixel inside the 147 mm usable radius; `square`: every patch (latent maps)."""


def outline_positions(outline: Outline, side: int) -> Int[Tensor, " A"]:
    """Grid positions (row by row, row 0 on top) of the patches that are tokens.

    >>> outline_positions("square", 8).shape, outline_positions("wafer", 8).shape
    (torch.Size([64]), torch.Size([60]))
    >>> 0 in outline_positions("wafer", 8)
    False
    """
    if outline == "square":
        return torch.arange(side * side)
    usable = torch.from_numpy(wafer_grid().usable)[None].float()
    return F.adaptive_max_pool2d(usable, side).flatten().nonzero()[:, 0]


def groups_of_four(positions: Int[Tensor, " A"], side: int) -> Int[Tensor, " A"]:
    """Number of the 2x2 group of patches that each token belongs to (for `draw_visible`).

    >>> groups_of_four(torch.arange(16), 4).view(4, 4)[0].tolist()
    [0, 0, 1, 1]
    """
    row, col = positions // side, positions % side
    return row // 2 * ((side + 1) // 2) + col // 2


def valid_tokens(
    valid: Float[Tensor, "B 1 64 64"], positions: Int[Tensor, " A"], side: int
) -> Bool[Tensor, "B A"]:
    """True for tokens whose patch has at least one valid pixel.

    >>> corner = torch.zeros(1, 1, 64, 64); corner[..., 63, 63] = 1
    >>> valid_tokens(corner, torch.arange(4), 2)
    tensor([[False, False, False,  True]])
    """
    return F.adaptive_max_pool2d(valid, side).flatten(1)[:, positions] > 0
