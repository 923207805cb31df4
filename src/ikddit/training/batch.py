"""What the loop reads, and one step's batch of it."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ikddit.diffusion.edm import draw_sigma
from ikddit.embedding.conditions import gather_conditions
from ikddit.embedding.encoders import ConditionTokens, UnifiedEmbedding
from ikddit.networks.masking import draw_visible
from ikddit.params import Params
from ikddit.training.distributed import ALONE, Workers
from ikddit.training.objective import TrainingBatch

if TYPE_CHECKING:
    from ikddit.dataset.arrow import PreparedSplit

log = logging.getLogger("ikddit")
GPU_SHARE = 0.5
"""Of a GPU's free memory that training data may take."""


@dataclass(frozen=True)
class TrainingData:
    """What the loop reads: residuals (network units, zero where invalid), masks and condition tokens."""

    residual: Tensor
    valid: Tensor
    condition: "ConditionTokens | LearningConditions"
    """Condition tokens of all wafers, or encoders that are trained and give those of the wafers asked for."""
    whole: Bool[Tensor, " n"] | None = None
    """True for a wafer whose every token has a valid pixel, in main memory; None: not known."""

    def on(self, device: torch.device) -> "TrainingData":
        """On a GPU if they fit in half of its free memory, so that batches are gathered there; else as they are."""
        if device.type != "cuda" or isinstance(self.condition, LearningConditions):
            return self
        size = sum(t.nbytes for t in (self.residual, self.valid, *self.condition.parts))
        if size > torch.cuda.mem_get_info(device)[0] * GPU_SHARE:
            log.info("training data stay in main memory: they would take more than half of the GPU's")
            return self
        return TrainingData(
            self.residual.to(device), self.valid.to(device), self.condition.to(device), self.whole
        )


@dataclass(frozen=True)
class LearningConditions:
    """Condition tokens from encoders that learn with the student (`embed.contrastive: false`)."""

    split: "PreparedSplit"
    sigma_nm: float
    embedding: UnifiedEmbedding
    """The very one of the model that is trained."""

    def __getitem__(self, index: Int[Tensor, " B"]) -> ConditionTokens:
        conditions = gather_conditions(self.split, index.cpu().numpy(), self.sigma_nm)
        return self.embedding(conditions.to(self.embedding.log_temperature.device))  # type: ignore[no-any-return]


def tail_start(params: Params) -> int:
    """First step of the unmasked tail."""
    return round(params.train.steps * (1 - params.train.unmasked_tail))


def draw_batch(
    data: TrainingData,
    step: int,
    params: Params,
    tokens: int,
    groups: Tensor | None = None,
    *,
    workers: Workers = ALONE,
    device: torch.device | None = None,
) -> TrainingBatch:
    """This process's rows of step `step`'s batch, on `device` (default: where the data are).

    Nothing here makes a GPU wait: what goes there goes without blocking.

    Everything random derives from (seed, step), so resume needs no sampler state, and every process of several
    draws the same step before it takes its rows. The noise is drawn on the device: on a GPU that costs nothing.
    """
    t = params.train
    device = device or data.residual.device
    rng = np.random.default_rng([params.seed, step])
    index = torch.from_numpy(np.sort(rng.choice(len(data.residual), min(t.batch, len(data.residual)), False)))
    generator = torch.Generator().manual_seed(params.seed * 1_000_003 + step)
    noise_generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    size, rows = len(index), workers.rows(len(index))
    masked = params.mask_ratio > 0 and step < tail_start(params)
    drop = torch.rand(size, generator=generator) < t.condition_dropout
    sigma = draw_sigma(size, t.p_mean, t.p_std, generator)
    visible = draw_visible(size, tokens, params.mask_ratio, generator, groups) if masked else None
    path_drop = torch.rand(size, generator=generator) < t.path_dropout if t.path_dropout else None
    noise = torch.randn(size, *data.residual.shape[1:], generator=noise_generator, device=device)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    index = index[rows]
    whole = None if data.whole is None else bool(data.whole[index].all())
    index = index.to(data.residual.device, non_blocking=True)
    # moved in their compact types, widened on the device
    condition = data.condition[index].to(device, non_blocking=True).float()
    return TrainingBatch(
        residual=move(data.residual[index]).float(),
        valid=move(data.valid[index]).float(),
        condition=condition.dropped(move(drop[rows])),
        sigma=move(sigma[rows]),
        noise=noise[rows],
        visible=None if visible is None else move(visible[rows]),
        path_drop=None if path_drop is None else move(path_drop[rows]),
        whole=whole,
    )
