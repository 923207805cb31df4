"""The codec seam: a small KL autoencoder (LDM, 2112.10752; diffusers' `AutoencoderKL`) from 256x256 maps to latents.

Two halvings make 256x256 maps 64x64 latents, which the student takes as it takes maps: `Student(model, context_dim,
channels=latent_channels, outline="square")`. Latents are shifted and scaled to mean 0 and standard deviation 1 per
channel over the training maps, so a diffusion model needs no settings of its own for them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ikddit.atomic import atomic_dir
from ikddit.console import progress
from ikddit.errors import ModelError, TrainingError
from ikddit.model_folder import read_network, write_network
from ikddit.vision import make_torchvision_importable

LATENT_SIDE = 64
"""Side of the latents, which the student fixes."""


@dataclass(frozen=True)
class CodecConfig:
    """What is needed to rebuild the codec; stored in config.json."""

    channels: int = 2
    """Map channels; the validity mask enters as one more."""
    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 64, 64)
    """Channels at each resolution; the side is halved between two of them."""
    layers: int = 1
    """Residual blocks at each resolution."""
    groups: int = 8
    """Of the group normalisation; divides every width."""

    @property
    def side(self) -> int:
        """Pixels per side of the maps: 256 with three widths."""
        return LATENT_SIDE << (len(self.widths) - 1)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "CodecConfig":
        """Rebuild from `asdict` after a trip through JSON.

        >>> from dataclasses import asdict
        >>> CodecConfig.from_json(asdict(CodecConfig())) == CodecConfig()
        True
        """
        return cls(**{**values, "widths": tuple(values["widths"])})


class Codec(nn.Module):
    """Maps to latents and back."""

    shift: Tensor
    scale: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        make_torchvision_importable()
        from diffusers import AutoencoderKL

        self.config = config
        depth = len(config.widths)
        # no attention in the middle: 64x64 positions would cost more than everything else
        self.network = AutoencoderKL(
            in_channels=config.channels + 1,
            out_channels=config.channels,
            down_block_types=("DownEncoderBlock2D",) * depth,
            up_block_types=("UpDecoderBlock2D",) * depth,
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            latent_channels=config.latent_channels,
            norm_num_groups=config.groups,
            sample_size=config.side,
            mid_block_add_attention=False,
        )
        self.register_buffer("shift", torch.zeros(1, config.latent_channels, 1, 1))
        self.register_buffer("scale", torch.ones(1, config.latent_channels, 1, 1))

    def posterior(
        self, maps: Float[Tensor, "B C 256 256"], valid: Float[Tensor, "B 1 256 256"]
    ) -> tuple[Float[Tensor, "B L 64 64"], Float[Tensor, "B L 64 64"]]:
        """Mean and log-variance of the raw latents; values at invalid pixels are ignored.

        Raises:
            ModelError: the maps have another size or number of channels than the codec was made for.
        """
        side = self.config.side
        if maps.shape[1:] != (self.config.channels, side, side):
            raise ModelError(
                f"codec: maps of shape {tuple(maps.shape[1:])}, expected ({self.config.channels}, {side}, {side}); "
                "resample the maps, or use codec: none for 64x64 maps"
            )
        moments = self.network.encode(torch.cat([maps * valid, valid], dim=1)).latent_dist
        return moments.mean, moments.logvar

    def encode(
        self, maps: Float[Tensor, "B C 256 256"], valid: Float[Tensor, "B 1 256 256"]
    ) -> Float[Tensor, "B L 64 64"]:
        """Normalised latents (the posterior's mean); maps in network units, as for the student.

        Raises:
            ModelError: see `posterior`.
        """
        return (self.posterior(maps, valid)[0] - self.shift) / self.scale

    def decode(self, latents: Float[Tensor, "B L 64 64"]) -> Float[Tensor, "B C 256 256"]:
        """Maps of normalised latents, at every pixel; the caller knows where a map is defined."""
        out: Tensor = self.network.decode(latents * self.scale + self.shift).sample
        return out

    def save(self, folder: Path | str) -> None:
        """Write config.json and model.safetensors, the folder as a whole."""
        with atomic_dir(folder) as scratch:
            write_network(self.config, self.state_dict(), scratch)

    @classmethod
    def load(cls, folder: Path | str) -> "Codec":
        """Load what `save` wrote.

        Raises:
            ModelError: a file is missing, damaged, or does not fit the config.
        """
        remedy = "train one with `fit_codec`"
        return read_network(Path(folder), lambda values: cls(CodecConfig.from_json(values)), "codec", remedy)


def codec_loss(
    codec: Codec,
    maps: Float[Tensor, "B C 256 256"],
    valid: Float[Tensor, "B 1 256 256"],
    noise: Float[Tensor, "B L 64 64"],
    kl_weight: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean squared reconstruction error on valid pixels plus `kl_weight` times the mean KL per latent value.

    KL(N(m, v) || N(0, 1)) = (m^2 + v - 1 - ln v) / 2.

    Returns:
        The loss, and its reconstruction part alone.
    """
    mean, log_variance = codec.posterior(maps, valid)
    out = codec.network.decode(mean + (0.5 * log_variance).exp() * noise).sample
    error = ((out - maps).square() * valid).sum() / (valid.sum() * maps.shape[1]).clamp(min=1)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error + kl_weight * kl, error


def fit_codec(
    maps: Float[Tensor, "N C 256 256"],
    valid: Float[Tensor, "N 1 256 256"],
    config: CodecConfig,
    steps: int,
    batch: int = 8,
    learning_rate: float = 1e-3,
    kl_weight: float = 1e-4,
    seed: int = 0,
) -> tuple[Codec, list[float]]:
    """Train a codec and measure the shift and scale of its latents.

    Args:
        maps: in network units (standard deviation about 1), finite everywhere; their device is the codec's.
        valid: 1 where a pixel was measured.
        config: sizes.
        steps: optimiser steps, at least 1; step k draws its batch and noise from (seed, k).
        batch: maps per step.
        learning_rate: of AdamW.
        kl_weight: pull of the latents towards N(0, 1); small, as in LDM.
        seed: of weights and draws.

    Returns:
        The codec and the reconstruction error of every step.

    Raises:
        ModelError: the maps do not have the size that `config` asks for.
        TrainingError: the loss is not finite.
    """
    torch.manual_seed(seed)
    codec = Codec(config).train().to(maps.device)
    optimiser = torch.optim.AdamW(codec.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    errors: list[float] = []
    for step in progress(range(steps), "codec", unit="step"):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        index = torch.randperm(len(maps), generator=generator)[:batch]
        noise = torch.randn(len(index), config.latent_channels, LATENT_SIDE, LATENT_SIDE, generator=generator)
        index, noise = index.to(maps.device), noise.to(maps.device)
        loss, error = codec_loss(codec, maps[index], valid[index], noise, kl_weight)
        if not bool(torch.isfinite(loss)):
            raise TrainingError(f"codec step {step}: loss {float(loss.detach())}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimiser.step()
        errors.append(float(error.detach()))
    codec.eval()
    measure_latents(codec, maps, valid, batch)
    return codec, errors


@torch.no_grad()
def measure_latents(
    codec: Codec, maps: Float[Tensor, "N C 256 256"], valid: Float[Tensor, "N 1 256 256"], batch: int
) -> None:
    """Set the codec's shift and scale to mean and standard deviation of its raw latents, per channel."""
    total = torch.zeros(2, codec.config.latent_channels, dtype=torch.float64)
    for start in range(0, len(maps), batch):
        part = slice(start, start + batch)
        latents = codec.posterior(maps[part], valid[part])[0].double()
        total += torch.stack([latents.sum((0, 2, 3)), latents.square().sum((0, 2, 3))]).cpu()
    mean, square = total / (len(maps) * LATENT_SIDE**2)
    codec.shift.copy_(mean.view(1, -1, 1, 1))
    codec.scale.copy_((square - mean.square()).clamp(min=1e-12).sqrt().view(1, -1, 1, 1))
