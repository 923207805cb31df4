"""What the model is conditioned on, as tensors: ids, log channels, log lines and the previous layer's map."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from ikddit.dataset.arrow import PreparedSplit


@dataclass(frozen=True)
class Conditions:
    """A batch of conditions; F log channels, L log lines of up to V values, 10 ids.

    Maps are in units of the normaliser's sigma (dimensionless), zero where invalid.
    """

    ids: Int[Tensor, "B I"]
    """0 is unknown or missing."""
    log_features: Float[Tensor, "B F"]
    log_missing: Float[Tensor, "B F"]
    line_templates: Int[Tensor, "B L"]
    """0 pads, 1 is an unknown template."""
    line_values: Float[Tensor, "B L V"]
    line_words: Int[Tensor, "B L W"]
    """Words of lines with an unknown template; 0 for all others."""
    prev_map: Float[Tensor, "B 2 64 64"]
    prev_valid: Float[Tensor, "B 1 64 64"]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> "Conditions":
        """Move every tensor."""
        return Conditions(*(getattr(self, f.name).to(device) for f in fields(self)))

    def __getitem__(self, index: slice | Tensor) -> "Conditions":
        return Conditions(*(getattr(self, f.name)[index] for f in fields(self)))


def missing_inputs(c: Conditions) -> Bool[Tensor, "B 2+I"]:
    """Which inputs were not received or are unknown: the previous map, the logs as a whole, each id."""
    previous = c.prev_valid.sum((1, 2, 3)) == 0
    logs = (c.log_missing > 0).all(1) & (c.line_templates == 0).all(1)
    return torch.cat([previous[:, None], logs[:, None], c.ids == 0], dim=1)


def withhold(c: Conditions, number: int) -> Conditions:
    """The same wafers as if one input, a column of `missing_inputs`, had not been received."""
    zeros = torch.zeros_like
    if number == 0:
        return replace(c, prev_map=zeros(c.prev_map), prev_valid=zeros(c.prev_valid))
    if number == 1:
        return replace(
            c,
            log_features=zeros(c.log_features),
            log_missing=torch.ones_like(c.log_missing),
            line_templates=zeros(c.line_templates),
            line_values=zeros(c.line_values),
            line_words=zeros(c.line_words),
        )
    ids = c.ids.clone()
    ids[:, number - 2] = 0
    return replace(c, ids=ids)


def gather_conditions(split: "PreparedSplit", index: np.ndarray | slice, sigma_nm: float) -> Conditions:
    """Read the wafers at `index` from a memory-mapped split.

    Args:
        split: prepared split (numpy views of the Arrow file).
        index: wafer positions.
        sigma_nm: the normaliser's map scale; maps are divided by it.
    """

    def f32(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array[index], dtype=np.float32))

    def i64(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array[index], dtype=np.int64))

    return Conditions(
        ids=i64(split.ids),
        log_features=f32(split.log_features),
        log_missing=f32(split.log_missing),
        line_templates=i64(split.line_templates),
        line_values=f32(split.line_values),
        line_words=i64(split.line_words),
        prev_map=f32(split.prev_map) / sigma_nm,
        prev_valid=f32(split.prev_valid)[:, None],
    )


def gather_maps(
    split: "PreparedSplit", index: np.ndarray | slice, sigma_nm: float
) -> tuple[Float[Tensor, "B 2 64 64"], Float[Tensor, "B 1 64 64"]]:
    """Read target maps (divided by `sigma_nm`, zero where invalid) and their masks."""
    maps = torch.from_numpy(np.array(split.map[index], dtype=np.float32)) / sigma_nm
    valid = torch.from_numpy(np.array(split.valid[index], dtype=np.float32))[:, None]
    return maps, valid
