"""The conditional mean mu(c): ridge on every condition, text-located spots, a gated network on what is left.

Most of what can be predicted of an overlay map is low-rank and lies in interactions of conditions, so the mean
works on principal components of the map; the student then diffuses on the residual (CorrDiff, 2309.15214).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ikddit.embedding.conditions import Conditions

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
    width: int
    networks: int
    spots: tuple[SpotLine, ...]
    pitch_mm: float

    @property
    def features(self) -> int:
        """Length of the condition vector."""
        pairs = sum(self.id_sizes[a] * self.id_sizes[b] for a, b in ID_PAIRS)
        return sum(self.id_sizes) + pairs + 2 * self.log_channels + self.templates + self.prev_components + 1


class GatedNetwork(nn.Module):
    """Two gated layers from the condition vector to map components; zero at initialisation."""

    def __init__(self, features: int, width: int, components: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.enter_gate = nn.Linear(features, width), nn.Linear(features, width)
        self.middle, self.middle_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.leave = nn.Linear(width, components)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """Component scores to add to the ridge's."""
        h = self.dropout(self.enter(x) * torch.sigmoid(self.enter_gate(x)))
        h = h + self.dropout(F.silu(self.middle(h)) * torch.sigmoid(self.middle_gate(h)))
        return self.leave(h)  # type: ignore[no-any-return]


class ConditionalMean(nn.Module):
    """mu(c) in units of the map scale; every part is a buffer or parameter of one state dict."""

    mean_map: Tensor
    basis: Tensor
    prev_basis: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    ridge: Tensor
    ridge_bias: Tensor
    spot_kernel: Tensor
    spot_gain: Tensor

    def __init__(self, config: MeanConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        k, d, pixels = config.components, config.features, 2 * 64 * 64
        gains = config.id_sizes[ID_PAIRS[0][0]] * config.id_sizes[ID_PAIRS[0][1]]
        for name, shape in {
            "mean_map": (2, 64, 64),
            "basis": (k, pixels),
            "prev_basis": (config.prev_components, pixels),
            "feature_mean": (d,),
            "ridge": (d, k),
            "ridge_bias": (k,),
            "spot_kernel": (len(config.spots), 2, SPOT_SIDE, SPOT_SIDE),
        }.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("feature_std", torch.ones(d))
        self.register_buffer("spot_gain", torch.ones(gains))
        self.networks = nn.ModuleList(
            GatedNetwork(d, config.width, k, dropout) for _ in range(config.networks)
        )

    def raw_features(self, c: Conditions) -> Float[Tensor, "B F"]:
        """The condition vector: one-hot ids and id pairs, log channels, counts of log lines, previous map."""
        sizes = self.config.id_sizes
        parts = [F.one_hot(c.ids[:, i], size) for i, size in enumerate(sizes)]
        for a, b in ID_PAIRS:
            parts.append(F.one_hot(c.ids[:, a] * sizes[b] + c.ids[:, b], sizes[a] * sizes[b]))
        counts = c.line_templates.new_zeros(len(c), self.config.templates)
        counts.scatter_add_(1, c.line_templates, (c.line_templates > 0).long())
        scores = (c.prev_map * c.prev_valid).flatten(1) @ self.prev_basis.T
        missing = (c.prev_valid.sum((1, 2, 3)) == 0).float()[:, None]
        return torch.cat([*parts, c.log_features, c.log_missing, counts, scores, missing], dim=1).float()

    def features(self, c: Conditions) -> Float[Tensor, "B F"]:
        """The condition vector, z-scored with training statistics."""
        return (self.raw_features(c) - self.feature_mean) / self.feature_std

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

    def scores(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B K"]:
        """Component scores: ridge plus the average of the gated networks."""
        total = features @ self.ridge + self.ridge_bias
        if len(self.networks):
            total = total + torch.stack([network(features) for network in self.networks]).mean(0)
        return total

    def assemble(self, c: Conditions, scores: Float[Tensor, "B K"]) -> Float[Tensor, "B 2 64 64"]:
        """Map from component scores, with the training mean and the spots."""
        maps = self.mean_map + (scores @ self.basis).view(-1, 2, 64, 64)
        return maps + self.spots(c) if self.config.kind == "learned" else maps

    def forward(self, c: Conditions) -> Float[Tensor, "B 2 64 64"]:
        """mu(c) in units of the map scale; zero for kind `none`."""
        if self.config.kind == "none":
            return torch.zeros_like(c.prev_map)
        return self.assemble(c, self.scores(self.features(c)))


def spot_grid(x_mm: Float[Tensor, " S"], y_mm: Float[Tensor, " S"], pitch_mm: float) -> Tensor:
    """Sampling positions (S, 64, 64, 2) of every pixel inside a kernel centred at (x, y): -1..1 is its extent."""
    axis = (torch.arange(64, device=x_mm.device) + 0.5) * pitch_mm - 32 * pitch_mm
    dx = (axis[None] - x_mm[:, None]) / (SPOT_HALF * pitch_mm)
    # row 0 is the top of the wafer; the kernel keeps y upwards as rows going down
    dy = (y_mm[:, None] - axis.flip(0)[None]) / (SPOT_HALF * pitch_mm)
    return torch.stack([dx[:, None].expand(-1, 64, -1), dy[:, :, None].expand(-1, -1, 64)], dim=-1)
