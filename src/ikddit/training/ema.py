"""Exponential moving averages of weights."""

import torch
from torch import Tensor, nn


def power_decay(step: int, gamma: float) -> float:
    """Decay of the power-function EMA (EDM2, 2312.02696 eq. 127): beta = (1 - 1/t)^(gamma + 1).

    >>> power_decay(1, 6.94), round(power_decay(100, 6.94), 4)
    (0.0, 0.9233)
    """
    return float((1 - 1 / step) ** (gamma + 1))


@torch.no_grad()
def update_average(average: nn.Module, source: nn.Module, decay: float | Tensor) -> None:
    """average <- decay * average + (1 - decay) * source, for parameters; buffers are copied.

    One call for all parameters: a loop over the tensors costs a GPU one launch per tensor. A decay that is a tensor is
    read where it lies.
    """
    averages: list[Tensor] = list(average.parameters())
    sources: list[Tensor] = list(source.parameters())
    if isinstance(decay, Tensor):
        steps = torch._foreach_sub(sources, averages)
        torch._foreach_mul_(steps, 1 - decay)
        torch._foreach_add_(averages, steps)
    else:
        torch._foreach_lerp_(averages, sources, 1 - decay)
    kept, new = list(average.buffers()), list(source.buffers())
    if kept:
        torch._foreach_copy_(kept, new)
