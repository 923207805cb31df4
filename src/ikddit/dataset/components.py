"""Scores of maps on principal components where marks are missing."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

GAP_ERROR = 1e-3
"""What is left of a projection's error when a gap counts as settled."""
GAP_ROUNDS = 12


def component_scores(
    maps: Float[Tensor, "B P"], valid: Float[Tensor, "B P"], basis: Float[Tensor, "K P"]
) -> Float[Tensor, "B K"]:
    """Scores of maps on orthonormal components, from the pixels that were measured.

    A plain projection takes a pixel that was not measured for one without deviation, and is too small by the share
    of such pixels. Here gaps are filled with what the other pixels say of the components, and the maps projected
    again (the expectation step of EM for principal components; Roweis 1998), until a gap at random is settled to
    `GAP_ERROR`; of a gap so large that components cannot be told from one another, `GAP_ROUNDS` rounds leave part.

    Args:
        maps: rows of pixels; what lies under gaps is ignored.
        valid: 1 where measured, else 0.
        basis: orthonormal rows, or zero rows for components that are not there.
    """
    support = basis.any(0)
    gap = (1 - valid) * support
    share = gap.sum(1) / support.sum().clamp(min=1)
    # a wafer's number of rounds is its own: it must not depend on the wafers beside it
    rounds = (math.log(GAP_ERROR) / share.clamp(min=1e-9, max=0.99).log()).ceil().clamp(max=GAP_ROUNDS)
    rounds = torch.where((share > 0) & (share < 1), rounds, torch.zeros_like(rounds))
    first = (maps * valid) @ basis.T
    scores = first
    for number in range(int(rounds.max()) if len(rounds) else 0):
        filled = first + ((scores @ basis) * gap) @ basis.T
        scores = torch.where((number < rounds)[:, None], filled, scores)
    return scores
