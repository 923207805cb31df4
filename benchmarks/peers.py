"""The peers that the student is compared with, re-implemented from their papers in plain torch.

`DiT`: Peebles & Xie, "Scalable Diffusion Models with Transformers", ICCV 2023 (2212.09748): blocks of adaLN-Zero
self-attention and MLP on all tokens.

`MaskDiT`: Zheng et al., "Fast Training of Diffusion Models with Masked Transformers", TMLR 2024 (2306.09305): DiT
blocks on the visible half of the tokens, a small decoder on all of them with a learned mask token at the hidden places;
denoising loss on the visible patches plus 0.1 times an MAE loss (He et al., 2111.06377) on the hidden ones; no
masking while sampling.

What is alike for both and for the student, so that the ratio is of the schemes and of nothing else: width, heads,
patch size, the tokens themselves (patches on the wafer), the data and how a batch is drawn, EDM's noise and denoiser
(2206.00364, as MaskDiT; DiT's own DDPM with a learned variance would need another sampler), the sampler, AdamW's
fused kernel, autocast, and the choice of the attention kernel (`ikddit.networks.blocks.attend`). DiT's depth is that
of the whole student; so is that of MaskDiT's encoder, to which its decoder comes on top, as in its paper.

What differs from the papers: the pooled condition of a wafer stands where the label embedding stood, the validity
mask is a channel more, and MaskDiT's class token, which its paper adds for guidance, is left out.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.sampler import sample_trig
from ikddit.networks.blocks import attend, position_grid
from ikddit.networks.masking import complement, gather_tokens, scatter_tokens
from ikddit.networks.outline import Outline, outline_positions
from ikddit.networks.sizes import SIZES, Size
from ikddit.params import Params
from ikddit.training.batch import TrainingData, draw_batch
from ikddit.training.ema import update_average
from ikddit.training.objective import TrainingBatch

FREQUENCIES = 256
"""Sinusoidal features of the noise level (DiT)."""
MASK_RATIO = 0.5
MAE_WEIGHT = 0.1
LEARNING_RATE = 1e-4
AVERAGE_DECAY = 0.9999
"""Both papers train with AdamW at 1e-4 without decay and sample from an average of the weights."""
DECODER_DEPTH = 8 / 28
"""MaskDiT's decoder has 8 blocks beside the 28 of its XL encoder."""
DECODER_WIDTH = 0.5
"""Its width is 512 beside 1,152; rounded to half, which the heads divide at every size of the table."""


class Attention(nn.Module):
    """Multi-head self-attention as in ViT: one projection for queries, keys and values, no norm on them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def modulate(
    x: Float[Tensor, "B N D"], shift: Float[Tensor, "B 1 D"], scale: Float[Tensor, "B 1 D"]
) -> Float[Tensor, "B N D"]:
    return x * (1 + scale) + shift


def zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class PeerBlock(nn.Module):
    """DiT block with adaLN-Zero: shift, scale and gate of both halves from the condition; the identity at start.

    Args:
        width: of the tokens.
        heads: of the attention; divides the width.
        condition_width: of the condition vector.
    """

    def __init__(self, width: int, heads: int, condition_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(condition_width, 6 * width)

    def forward(self, x: Float[Tensor, "B N D"], condition: Float[Tensor, "B C"]) -> Float[Tensor, "B N D"]:
        parts = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))  # type: ignore[no-any-return]


class Modulated(nn.Module):
    """adaLN, then one linear layer that starts at zero: DiT's last layer, and the way into MaskDiT's decoder."""

    def __init__(self, width: int, condition_width: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(condition_width, 2 * width)
        self.linear = nn.Linear(width, out)

    def forward(self, x: Float[Tensor, "B N D"], condition: Float[Tensor, "B C"]) -> Float[Tensor, "B N O"]:
        shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))  # type: ignore[no-any-return]


def noise_features(c_noise: Float[Tensor, " B"]) -> Float[Tensor, "B 256"]:
    """Cosines and sines of the noise level at frequencies 1 to 1/10,000."""
    half = FREQUENCIES // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=c_noise.device) / half)
    angle = c_noise[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class Stem(nn.Module):
    """Patches with their positions, and the condition vector: noise level plus pooled condition.

    Args:
        size: of the student that the peer is compared with.
        context_dim: a third of the pooled condition's width.
        outline: which patches are tokens.
    """

    place: Tensor
    position: Tensor

    def __init__(self, size: Size, context_dim: int, outline: Outline) -> None:
        super().__init__()
        place = outline_positions(outline, size.side)
        self.patch = nn.Conv2d(3, size.width, size.patch, size.patch)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("position", position_grid(size.width, size.side)[place], persistent=False)
        self.noise = nn.Sequential(
            nn.Linear(FREQUENCIES, size.width), nn.SiLU(), nn.Linear(size.width, size.width)
        )
        self.pooled = nn.Linear(3 * context_dim, size.width)

    def forward(
        self,
        x: Float[Tensor, "B 2 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        pooled: Float[Tensor, "B 3C"],
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B D"]]:
        """All tokens and the condition vector."""
        patches = self.patch(torch.cat([x * valid, valid], dim=1)).flatten(2)[..., self.place]
        tokens = patches.transpose(1, 2) + self.position
        return tokens, self.noise(noise_features(c_noise)) + self.pooled(pooled)


class Peer(nn.Module):
    """What both peers share: the stem, the blocks on the tokens they are shown, and the way back to a map."""

    def __init__(self, model: str, context_dim: int, outline: Outline = "wafer") -> None:
        super().__init__()
        self.size = SIZES[model]
        self.depth = self.size.dense + self.size.deep + self.size.decoder
        self.stem = Stem(self.size, context_dim, outline)
        width, heads = self.size.width, self.size.heads
        self.blocks = nn.ModuleList(PeerBlock(width, heads, width) for _ in range(self.depth))

    @property
    def tokens(self) -> int:
        return len(self.stem.place)

    def initialise(self) -> None:
        """DiT's start: Xavier weights, zero modulations and last layer, small weights for the noise level."""
        nn.init.xavier_uniform_(self.stem.patch.weight.flatten(1))
        nn.init.constant_(self.stem.patch.bias, 0)  # type: ignore[arg-type]
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if name.startswith("stem."):
                    nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, PeerBlock | Modulated):
                zero(module.modulation)
            if isinstance(module, Modulated):
                zero(module.linear)

    def encode(
        self,
        x: Float[Tensor, "B 2 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        pooled: Float[Tensor, "B 3C"],
        visible: Int[Tensor, "B V"] | None = None,
    ) -> tuple[Float[Tensor, "B V D"], Float[Tensor, "B D"]]:
        """The visible tokens (all if None) after the blocks, and the condition vector."""
        tokens, condition = self.stem(x, valid, c_noise, pooled)
        if visible is not None:
            tokens = gather_tokens(tokens, visible)
        for block in self.blocks:
            tokens = block(tokens, condition)
        return tokens, condition

    def to_map(self, patches: Float[Tensor, "B N P"]) -> Float[Tensor, "B 2 64 64"]:
        """Patches at their places, zero elsewhere."""
        side = self.size.side
        square = patches.new_zeros(len(patches), side**2, patches.shape[-1])
        square = square.index_copy(1, self.stem.place, patches)
        return F.pixel_shuffle(square.transpose(1, 2).reshape(len(square), -1, side, side), self.size.patch)

    def pixels_of(self, visible: Int[Tensor, "B V"]) -> Float[Tensor, "B 1 64 64"]:
        """1 on the patches of the visible tokens, 0 elsewhere."""
        side = self.size.side
        square = torch.zeros(len(visible), side**2, device=visible.device)
        square.scatter_(1, self.stem.place[visible], 1.0)
        return F.interpolate(square.view(-1, 1, side, side), scale_factor=self.size.patch)

    def to_patches(self, maps: Float[Tensor, "B C 64 64"]) -> Float[Tensor, "B N P"]:
        """The values of each token's patch; undoes `to_map`."""
        flat = F.pixel_unshuffle(maps, self.size.patch).flatten(2)
        return flat[..., self.stem.place].transpose(1, 2)


class DiT(Peer):
    """Network F of the EDM denoiser; every block on all tokens. Zero at initialisation."""

    def __init__(self, model: str, context_dim: int, outline: Outline = "wafer") -> None:
        super().__init__(model, context_dim, outline)
        self.last = Modulated(self.size.width, self.size.width, 2 * self.size.patch**2)
        self.initialise()

    def forward(
        self,
        x: Float[Tensor, "B 2 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        pooled: Float[Tensor, "B 3C"],
    ) -> Float[Tensor, "B 2 64 64"]:
        tokens, condition = self.encode(x, valid, c_noise, pooled)
        return self.to_map(self.last(tokens, condition))


class MaskDiT(Peer):
    """The same with an encoder that sees the visible tokens, and a narrow decoder on all of them."""

    position: Tensor

    def __init__(self, model: str, context_dim: int, outline: Outline = "wafer") -> None:
        super().__init__(model, context_dim, outline)
        width, narrow = self.size.width, int(DECODER_WIDTH * self.size.width)
        self.narrow = Modulated(width, width, narrow)
        self.mask_token = nn.Parameter(torch.empty(1, 1, narrow))
        position = position_grid(narrow, self.size.side)[self.stem.place]
        self.register_buffer("position", position, persistent=False)
        depth = max(1, round(DECODER_DEPTH * self.depth))
        self.decoder = nn.ModuleList(PeerBlock(narrow, self.size.heads, width) for _ in range(depth))
        self.last = Modulated(narrow, width, 2 * self.size.patch**2)
        self.initialise()
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "B 2 64 64"],
        valid: Float[Tensor, "B 1 64 64"],
        c_noise: Float[Tensor, " B"],
        pooled: Float[Tensor, "B 3C"],
        visible: Int[Tensor, "B V"] | None = None,
    ) -> Float[Tensor, "B 2 64 64"]:
        """Network output F of all tokens; without `visible` (sampling) the encoder sees all of them."""
        seen, condition = self.encode(x, valid, c_noise, pooled, visible)
        tokens = self.narrow(seen, condition)
        if visible is not None:
            hidden = self.mask_token.to(tokens.dtype).expand(len(x), self.tokens, -1)
            tokens = scatter_tokens(hidden, visible, tokens)
        tokens = tokens + self.position
        for block in self.decoder:
            tokens = block(tokens, condition)
        return self.to_map(self.last(tokens, condition))


def denoised(
    network: DiT | MaskDiT,
    precondition: Preconditioning,
    noisy: Float[Tensor, "B 2 64 64"],
    valid: Float[Tensor, "B 1 64 64"],
    sigma: Float[Tensor, " B"],
    pooled: Float[Tensor, "B 3C"],
    *visible: Tensor | None,
) -> Float[Tensor, "B 2 64 64"]:
    """EDM's D(x; sigma) around the network."""
    read, c_noise, linear = precondition.inputs(noisy, sigma)
    return precondition.denoised(linear, sigma, network(read, valid, c_noise, pooled, *visible))


def dit_loss(network: DiT, precondition: Preconditioning, batch: TrainingBatch) -> Float[Tensor, ""]:
    """EDM's denoising loss on the valid pixels."""
    noisy = (batch.residual + batch.sigma.view(-1, 1, 1, 1) * batch.noise) * batch.valid
    out = denoised(network, precondition, noisy, batch.valid, batch.sigma, batch.condition.pooled)
    return precondition.loss(out - batch.residual, batch.sigma, batch.valid).mean()


def maskdit_loss(network: MaskDiT, precondition: Preconditioning, batch: TrainingBatch) -> Float[Tensor, ""]:
    """Denoising loss on the visible patches + 0.1 x MAE loss on the hidden ones.

    The MAE target is the noisy patch, normalised to mean 0 and variance 1 as in MAE; a batch without `visible` has
    no hidden patches and the denoising loss alone.
    """
    noisy = (batch.residual + batch.sigma.view(-1, 1, 1, 1) * batch.noise) * batch.valid
    out = denoised(
        network, precondition, noisy, batch.valid, batch.sigma, batch.condition.pooled, batch.visible
    )
    if batch.visible is None:
        return precondition.loss(out - batch.residual, batch.sigma, batch.valid).mean()
    seen = network.pixels_of(batch.visible) * batch.valid
    dsm = precondition.loss(out - batch.residual, batch.sigma, seen).mean()
    hidden = complement(batch.visible, network.tokens)
    target, guess = (gather_tokens(network.to_patches(maps), hidden) for maps in (noisy, out))
    target = F.layer_norm(target, target.shape[-1:])
    return dsm + MAE_WEIGHT * (guess - target).square().mean()


class PeerTrainer:
    """A training step as the peers do it: loss, backward, AdamW, average of the weights.

    Args:
        network: trained in place.
        params: `train.batch`, `train.precision` and `seed`; the batch is drawn as the student's is.
        sigma_data: standard deviation of the residual, in network units.
        device: where to compute.
    """

    def __init__(
        self,
        network: DiT | MaskDiT,
        params: Params,
        sigma_data: float,
        device: torch.device,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self.network = network.to(device).train()
        self.average = deepcopy(self.network).requires_grad_(False)
        self.params, self.device = params, device
        self.precondition = Preconditioning(sigma_data).to(device)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
        )
        self.step = 0

    def loss(self, batch: TrainingBatch) -> Float[Tensor, ""]:
        """Under autocast where the params ask for bf16."""
        bf16 = self.params.train.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            if isinstance(self.network, MaskDiT):
                return maskdit_loss(self.network, self.precondition, batch)
            return dit_loss(self.network, self.precondition, batch)

    def descend(self, batch: TrainingBatch) -> Float[Tensor, ""]:
        """One step on this batch; returns the loss before it."""
        loss = self.loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        update_average(self.average, self.network, AVERAGE_DECAY)
        self.step += 1
        return loss.detach()

    def train_step(self, data: TrainingData) -> Float[Tensor, ""]:
        """Draw the batch of this step (masks uniformly, as MaskDiT; DiT looks at none) and descend."""
        return self.descend(draw_batch(data, self.step, self.params, self.network.tokens, device=self.device))


@torch.inference_mode()
def sample_peer(
    network: DiT | MaskDiT,
    precondition: Preconditioning,
    noise: Float[Tensor, "B 2 64 64"],
    usable: Float[Tensor, "1 1 64 64"],
    pooled: Float[Tensor, "B 3C"],
    steps: int,
    sigma_range: tuple[float, float],
    bf16: bool,
) -> Float[Tensor, "B 2 64 64"]:
    """The student's sampler around a peer: the same noise levels and number of evaluations, nothing masked."""
    valid = usable.expand(len(noise), -1, -1, -1)

    def denoise(x: Tensor, sigma: Tensor, number: int) -> Tensor:
        levels = sigma.to(x.device).expand(len(x))
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            return denoised(network, precondition, x * valid, valid, levels, pooled) * usable

    return sample_trig(denoise, noise * usable, steps, precondition, *sigma_range)
