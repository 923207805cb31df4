"""Encoders of the three modalities into one space: each gives tokens (for cross-attention) and a unit vector."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ikddit.embedding.conditions import Conditions

MAP_PATCH = 16
MAP_TOKENS = (64 // MAP_PATCH) ** 2
CHANNEL_TOKENS = 8
"""The numeric log channels enter as this many tokens."""


@dataclass(frozen=True)
class EmbeddingConfig:
    """Sizes the encoders need to be rebuilt; stored in the model folder's config.json."""

    dim: int
    id_sizes: tuple[int, ...]
    """Entries per id field, the unknown entry included."""
    log_channels: int
    templates: int
    """Log-line templates, pad and unknown included."""
    values_per_line: int


def _mixer(dim: int) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(
        dim,
        nhead=4,
        dim_feedforward=2 * dim,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )


class MapEncoder(nn.Module):
    """Overlay map and mask -> 16 patch tokens. `role` 0 is the previous layer's map, 1 the current one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, MAP_PATCH, MAP_PATCH)
        self.position = nn.Parameter(torch.randn(1, MAP_TOKENS, dim) * 0.02)
        self.role = nn.Embedding(2, dim)
        self.mix = _mixer(dim)

    def forward(
        self, maps: Float[Tensor, "B 2 64 64"], valid: Float[Tensor, "B 1 64 64"], role: int
    ) -> Float[Tensor, "B 16 D"]:
        """Maps in units of sigma, zero where invalid."""
        tokens = self.patch(torch.cat([maps, valid], dim=1)).flatten(2).transpose(1, 2)
        tokens = self.mix(tokens + self.position + self.role.weight[role])
        return tokens  # type: ignore[no-any-return]


class LogEncoder(nn.Module):
    """Log channels and log lines -> 8 + L tokens; numbers in lines keep their value."""

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        dim = config.dim
        self.channels = nn.Linear(2 * config.log_channels, CHANNEL_TOKENS * dim)
        self.template = nn.Embedding(config.templates, dim, padding_idx=0)
        self.values = nn.Sequential(
            nn.Linear(2 * config.values_per_line, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        # what a number means depends on the line it stands in
        self.value_gate = nn.Embedding(config.templates, dim)
        self.mix = _mixer(dim)

    def forward(self, c: Conditions) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        """Tokens, and True where a token is padding."""
        batch = len(c)
        numeric = self.channels(torch.cat([c.log_features, c.log_missing], dim=1))
        numeric = numeric.view(batch, CHANNEL_TOKENS, -1)
        v = c.line_values
        squashed = torch.cat([torch.asinh(v), torch.tanh(v / 100)], dim=-1)
        lines = self.template(c.line_templates) + self.value_gate(c.line_templates) * self.values(squashed)
        tokens = torch.cat([numeric, lines], dim=1)
        pad = torch.cat(
            [c.line_templates.new_zeros(batch, CHANNEL_TOKENS).bool(), c.line_templates == 0], dim=1
        )
        tokens = self.mix(tokens, src_key_padding_mask=pad)
        return tokens.masked_fill(pad[..., None], 0.0), pad


class IdEncoder(nn.Module):
    """Ids -> one token per field."""

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, config.dim) for size in config.id_sizes)
        self.field = nn.Parameter(torch.randn(1, len(config.id_sizes), config.dim) * 0.02)
        self.mix = _mixer(config.dim)

    def forward(self, c: Conditions) -> Float[Tensor, "B I D"]:
        """One token per id field."""
        tokens = torch.stack([table(c.ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
        return self.mix(tokens + self.field)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ConditionTokens:
    """Condition tokens for cross-attention, their padding mask, and the pooled condition."""

    tokens: Float[Tensor, "B T D"]
    pad: Bool[Tensor, "B T"]
    pooled: Float[Tensor, "B 3D"]
    """Unit vectors of previous map, logs and ids, side by side."""

    def repeat_interleave(self, n: int) -> "ConditionTokens":
        """Each wafer n times in a row."""
        return ConditionTokens(*(t.repeat_interleave(n, 0) for t in (self.tokens, self.pad, self.pooled)))

    def __getitem__(self, index: slice | Tensor) -> "ConditionTokens":
        return ConditionTokens(self.tokens[index], self.pad[index], self.pooled[index])

    def dropped(self, drop: Bool[Tensor, " B"]) -> "ConditionTokens":
        """The unconditional version of the rows where `drop` is True (classifier-free training): all zeros."""
        return ConditionTokens(
            self.tokens.masked_fill(drop[:, None, None], 0.0),
            self.pad & ~drop[:, None],
            self.pooled.masked_fill(drop[:, None], 0.0),
        )


class UnifiedEmbedding(nn.Module):
    """The three encoders with projections into one space (IKDDiT, unified contrastive embedding)."""

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        self.config = config
        self.maps = MapEncoder(config.dim)
        self.logs = LogEncoder(config)
        self.ids = IdEncoder(config)
        self.project = nn.ModuleDict(
            {name: nn.Linear(config.dim, config.dim) for name in ("map", "log", "id")}
        )
        self.log_temperature = nn.Parameter(torch.tensor(2.6593))  # 1 / 0.07, as CLIP starts

    def _unit(self, name: str, pooled: Tensor) -> Tensor:
        return F.normalize(self.project[name](pooled), dim=-1)

    def embed_map(
        self, maps: Float[Tensor, "B 2 64 64"], valid: Float[Tensor, "B 1 64 64"], role: int = 1
    ) -> Float[Tensor, "B D"]:
        """Unit vector of a map; the features of the project's own Frechet distance (role 1)."""
        return self._unit("map", self.maps(maps, valid, role).mean(1))

    def forward(self, c: Conditions) -> ConditionTokens:
        """All condition tokens (previous map, logs, ids) and the pooled condition."""
        image = self.maps(c.prev_map, c.prev_valid, 0)
        logs, pad = self.logs(c)
        ids = self.ids(c)
        kept = (~pad).float()[..., None]
        pooled = torch.cat(
            [
                self._unit("map", image.mean(1)),
                self._unit("log", (logs * kept).sum(1) / kept.sum(1)),
                self._unit("id", ids.mean(1)),
            ],
            dim=-1,
        )
        no_pad = pad.new_zeros(1, 1)
        all_pad = torch.cat(
            [no_pad.expand(len(c), image.shape[1]), pad, no_pad.expand(len(c), ids.shape[1])], dim=1
        )
        return ConditionTokens(torch.cat([image, logs, ids], dim=1), all_pad, pooled)
