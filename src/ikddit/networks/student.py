"""The IKDDiT student: dense shallow path, deep encoder on visible tokens, fuse, light decoder on all tokens."""

from collections.abc import Sequence
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
    """Of W wafers; B is a multiple of W, and each wafer's samples follow one another. Empty without cross-attention."""
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
        cross_attention: False: the deep blocks read the condition through their modulation alone, which gets
            the pooled one; what single tokens say is lost (an ablation).
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
        cross_attention: bool = True,
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
        context = context_dim if cross_attention else None
        self.deep = nn.ModuleList(Block(size.width, size.heads, context) for _ in range(size.deep))

    def cache(self, condition: ConditionTokens, until: int | None = None) -> ConditionCache:
        """Keys, values and pooled condition for the first `until` deep blocks (all if None)."""
        blocks = self.deep_blocks[:until]
        key_values = [block.cross.attention.key_value(condition.tokens) for block in blocks if block.cross]
        return ConditionCache(self.pooled(condition.pooled), key_values, ~condition.pad[:, None, None, :])

    @property
    def groups(self) -> Int[Tensor, " N"]:
        """The 2x2 group of patches of each token, for structured masks."""
        return groups_of_four(self.place, self.size.side)

    def whole(self, valid: Float[Tensor, "B 1 64 64"]) -> Bool[Tensor, " B"]:
        """True for a wafer with a valid pixel in the patch of every token."""
        return valid_tokens(valid, self.place, self.size.side).all(1)

    def attendable(
        self, valid: Float[Tensor, "B 1 64 64"], whole: bool | None = None
    ) -> Bool[Tensor, "B N"] | None:
        """True where a token may be attended to: its patch has a valid pixel.

        None, and nothing to mask, when that is so for every token of the batch (the common case). A wafer
        without any valid pixel keeps all its tokens, since attention needs at least one.

        Args:
            valid: 1 at valid pixels.
            whole: whether it is so for all wafers of the batch, where that is known; to look makes a GPU wait.
        """
        if whole:
            return None
        known = valid_tokens(valid, self.place, self.size.side)
        return None if whole is None and bool(known.all()) else known | ~known.any(1, keepdim=True)

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
        visible: Int[Tensor, "B V"] | None = None,
    ) -> tuple[Float[Tensor, "B V D"], Float[Tensor, "B D"]]:
        """All tokens (only those in `visible`, if given) after the shallow blocks, and the modulation vector.

        Values at invalid pixels are ignored; `known` (see `attendable`, of the same tokens) keeps patches
        without a valid pixel out of the attention.
        """
        patches = self.patch(torch.cat([x * valid, valid], dim=1)).flatten(2)
        tokens = patches[..., self.place].transpose(1, 2) + self.position
        if visible is not None:
            tokens = gather_tokens(tokens, visible)
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
        # without cross-attention there are none
        key_values: Sequence[tuple[Tensor, Tensor] | None] = cache.key_values or [None] * len(self.deep)
        blocks = zip(self.deep_blocks[:until], key_values[:until], strict=True)
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


def known_among(
    known: Bool[Tensor, "B N"] | None, visible: Int[Tensor, "B V"] | None
) -> Bool[Tensor, "B V"] | None:
    """`known` of the visible tokens; where none of them is, all are, since attention needs at least one."""
    if known is None or visible is None:
        return known
    seen = known.gather(1, visible)
    return seen | ~seen.any(1, keepdim=True)


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


@dataclass(frozen=True)
class Encoded:
    """What the encoder gives the decoder, and what the discriminator taps."""

    skip: Float[Tensor, "B N D"]
    """Beside the deep features of each token: its shallow one, or its position without a dense path."""
    deep: Float[Tensor, "B N D"]
    """A hidden token has the learned hidden feature, or its own of the step before."""
    modulation: Float[Tensor, "B D"]
    tapped: list[Tensor]
    known: Bool[Tensor, "B N"] | None


class Student(nn.Module):
    """Encoder on the visible tokens and decoder on all; every output token also sees its own shallow token.

    Args:
        dense_path: False: as in MaskDiT (2306.09305), shallow and deep blocks see the visible tokens only, and
            the decoder gets nothing but their deep features, positions and hidden features, so that the output
            of a hidden token knows nothing of its own noisy values (an ablation; the same parameters).
        cross_attention: see `Encoder`.
    """

    def __init__(
        self,
        model: str,
        context_dim: int,
        channels: int = 2,
        outline: Outline = "wafer",
        extra_channels: int = 0,
        *,
        dense_path: bool = True,
        cross_attention: bool = True,
    ) -> None:
        super().__init__()
        self.dense_path = dense_path
        self.encoder = Encoder(model, context_dim, channels, outline, extra_channels, cross_attention)
        self.decoder = Decoder(model, channels, outline)

    def encode(
        self,
        x: Float[Tensor, "B C 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        cache: ConditionCache,
        visible: Int[Tensor, "B V"] | None = None,
        previous: Float[Tensor, "B N D"] | None = None,
        taps: tuple[int, ...] = (),
        known: Bool[Tensor, "B N"] | None = None,
    ) -> Encoded:
        """Everything before the decoder; hidden tokens get the features in `previous` if given."""
        encoder = self.encoder
        if self.dense_path:
            skip, modulation = encoder.shallow(x, valid, c_noise, cache, known)
            seen = skip if visible is None else gather_tokens(skip, visible)
        else:
            among = known_among(known, visible)
            seen, modulation = encoder.shallow(x, valid, c_noise, cache, among, visible)
            skip = encoder.position.to(seen.dtype).expand(len(x), -1, -1)
        deep, tapped = encoder.deepen(seen, modulation, cache, taps, known_among(known, visible))
        if visible is not None:
            base = previous if previous is not None else self.decoder.hidden.expand_as(skip)
            deep = scatter_tokens(base.to(deep.dtype), visible, deep)
        return Encoded(skip, deep, modulation, tapped, known)

    def decode(self, encoded: Encoded, deep: Float[Tensor, "B N D"]) -> Float[Tensor, "B C 64 64"]:
        """Network output F for these deep features (`encoded.deep`, or hidden ones for a weak branch)."""
        return self.decoder(encoded.skip, deep, encoded.modulation, encoded.known)  # type: ignore[no-any-return]

    def forward(
        self,
        x: Float[Tensor, "B C 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        cache: ConditionCache,
        visible: Int[Tensor, "B V"] | None = None,
        taps: tuple[int, ...] = (),
        path_drop: Bool[Tensor, " B"] | None = None,
        whole: bool | None = None,
    ) -> tuple[Float[Tensor, "B C 64 64"], list[Tensor]]:
        """Network output F (B, C, 64, 64) and the tapped hidden states of the visible tokens.

        Where `path_drop` is True the decoder gets hidden tokens instead of deep ones (path-drop learning of
        SPRINT, 2510.21986), so that guidance has a weak branch. `whole`: see `Encoder.attendable`.
        """
        known = self.encoder.attendable(valid, whole)
        encoded = self.encode(x, valid, c_noise, cache, visible, taps=taps, known=known)
        deep = encoded.deep
        if path_drop is not None:
            deep = torch.where(path_drop[:, None, None], self.decoder.hidden.to(deep.dtype), deep)
        return self.decode(encoded, deep), encoded.tapped
