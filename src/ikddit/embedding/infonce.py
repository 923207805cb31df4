"""InfoNCE with several positives, and retrieval figures."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def same_ids(ids: Int[Tensor, "B I"]) -> Bool[Tensor, "B B"]:
    """True where two wafers carry the same ids: they are positives of one another, not negatives."""
    return (ids[:, None] == ids[None]).all(-1)


def info_nce(
    a: Float[Tensor, "B D"],
    b: Float[Tensor, "B D"],
    temperature: Float[Tensor, ""],
    positive: Bool[Tensor, "B B"] | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE of unit vectors; with `positive`, the target is shared by all positives of a row.

    Args:
        a, b: unit vectors of the same wafers in two modalities.
        temperature: softmax temperature, > 0.
        positive: True where row i of `a` may also match row j of `b`; the diagonal must be True.

    >>> eye = torch.eye(4)
    >>> bool(info_nce(eye, eye, torch.tensor(0.01)) < 1e-6)
    True
    """
    logits = a @ b.T / temperature
    if positive is None:
        positive = torch.eye(len(a), dtype=torch.bool, device=a.device)
    target = positive.float()
    rows = target / target.sum(1, keepdim=True)
    cols = target.T / target.T.sum(1, keepdim=True)
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, cols)) / 2


def retrieval(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], k: int, positive: Bool[Tensor, "B B"]
) -> float:
    """Share of rows of `a` with a positive among the k nearest rows of `b` (1/B .. 1; chance is about k/B)."""
    top = (a @ b.T).topk(min(k, len(b)), dim=1).indices
    return float(positive.gather(1, top).any(1).float().mean())
