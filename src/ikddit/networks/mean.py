"""The conditional mean mu(c): ridge on every condition and on selected interactions, and text-located spots.

Most of what can be predicted of an overlay map is low-rank and lies in interactions of an id with a number
(chamber x RF hours, scanner x days since maintenance), so the mean works on principal components of the map and
on products chosen by screening; the student then diffuses on the residual (CorrDiff, 2309.15214).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ikddit.dataset.components import component_scores
from ikddit.embedding.conditions import Conditions, missing_inputs

SPOT_HALF = 12
"""A spot's kernel spans +-12 pixels (56 mm) around its position."""
SPOT_SIDE = 2 * SPOT_HALF + 1
ID_PAIRS = ((1, 2), (6, 7))
"""Positions in ID_FIELDS of (scanner, chuck) and (previous scanner, previous chuck): a chuck is known only
together with its scanner."""


@dataclass(frozen=True)
class SpotLine:
    """A log-line template that names a place on the wafer: which of its values are x, y (mm) and the height."""

    template: int
    x: int
    y: int
    height: int


@dataclass(frozen=True)
class MeanConfig:
    """What is needed to rebuild the mean; stored in config.json."""

    kind: str
    id_sizes: tuple[int, ...]
    log_channels: int
    templates: int
    components: int
    prev_components: int
    interactions: int
    spots: tuple[SpotLine, ...]
    pitch_mm: float

    @property
    def one_hot(self) -> int:
        """Length of the one-hot part of the condition vector; the rest are numbers."""
        pairs = sum(self.id_sizes[a] * self.id_sizes[b] for a, b in ID_PAIRS)
        return sum(self.id_sizes) + pairs

    @property
    def features(self) -> int:
        """Length of the condition vector, interactions apart."""
        return self.one_hot + 2 * self.log_channels + self.templates + self.prev_components + 1


class ConditionalMean(nn.Module):
    """mu(c) in units of the map scale; every part is a buffer or parameter of one state dict."""

    mean_map: Tensor
    basis: Tensor
    prev_basis: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    ridge: Tensor
    interaction: Tensor
    """Rows (column of `codes`, code, column of the condition vector)."""
    spot_kernel: Tensor
    spot_gain: Tensor
    lost: Tensor
    """(2 + I, K, K): square root of the second moment of the scores that an input tells, by `missing_inputs`."""

    def __init__(self, config: MeanConfig) -> None:
        super().__init__()
        self.config = config
        k, d, pixels = config.components, config.features, 2 * 64 * 64
        gains = config.id_sizes[ID_PAIRS[0][0]] * config.id_sizes[ID_PAIRS[0][1]]
        for name, shape in {
            "mean_map": (2, 64, 64),
            "basis": (k, pixels),
            "prev_basis": (config.prev_components, pixels),
            "feature_mean": (d,),
            "ridge": (d + config.interactions, k),
            "spot_kernel": (len(config.spots), 2, SPOT_SIDE, SPOT_SIDE),
            "lost": (2 + len(config.id_sizes), k, k),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("feature_std", torch.ones(d))
        self.register_buffer("spot_gain", torch.ones(gains))
        self.register_buffer("interaction", torch.zeros(config.interactions, 3, dtype=torch.long))

    def raw_features(self, c: Conditions) -> Float[Tensor, "B F"]:
        """The condition vector: one-hot ids and id pairs, log channels, counts of log lines, previous map."""
        sizes = self.config.id_sizes
        parts = [F.one_hot(c.ids[:, i], size) for i, size in enumerate(sizes)]
        for a, b in ID_PAIRS:
            parts.append(F.one_hot(c.ids[:, a] * sizes[b] + c.ids[:, b], sizes[a] * sizes[b]))
        counts = c.line_templates.new_zeros(len(c), self.config.templates)
        counts.scatter_add_(1, c.line_templates, (c.line_templates > 0).long())
        known = c.prev_valid.expand_as(c.prev_map).flatten(1)
        scores = component_scores(c.prev_map.flatten(1), known, self.prev_basis)
        missing = (c.prev_valid.sum((1, 2, 3)) == 0).float()[:, None]
        return torch.cat([*parts, c.log_features, c.log_missing, counts, scores, missing], dim=1).float()

    def features(self, c: Conditions) -> Float[Tensor, "B F"]:
        """The condition vector, z-scored with training statistics, and the interactions."""
        x = (self.raw_features(c) - self.feature_mean) / self.feature_std
        return torch.cat([x, interaction_columns(x, codes(c), self.interaction)], dim=1)

    def gain_index(self, c: Conditions) -> Tensor:
        """Row of `spot_gain` for each wafer: its (scanner, chuck)."""
        a, b = ID_PAIRS[0]
        return c.ids[:, a] * self.config.id_sizes[b] + c.ids[:, b]

    def spots(self, c: Conditions) -> Float[Tensor, "B 2 64 64"]:
        """Sum over located log lines of height x gain(scanner, chuck) x kernel, moved to the line's position."""
        out = c.prev_map.new_zeros(len(c), 2, 64, 64)
        for number, spot in enumerate(self.config.spots):
            wafer, line = (c.line_templates == spot.template).nonzero(as_tuple=True)
            if len(wafer) == 0:
                continue
            values = c.line_values[wafer, line]
            height = values[:, spot.height] * self.spot_gain[self.gain_index(c)[wafer]]
            grid = spot_grid(values[:, spot.x], values[:, spot.y], self.config.pitch_mm)
            kernel = self.spot_kernel[number].expand(len(wafer), -1, -1, -1)
            shape = F.grid_sample(kernel, grid, align_corners=True, padding_mode="zeros")
            out.index_add_(0, wafer, shape * height[:, None, None, None])
        return out

    def assemble(self, c: Conditions, scores: Float[Tensor, "B K"]) -> Float[Tensor, "B 2 64 64"]:
        """Map from component scores, with the training mean and the spots."""
        maps = self.mean_map + (scores @ self.basis).view(-1, 2, 64, 64)
        return maps + self.spots(c) if self.config.kind == "learned" else maps

    def forward(self, c: Conditions) -> Float[Tensor, "B 2 64 64"]:
        """mu(c) in units of the map scale; zero for kind `none`."""
        if self.config.kind == "none":
            return torch.zeros_like(c.prev_map)
        return self.assemble(c, self.features(c) @ self.ridge)

    def draw_lost(self, c: Conditions, noise: Float[Tensor, "B n I2 K"]) -> Float[Tensor, "B n 2 64 64"]:
        """Draws of what the mean would have added had it known the inputs that a wafer lacks; zero if it lacks none.

        The student learns residuals around a mean that knows everything. Without an input the forecast errs by
        what that input tells as well, so samples must spread by it. Inputs count as independent of one another, and
        the law as normal; spots, which move few marks, are left out.

        Args:
            c: the conditions, with their gaps.
            noise: unit normal, for each input of `missing_inputs` and component.
        """
        missing = missing_inputs(c).to(noise.dtype)
        scores = torch.einsum("be,bnek,ekl->bnl", missing, noise, self.lost)
        return (scores @ self.basis).view(*scores.shape[:2], 2, 64, 64)


def codes(c: Conditions) -> Int[Tensor, "B C"]:
    """What a number can be crossed with: the ids, then a 0/1 flag per log channel that was not received.

    A missing sensor changes what every other input is worth (without levelling, say, wafer shape must be read
    off the previous map), so the flags take part in products as ids do.
    """
    return torch.cat([c.ids, c.log_missing.long()], dim=1)


def interaction_columns(
    x: Float[Tensor, "B F"], code: Int[Tensor, "B C"], interaction: Int[Tensor, "M 3"]
) -> Float[Tensor, "B M"]:
    """Products (code == value) * number, one column per row of `interaction`."""
    position, value, column = interaction.unbind(1)
    return x[:, column] * (code[:, position] == value)


def spot_grid(x_mm: Float[Tensor, " S"], y_mm: Float[Tensor, " S"], pitch_mm: float) -> Tensor:
    """Sampling positions (S, 64, 64, 2) of every pixel inside a kernel centred at (x, y): -1..1 is its extent."""
    axis = (torch.arange(64, device=x_mm.device) + 0.5) * pitch_mm - 32 * pitch_mm
    dx = (axis[None] - x_mm[:, None]) / (SPOT_HALF * pitch_mm)
    # row 0 is the top of the wafer; the kernel keeps y upwards as rows going down
    dy = (y_mm[:, None] - axis.flip(0)[None]) / (SPOT_HALF * pitch_mm)
    return torch.stack([dx[:, None].expand(-1, 64, -1), dy[:, :, None].expand(-1, -1, 64)], dim=-1)
