"""The whole served model: embedding, conditional mean, student and preconditioning, with full and masked sampling."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ikddit.atomic import read_json, write_json
from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.sampler import Sampler, sample_dpm, sample_heun
from ikddit.embedding.conditions import Conditions
from ikddit.embedding.encoders import EmbeddingConfig, UnifiedEmbedding
from ikddit.errors import ModelError
from ikddit.networks.codec import Codec, CodecConfig
from ikddit.networks.masking import visible_count
from ikddit.networks.mean import ConditionalMean, MeanConfig, SpotLine
from ikddit.networks.student import ConditionCache, Student

FORMAT_VERSION = 2
"""2: patches off the wafer are no tokens; a student of version 1 was trained with them."""
Inference = Literal["full", "masked"]
FULL_ENDS = 2
"""Masked inference: this many first and last steps are full."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to rebuild the model from its folder (config.json)."""

    model: str
    embedding: EmbeddingConfig
    mean: MeanConfig
    sigma_nm: float
    """Map scale: network units times sigma_nm are nm."""
    sigma_data: float
    """Measured standard deviation of the residual on valid training pixels, in network units."""
    modes: int
    """Modes of the residual that the preconditioning treats apart; 0 is plain EDM."""
    sigma_min: float
    sigma_max: float
    mask_ratio: float
    max_lines: int
    precision: str
    served: Inference = "full"
    codec: CodecConfig | None = None
    """Set: the student diffuses this codec's latents, and maps are its decoder's."""
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelConfig":
        """Rebuild from `asdict` after a trip through JSON."""
        values = dict(values)
        if values.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"format_version {values.get('format_version')}, expected {FORMAT_VERSION}")
        e, m = values["embedding"], values["mean"]
        values["embedding"] = EmbeddingConfig(**{**e, "id_sizes": tuple(e["id_sizes"])})
        spots = tuple(SpotLine(**s) for s in m["spots"])
        values["mean"] = MeanConfig(**{**m, "id_sizes": tuple(m["id_sizes"]), "spots": spots})
        if values.get("codec") is not None:
            values["codec"] = CodecConfig.from_json(values["codec"])
        return cls(**values)


class OverlayModel(nn.Module):
    """Generates maps in network units (nm / sigma_nm) from conditions."""

    usable: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = UnifiedEmbedding(config.embedding)
        self.mean = ConditionalMean(config.mean)
        self.precondition = Preconditioning(config.sigma_data, config.modes)
        self.codec = None if config.codec is None else Codec(config.codec)
        self.student = (
            Student(config.model, config.embedding.dim, extra_channels=self.precondition.extra_channels)
            if config.codec is None
            else Student(config.model, config.embedding.dim, config.codec.latent_channels, "square")
        )
        # pixels that carry marks on most training wafers: where a generated map is defined
        self.register_buffer("usable", torch.ones(1, 1, 64, 64))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """bf16 matrix products where the config asks for them; the sampler's own arithmetic stays fp32."""
        device = self.usable.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            yield

    def condition(self, c: Conditions) -> ConditionCache:
        """Keys, values and pooled condition, once per wafer."""
        with self.autocast():
            return self.student.encoder.cache(self.embedding(c))

    def denoise(
        self,
        x: Float[Tensor, "B 2 64 64"],
        sigma: Tensor,
        cache: ConditionCache,
        visible: Int[Tensor, "B V"] | None = None,
        deep: Float[Tensor, "B N D"] | None = None,
    ) -> tuple[Float[Tensor, "B 2 64 64"], Float[Tensor, "B N D"]]:
        """D(x; sigma) of the residual, and the deep features of all tokens for reuse in the next step."""
        sigma = sigma.to(x.device).expand(len(x))
        valid = self.usable.expand(len(x), -1, -1, -1)
        read, c_noise, linear = self.precondition.inputs(x * valid, sigma)
        with self.autocast():
            encoder = self.student.encoder
            known = encoder.attendable(self.usable)
            known = None if known is None else known.expand(len(x), -1)
            shallow, modulation = encoder.shallow(read, valid, c_noise, cache, known)
            full, _ = self.student.deep_full(shallow, modulation, cache, visible, deep, known=known)
            raw = self.student.decoder(shallow, full, modulation, known)
        return self.precondition.denoised(linear, sigma, raw), full

    def sample_residual(
        self,
        noise: Float[Tensor, "B 2 64 64"],
        cache: ConditionCache,
        steps: int,
        inference: Inference = "full",
        mask_ratio: float | None = None,
        order: Int[Tensor, "B N"] | None = None,
        sampler: Sampler = "dpm",
    ) -> Float[Tensor, "B 2 64 64"]:
        """Draw residuals from unit noise.

        Masked inference runs the deep encoder on a share of the tokens; each step takes the next ones of
        `order` (complementary halves A, B, A, B at ratio 0.5) and a hidden token keeps its own deep feature
        of the last step that saw it. The first and last two steps are full.

        Args:
            order: a permutation of the token positions per sample; needed for masked inference.
        """
        ratio = self.config.mask_ratio if mask_ratio is None else mask_ratio
        tokens = self.student.encoder.tokens
        count = visible_count(tokens, ratio)
        deep: Tensor | None = None
        evaluations = steps if sampler == "dpm" else 2 * steps - 1

        def denoise(x: Tensor, sigma: Tensor, number: int) -> Tensor:
            nonlocal deep
            visible = None
            middle = FULL_ENDS <= number < evaluations - FULL_ENDS
            if inference == "masked" and middle and count < tokens:
                if order is None:
                    raise ValueError("masked inference needs `order`")
                visible = order.roll(-(number - FULL_ENDS) * count, 1)[:, :count].sort(1).values
            out, deep = self.denoise(x, sigma, cache, visible, deep)
            return out * self.usable

        noise = noise * self.usable
        low, high = self.config.sigma_min, self.config.sigma_max
        if sampler == "heun":
            return sample_heun(denoise, noise, steps, low, high)
        return sample_dpm(denoise, noise, steps, self.config.sigma_data, low, high)

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into an existing folder."""
        from safetensors.torch import save_file

        write_json(folder / "config.json", asdict(self.config))
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(state, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> "OverlayModel":
        """Load a model folder.

        Raises:
            ModelError: a file is missing, damaged, or does not fit the code.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            model = cls(ModelConfig.from_json(read_json(folder / "config.json")))
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder}: not a usable model folder ({error}); run `dvc repro train`, or check the path"
            ) from error
        return model.eval().to(device)

    def with_inference(self, served: Inference) -> ModelConfig:
        """The config with another served inference mode."""
        return replace(self.config, served=served)
