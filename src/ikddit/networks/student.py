"""The IKDDiT student: dense shallow path, deep encoder on visible tokens, fuse, light decoder on all tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ikddit.embedding.encoders import ConditionTokens
from ikddit.networks.blocks import Block, SigmaEmbedding, position_grid
from ikddit.networks.masking import gather_tokens, scatter_tokens
from ikddit.networks.outline import Outline, groups_of_four, outline_positions, valid_tokens
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

    The teacher is an exponential moving average of this part of the student. Patches outside the wafer's outline
    are the same for every wafer, so they are dropped rather than masked (`benchmarks/bench_outline.py`): "all
    tokens", N, are those of the outline, row by row.

    Args:
        model: a name of the size table.
        context_dim: width of the condition tokens.
        channels: 2 for maps in nm (dx, dy), 3 for RGB images, 4 for latents of the codec.
        outline: which patches are tokens.
    """

    position: Tensor
    place: Tensor
    """Position of each token on the square grid of patches."""

    def __init__(
        self,
        model: str,
        context_dim: int,
        channels: int = 2,
        outline: Outline = "wafer",
        extra_channels: int = 0,
    ) -> None:
        super().__init__()
        size = SIZES[model]
        self.size = size
        place = outline_positions(outline, size.side)
        self.tokens = len(place)
        # the validity mask is a channel of its own: an invalid pixel is not an overlay of 0 nm
        self.patch = nn.Conv2d(channels + extra_channels + 1, size.width, size.patch, size.patch)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("position", position_grid(size.width, size.side)[place], persistent=False)
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
    def groups(self) -> Int[Tensor, " N"]:
        """The 2x2 group of patches of each token, for structured masks."""
        return groups_of_four(self.place, self.size.side)

    def attendable(self, valid: Float[Tensor, "B 1 64 64"]) -> Bool[Tensor, "B N"] | None:
        """True where a token may be attended to: its patch has a valid pixel.

        None, and nothing to mask, when that is so for every token of the batch (the common case). A wafer
        without any valid pixel keeps all its tokens, since attention needs at least one.
        """
        known = valid_tokens(valid, self.place, self.size.side)
        return None if bool(known.all()) else known | ~known.any(1, keepdim=True)

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
        known: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B D"]]:
        """All tokens after the dense path, and the modulation vector.

        Values at invalid pixels are ignored; `known` (see `attendable`) keeps patches without a valid pixel
        out of the attention.
        """
        patches = self.patch(torch.cat([x * valid, valid], dim=1)).flatten(2)
        tokens = patches[..., self.place].transpose(1, 2) + self.position
        condition = self.sigma(c_noise) + cache.pooled
        for block in self.dense:
            tokens = block(tokens, condition, None, None, as_keys(known))
        return tokens, condition

    def deepen(
        self,
        tokens: Float[Tensor, "B V D"],
        condition: Float[Tensor, "B D"],
        cache: ConditionCache,
        taps: tuple[int, ...] = (),
        known: Bool[Tensor, "B V"] | None = None,
        until: int | None = None,
    ) -> tuple[Float[Tensor, "B V D"], list[Float[Tensor, "B V D"]]]:
        """The first `until` deep blocks (all if None) on the tokens given, and the states after those in `taps`."""
        tapped = []
        blocks = zip(self.deep_blocks[:until], cache.key_values[:until], strict=True)
        for i, (block, key_value) in enumerate(blocks, 1):
            tokens = block(tokens, condition, key_value, cache.attend, as_keys(known))
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


def as_keys(known: Bool[Tensor, "B N"] | None) -> Bool[Tensor, "B 1 1 N"] | None:
    """A mask over keys, for every head and query."""
    return None if known is None else known[:, None, None, :]


class Decoder(nn.Module):
    """Fuse deep and shallow tokens, a few blocks on all tokens, back to pixels; zero outside the outline."""

    place: Tensor

    def __init__(self, model: str, channels: int = 2, outline: Outline = "wafer") -> None:
        super().__init__()
        size = SIZES[model]
        self.size = size
        self.register_buffer("place", outline_positions(outline, size.side), persistent=False)
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
        known: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B C 64 64"]:
        """Raw network output F of the EDM preconditioning; zero at initialisation."""
        tokens = self.fuse(torch.cat([shallow, deep.to(shallow.dtype)], dim=-1))
        for block in self.blocks:
            tokens = block(tokens, condition, None, None, as_keys(known))
        shift, scale = self.modulation(torch.nn.functional.silu(condition))[:, None].chunk(2, dim=-1)
        patches = self.head(self.norm(tokens) * (1 + scale) + shift)
        side, patch = self.size.side, self.size.patch
        if len(self.place) < side**2:
            square = patches.new_zeros(len(patches), side**2, patches.shape[-1])
            patches = square.index_copy(1, self.place, patches)
        grid = patches.view(-1, side, side, patch, patch, self.channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.channels, 64, 64)  # type: ignore[no-any-return]


class Student(nn.Module):
    """Encoder on the visible tokens and decoder on all; every output token also sees its own shallow token."""

    def __init__(
        self,
        model: str,
        context_dim: int,
        channels: int = 2,
        outline: Outline = "wafer",
        extra_channels: int = 0,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(model, context_dim, channels, outline, extra_channels)
        self.decoder = Decoder(model, channels, outline)

    def deep_full(
        self,
        shallow: Float[Tensor, "B N D"],
        condition: Float[Tensor, "B D"],
        cache: ConditionCache,
        visible: Int[Tensor, "B V"] | None,
        previous: Float[Tensor, "B N D"] | None = None,
        taps: tuple[int, ...] = (),
        known: Bool[Tensor, "B N"] | None = None,
    ) -> tuple[Float[Tensor, "B N D"], list[Tensor]]:
        """Deep features of all positions.

        Hidden positions get the learned hidden token, or the features of the step before if `previous` is given.
        """
        if visible is None:
            return self.encoder.deepen(shallow, condition, cache, taps, known)
        if known is not None:
            known = known.gather(1, visible)
            known = known | ~known.any(1, keepdim=True)
        deep, tapped = self.encoder.deepen(gather_tokens(shallow, visible), condition, cache, taps, known)
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
        known = self.encoder.attendable(valid)
        shallow, condition = self.encoder.shallow(x, valid, c_noise, cache, known)
        deep, tapped = self.deep_full(shallow, condition, cache, visible, taps=taps, known=known)
        if path_drop is not None:
            deep = torch.where(path_drop[:, None, None], self.decoder.hidden.to(deep.dtype), deep)
        return self.decoder(shallow, deep, condition, known), tapped
