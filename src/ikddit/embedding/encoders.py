"""Encoders of the three modalities into one space: each gives tokens (for cross-attention) and a unit vector."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ikddit.dataset.tokenizer import PAD_WORD, RESERVED, UNKNOWN_WORD, WORDS_PER_LINE
from ikddit.dataset.vocabulary import FIRST_TEMPLATE, UNKNOWN, Vocabularies
from ikddit.embedding.conditions import Conditions
from ikddit.embedding.text import sentence_vectors

MAP_PATCH = 16
MAP_TOKENS = (64 // MAP_PATCH) ** 2
PATCH_VALUES = 3 * MAP_PATCH**2
CHANNEL_TOKENS = 8
"""The numeric log channels enter as this many tokens."""


MAX_Z = 100.0
"""Numbers further from train's mean are clipped: an absurd one must not become NaN."""


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
    words: int = len(RESERVED)
    """Word codes, the reserved ones included."""
    text_dim: int = 0
    """Numbers in a sentence vector; 0 where words have vectors of their own (`embed.log_encoder: words`)."""
    contrastive: bool = True
    """False: nothing was pre-trained; the encoders learn with the student."""


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
        # Each patch has weights of its own, so that the mean over tokens is a free linear map of all pixels:
        # grid terms such as an expansion are read at once, not through attention.
        self.patch = nn.Parameter(torch.randn(MAP_TOKENS, PATCH_VALUES, dim) / PATCH_VALUES**0.5)
        self.position = nn.Parameter(torch.randn(1, MAP_TOKENS, dim) * 0.02)
        self.role = nn.Embedding(2, dim)
        self.mix = _mixer(dim)

    def forward(
        self, maps: Float[Tensor, "B 2 64 64"], valid: Float[Tensor, "B 1 64 64"], role: int
    ) -> Float[Tensor, "B 16 D"]:
        """Maps in units of sigma, zero where invalid."""
        patches = F.pixel_unshuffle(torch.cat([maps, valid], dim=1), MAP_PATCH).flatten(2)
        tokens = torch.bmm(patches.permute(2, 0, 1), self.patch).transpose(0, 1)
        tokens = self.mix(tokens + self.position + self.role.weight[role])
        return tokens  # type: ignore[no-any-return]


class LogEncoder(nn.Module):
    """Log channels and log lines -> 8 + L tokens; numbers in lines keep their value.

    A line is its template, its words and its numbers. What train knows of templates (their words, the mean and
    spread of their numbers) are buffers, filled once by `know`; a line with an unknown template is read by its
    words alone, with its raw numbers on an asinh scale.
    """

    template_words: Tensor
    value_mean: Tensor
    value_std: Tensor
    template_text: Tensor
    word_text: Tensor

    def __init__(self, config: EmbeddingConfig) -> None:
        super().__init__()
        dim, shape = config.dim, (config.templates, config.values_per_line)
        self.channels = nn.Linear(2 * config.log_channels, CHANNEL_TOKENS * dim)
        self.template = nn.Embedding(config.templates, dim, padding_idx=0)
        self.word: nn.Module
        if config.text_dim:
            self.word = nn.Linear(config.text_dim, dim, bias=False)
            self.register_buffer("template_text", torch.zeros(config.templates, config.text_dim))
            self.register_buffer("word_text", torch.zeros(config.words, config.text_dim))
        else:
            self.word = nn.Embedding(config.words, dim, padding_idx=PAD_WORD)
        slots = config.values_per_line
        self.values = nn.Sequential(nn.Linear(slots, dim), nn.GELU(), nn.Linear(dim, dim))
        # past the hidden layer, so that a coordinate stays readable by a linear map
        self.values_direct = nn.Linear(slots, dim, bias=False)
        # what a number means depends on the line it stands in
        self.value_gate = nn.Linear(dim, dim)
        self.mix = _mixer(dim)
        self.register_buffer(
            "template_words", torch.zeros(config.templates, WORDS_PER_LINE, dtype=torch.long)
        )
        self.register_buffer("value_mean", torch.zeros(shape))
        self.register_buffer("value_std", torch.ones(shape))

    def know(self, vocabularies: Vocabularies, minilm_path: str | None = None) -> None:
        """Take over the words of known templates and the spread of their numbers, and their sentence vectors.

        Raises:
            ModelError: sentence vectors are wanted and cannot be had, see `sentence_vectors`.
        """
        mean, std = vocabularies.value_moments(self.value_mean.shape[1])
        self.value_mean.copy_(torch.from_numpy(mean))
        self.value_std.copy_(torch.from_numpy(std))
        self.template_words.copy_(torch.from_numpy(vocabularies.template_words().astype(np.int64)))
        if isinstance(self.word, nn.Linear):
            known, words = vocabularies.templates, vocabularies.tokenizer.words
            vectors = torch.from_numpy(sentence_vectors([*known, *words[UNKNOWN_WORD + 1 :]], minilm_path))
            # Lines of one report are alike to a sentence model: z-scores bring out what tells them apart.
            vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-6)
            self.template_text[FIRST_TEMPLATE:] = vectors[: len(known)]
            self.word_text[UNKNOWN_WORD + 1 :] = vectors[len(known) :]

    def _words(self, words: Int[Tensor, "N W"]) -> Float[Tensor, "N D"]:
        """Sum of the vectors of a line's words, over the root of their number; zero for a line without."""
        count = (words != PAD_WORD).sum(1, keepdim=True).clamp(min=1)
        if isinstance(self.word, nn.Linear):
            total = F.embedding(words, self.word(self.word_text)).sum(1)
        else:
            total = self.word(words).sum(1)
        said: Tensor = total / count.sqrt()
        return said

    def _describe(self, codes: Tensor, words: Tensor) -> Float[Tensor, "B L 2D"]:
        """What a line says and how it gates its numbers; per template, but for lines with an unknown one."""
        if isinstance(self.word, nn.Linear):
            table = self.template.weight + self.word(self.template_text)
        else:
            table = self.template.weight + self._words(self.template_words)
        found = F.embedding(codes, torch.cat([table, self.value_gate(table)], dim=1))
        wafer, line = (codes == UNKNOWN).nonzero(as_tuple=True)
        if len(wafer):
            said = self._words(words[wafer, line])
            extra = torch.cat([said, F.linear(said, self.value_gate.weight)], dim=1)
            found = found.index_put((wafer, line), extra, accumulate=True)
        return found

    def forward(self, c: Conditions) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
        """Tokens, and True where a token is padding."""
        batch = len(c)
        numeric = self.channels(torch.cat([c.log_features, c.log_missing], dim=1))
        numeric = numeric.view(batch, CHANNEL_TOKENS, -1)
        pad = torch.cat(
            [c.line_templates.new_zeros(batch, CHANNEL_TOKENS).bool(), c.line_templates == 0], dim=1
        )
        # The batch's longest log says how much is worth computing: a fifth of a training step.
        used = (c.line_templates > 0).any(0).nonzero()
        longest = int(used.max()) + 1 if len(used) else 1
        codes, values = c.line_templates[:, :longest], c.line_values[:, :longest]
        said, gate = self._describe(codes, c.line_words[:, :longest]).chunk(2, dim=-1)
        z = (values - self.value_mean[codes]) / self.value_std[codes]
        z = torch.where((codes == UNKNOWN)[..., None], torch.asinh(values), z).clamp(-MAX_Z, MAX_Z)
        numbers = torch.asinh(z)  # linear near the mean, logarithmic far off
        lines = said + (1 + gate) * (self.values(numbers) + self.values_direct(numbers))
        tokens = torch.cat([numeric, lines], dim=1)
        tokens = self.mix(tokens, src_key_padding_mask=pad[:, : tokens.shape[1]])
        tokens = F.pad(tokens, (0, 0, 0, pad.shape[1] - tokens.shape[1]))
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

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """All tensors, in the order of the fields."""
        return self.tokens, self.pad, self.pooled

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "ConditionTokens":
        """Move every tensor."""
        return ConditionTokens(*(part.to(device, non_blocking=non_blocking) for part in self.parts))

    def float(self) -> "ConditionTokens":
        """The numbers in float32."""
        return ConditionTokens(self.tokens.float(), self.pad, self.pooled.float())

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
        self.log_temperature = nn.Parameter(
            torch.tensor(2.6593)
        )  # of the inverse, log(1 / 0.07), as CLIP starts

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
