"""The IKDDiT student: dense shallow path, deep encoder on visible tokens, fuse, light decoder on all tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ikddit.embedding.encoders import ConditionTokens
from ikddit.networks.blocks import Block, SigmaEmbedding, position_grid
from ikddit.networks.masking import gather_tokens, scatter_tokens
from ikddit.networks.sizes import SIZES


@dataclass(frozen=True)
class ConditionCache:
    """What the blocks need of the condition, computed once per wafer and not once per step or sample."""

    pooled: Float[Tensor, "B D"]
    key_values: list[tuple[Tensor, Tensor]]
    """Of W wafers; B is a multiple of W, and each wafer's samples follow one another."""
    attend: Tensor

    def repeat_interleave(self, n: int) -> "ConditionCache":
        """Each wafer n times in a row; its samples share its keys and values (`GatedCrossAttention`)."""
        return ConditionCache(self.pooled.repeat_interleave(n, 0), self.key_values, self.attend)


class Encoder(nn.Module):
    """Patch embedding, dense shallow path on all tokens, deep blocks on the visible ones.

    The teacher is an exponential moving average of this part of the student.
    """

    position: Tensor

    def __init__(self, model: str, context_dim: int, channels: int = 2) -> None:
        super().__init__()
        size = SIZES[model]
        self.size = size
        # the validity mask is a channel of its own: an invalid pixel is not an overlay of 0 nm
        self.patch = nn.Conv2d(channels + 1, size.width, size.patch, size.patch)
        self.register_buffer("position", position_grid(size.width, 64 // size.patch), persistent=False)
        self.sigma = SigmaEmbedding(size.width)
        self.pooled = nn.Linear(3 * context_dim, size.width)
        self.dense = nn.ModuleList(Block(size.width, size.heads, None) for _ in range(size.dense))
        self.deep = nn.ModuleList(Block(size.width, size.heads, context_dim) for _ in range(size.deep))

    def cache(self, condition: ConditionTokens) -> ConditionCache:
        """Keys, values and pooled condition for every deep block."""
        key_values = [
            block.cross.attention.key_value(condition.tokens) for block in self.deep_blocks if block.cross
        ]
        return ConditionCache(self.pooled(condition.pooled), key_values, ~condition.pad[:, None, None, :])

    @property
    def deep_blocks(self) -> list[Block]:
        """The deep blocks, typed."""
        return list(self.deep)  # type: ignore[arg-type]

    def shallow(
        self,
        x: Float[Tensor, "B C 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        cache: ConditionCache,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B D"]]:
        """All tokens after the dense path, and the modulation vector."""
        tokens = self.patch(torch.cat([x, valid], dim=1)).flatten(2).transpose(1, 2) + self.position
        condition = self.sigma(c_noise) + cache.pooled
        for block in self.dense:
            tokens = block(tokens, condition, None, None)
        return tokens, condition

    def deepen(
        self,
        tokens: Float[Tensor, "B V D"],
        condition: Float[Tensor, "B D"],
        cache: ConditionCache,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Tensor, "B V D"], list[Float[Tensor, "B V D"]]]:
        """Deep blocks on the tokens given; also the hidden states after the blocks counted in `taps`."""
        tapped = []
        for i, (block, key_value) in enumerate(zip(self.deep_blocks, cache.key_values, strict=True), 1):
            tokens = block(tokens, condition, key_value, cache.attend)
            if i in taps:
                tapped.append(tokens)
        return tokens, tapped

    @property
    def student_tap(self) -> int:
        """Block whose output the discriminator sees of the student: at a quarter of the depth (SRA)."""
        return max(1, self.size.deep // 4)

    @property
    def teacher_tap(self) -> int:
        """The same for the teacher: at three quarters of the depth."""
        return max(1, 3 * self.size.deep // 4)


class Decoder(nn.Module):
    """Fuse deep and shallow tokens, a few blocks on all tokens, back to pixels."""

    def __init__(self, model: str, channels: int = 2) -> None:
        super().__init__()
        size = SIZES[model]
        self.size = size
        self.channels = channels
        self.hidden = nn.Parameter(torch.zeros(1, 1, size.width))
        self.fuse = nn.Linear(2 * size.width, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads, None) for _ in range(size.decoder))
        self.norm = nn.RMSNorm(size.width, elementwise_affine=False)
        self.modulation = nn.Linear(size.width, 2 * size.width)
        self.head = nn.Linear(size.width, channels * size.patch**2)
        for layer in (self.modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        shallow: Float[Tensor, "B N D"],
        deep: Float[Tensor, "B N D"],
        condition: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B C 64 64"]:
        """Raw network output F of the EDM preconditioning; zero at initialisation."""
        tokens = self.fuse(torch.cat([shallow, deep.to(shallow.dtype)], dim=-1))
        for block in self.blocks:
            tokens = block(tokens, condition, None, None)
        shift, scale = self.modulation(torch.nn.functional.silu(condition))[:, None].chunk(2, dim=-1)
        patches = self.head(self.norm(tokens) * (1 + scale) + shift)
        side, patch = 64 // self.size.patch, self.size.patch
        grid = patches.view(-1, side, side, patch, patch, self.channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, 64, 64)  # type: ignore[no-any-return]


class Student(nn.Module):
    """Encoder on the visible tokens and decoder on all; every output token also sees its own shallow token."""

    def __init__(self, model: str, context_dim: int, channels: int = 2) -> None:
        super().__init__()
        self.encoder = Encoder(model, context_dim, channels)
        self.decoder = Decoder(model, channels)

    def deep_full(
        self,
        shallow: Float[Tensor, "B N D"],
        condition: Float[Tensor, "B D"],
        cache: ConditionCache,
        visible: Int[Tensor, "B V"] | None,
        previous: Float[Tensor, "B N D"] | None = None,
        taps: tuple[int, ...] = (),
    ) -> tuple[Float[Tensor, "B N D"], list[Tensor]]:
        """Deep features of all positions.

        Hidden positions get the learned hidden token, or the features of the step before if `previous` is given.
        """
        if visible is None:
            return self.encoder.deepen(shallow, condition, cache, taps)
        deep, tapped = self.encoder.deepen(gather_tokens(shallow, visible), condition, cache, taps)
        base = previous if previous is not None else self.decoder.hidden.expand_as(shallow)
        return scatter_tokens(base.to(deep.dtype), visible, deep), tapped

    def forward(
        self,
        x: Float[Tensor, "B C 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        cache: ConditionCache,
        visible: Int[Tensor, "B V"] | None = None,
        taps: tuple[int, ...] = (),
        path_drop: Bool[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B C 64 64"], list[Tensor]]:
        """Network output F (B, C, 64, 64) and the tapped hidden states of the visible tokens.

        Where `path_drop` is True the decoder gets hidden tokens instead of deep ones (path-drop learning of
        SPRINT, 2510.21986), so that guidance has a weak branch.
        """
        shallow, condition = self.encoder.shallow(x, valid, c_noise, cache)
        deep, tapped = self.deep_full(shallow, condition, cache, visible, taps=taps)
        if path_drop is not None:
            deep = torch.where(path_drop[:, None, None], self.decoder.hidden.to(deep.dtype), deep)
        return self.decoder(shallow, deep, condition), tapped
