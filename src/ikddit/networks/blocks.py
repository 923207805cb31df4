"""Transformer blocks: adaLN-Zero, RMSNorm, QK-norm attention, SwiGLU, gated cross-attention."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose weight follows the input's type, so that torch's fused kernel serves bf16 too."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


PLAIN_PAIRS = 256 * 256
"""Most query-key pairs per head for which `attend` avoids the fused kernel."""


def attend(
    q: Float[Tensor, "B H N C"],
    k: Float[Tensor, "B H M C"],
    v: Float[Tensor, "B H M C"],
    mask: Bool[Tensor, "B 1 1 M"] | None = None,
) -> Float[Tensor, "B H N C"]:
    """softmax(q k^T / sqrt(C)) v over the keys where `mask` is True.

    Through torch's fused kernel, but for training on a CPU in bf16 with few tokens: there the kernel's backward pass
    takes four to five times as long as plain products (64 tokens; equal at 256 and more).
    """
    pairs = q.shape[-2] * k.shape[-2]
    training = torch.is_grad_enabled() and q.requires_grad
    if training and q.device.type == "cpu" and q.dtype == torch.bfloat16 and pairs <= PLAIN_PAIRS:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        plain: Tensor = scores.softmax(-1) @ v
        return plain
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys, through torch's fused kernel.

    With `context_dim` it is cross-attention, and keys/values can be computed once and reused (`key_value`).
    """

    def __init__(self, width: int, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(context_dim or width, 2 * width)
        self.out = nn.Linear(width, width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)

    def key_value(self, context: Float[Tensor, "B M C"]) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, M, width/heads) of a context."""
        k, v = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.k_norm(k), v

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        key_value: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "B 1 1 M"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Attend from x to `key_value` (to x itself if None); `mask` is True where a key may be used."""
        q = self.q_norm(self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        k, v = key_value or self.key_value(x)
        out = attend(q, k.to(q.dtype), v.to(q.dtype), mask)
        return self.out(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """Gated feed-forward of 8/3 width, so that it has the parameters of a 4x MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * math.ceil(width / 3)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension."""
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)  # type: ignore[no-any-return]


class GatedCrossAttention(nn.Module):
    """Cross-attention to condition tokens behind a tanh gate that starts at zero (IKDDiT)."""

    def __init__(self, width: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.attention = Attention(width, heads, context_dim)
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, key_value: tuple[Tensor, Tensor], attend: Tensor) -> Tensor:
        """Residual update of x; the identity at initialisation.

        With keys of fewer wafers than there are samples, the samples of a wafer are folded into one longer
        query, so that its keys and values serve all of them without a copy.
        """
        folded = x.reshape(len(key_value[0]), -1, x.shape[-1])
        update: Tensor = torch.tanh(self.gate) * self.attention(self.norm(folded), key_value, attend)
        return x + update.view_as(x)


class Block(nn.Module):
    """DiT block (2212.09748): adaLN-Zero self-attention, gated cross-attention, adaLN-Zero SwiGLU."""

    def __init__(self, width: int, heads: int, context_dim: int | None) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads)
        self.cross = GatedCrossAttention(width, heads, context_dim) if context_dim else None
        self.norm2 = RMSNorm(width, elementwise_affine=False)
        self.mlp = SwiGLU(width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        condition: Float[Tensor, "B D"],
        key_value: tuple[Tensor, Tensor] | None,
        attend: Tensor | None,
        keys: Bool[Tensor, "B 1 1 N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The identity at initialisation (all gates are zero).

        `attend` is True for condition tokens, `keys` for x's own tokens that may be attended to (None: all).
        """
        parts = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, None, keys)
        if self.cross is not None and key_value is not None and attend is not None:
            x = self.cross(x, key_value, attend)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)  # type: ignore[no-any-return]


class SigmaEmbedding(nn.Module):
    """c_noise = ln(sigma)/4 -> Fourier features -> width (EDM)."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-1, 1.5, features // 2))
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Embed the noise level."""
        angle = c_noise[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))  # type: ignore[no-any-return]


def position_grid(width: int, side: int) -> Float[Tensor, "N D"]:
    """2-D sine-cosine positions of a side x side token grid, row by row (DiT).

    >>> position_grid(16, 4).shape
    torch.Size([16, 16])
    """
    quarter = width // 4
    omega = 1.0 / 100 ** (torch.arange(quarter) / quarter)
    axis = torch.arange(side, dtype=torch.float32)[:, None] * omega
    one = torch.cat([axis.sin(), axis.cos()], dim=-1)
    rows = one[:, None].expand(side, side, -1)
    cols = one[None].expand(side, side, -1)
    grid = torch.cat([rows, cols], dim=-1).flatten(0, 1)
    padded: Tensor = F.pad(grid, (0, width - grid.shape[-1]))
    return padded
