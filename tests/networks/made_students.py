"""Small students and conditions that several tests of the room share."""

import torch

from ikddit.embedding.encoders import ConditionTokens
from ikddit.networks.student import Student


def made_condition(batch: int, tokens: int = 5, dim: int = 16, seed: int = 0) -> ConditionTokens:
    g = torch.Generator().manual_seed(seed)
    return ConditionTokens(
        torch.randn(batch, tokens, dim, generator=g),
        torch.zeros(batch, tokens, dtype=torch.bool),
        torch.randn(batch, 3 * dim, generator=g),
    )


def woken(student: Student, seed: int = 0) -> Student:
    """The student with every zero-initialised layer and gate set, so that every path reaches the output."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2, generator=g)
    return student.eval()
