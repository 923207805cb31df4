"""The whole served model: embedding, conditional mean, student and preconditioning, with full and masked sampling."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ikddit.device import fast_bf16
from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.plan import Inference, SamplingPlan, visible_at
from ikddit.diffusion.sampler import sample_ddpm, sample_dpm, sample_heun, sample_trig
from ikddit.embedding.conditions import Conditions
from ikddit.embedding.encoders import ConditionTokens, EmbeddingConfig, UnifiedEmbedding
from ikddit.errors import ModelError
from ikddit.model_folder import read_network, write_network
from ikddit.networks.codec import Codec, CodecConfig
from ikddit.networks.masking import visible_count
from ikddit.networks.mean import ConditionalMean, MeanConfig, SpotLine
from ikddit.networks.student import ConditionCache, Student

FORMAT_VERSION = 4
"""2: patches off the wafer are no tokens; a student of version 1 was trained with them. 3: samples spread by what an
input that a wafer lacks would have told (`ConditionalMean.draw_lost`). 4: maps with gaps are no longer projected as if
the gaps were measured (`component_scores`)."""


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
    """That it was trained in, fp32 or bf16."""
    served: Inference = "full"
    """What the acceptance gate decided (`ikddit.evaluation.gate`)."""
    condition_dropout: float = 0.0
    """Share of training rows without condition: above 0, classifier-free guidance is possible."""
    path_dropout: float = 0.0
    """Share of training rows without the deep encoder: above 0, path-drop guidance is possible."""
    dense_path: bool = True
    """False: hidden tokens enter the decoder as mask tokens (see `Student`)."""
    cross_attention: bool = True
    """False: the blocks read the pooled condition only."""
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


Branch = Callable[[Tensor, Tensor, int, float | None], Tensor]
"""(x, sigma, number of the evaluation, weight of path-drop guidance or None) -> D(x; sigma)."""


class OverlayModel(nn.Module):
    """Generates maps in network units (nm / sigma_nm) from conditions.

    Raises:
        ModelError: modes of 64x64 maps are asked for beside a codec, whose latents have none.
    """

    usable: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.codec is not None and config.modes:
            raise ModelError(
                f"modes {config.modes} with a codec: modes are of 64x64 maps, latents have none; set modes to 0"
            )
        self.config = config
        self.embedding = UnifiedEmbedding(config.embedding)
        self.mean = ConditionalMean(config.mean)
        self.precondition = Preconditioning(config.sigma_data, config.modes)
        self.codec = None if config.codec is None else Codec(config.codec)
        codec = config.codec
        self.student = Student(
            config.model,
            config.embedding.dim,
            2 if codec is None else codec.latent_channels,
            "wafer" if codec is None else "square",
            self.precondition.extra_channels,
            dense_path=config.dense_path,
            cross_attention=config.cross_attention,
        )
        # pixels that carry marks on most training wafers: where a generated map is defined
        self.register_buffer("usable", torch.ones(1, 1, 64, 64))

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """bf16 matrix products (see `precision`); the sampler's own arithmetic stays fp32."""
        with torch.autocast(self.usable.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    @property
    def precision(self) -> str:
        """What samples are computed in: bf16 if the model was trained so and this hardware has it, else fp32."""
        return "bf16" if self.config.precision == "bf16" and fast_bf16(self.usable.device) else "fp32"

    def condition(self, c: Conditions) -> ConditionCache:
        """Keys, values and pooled condition, once per wafer."""
        with self.autocast():
            return self.student.encoder.cache(self.embedding(c))

    def unconditional(self, batch: int) -> ConditionCache:
        """The cache of a dropped condition for `batch` samples, the weak branch of classifier-free guidance.

        Every token of a dropped condition is the same zero, so one of them gives what all of them would.
        """
        dim, device = self.config.embedding.dim, self.usable.device
        nothing = ConditionTokens(
            torch.zeros(1, 1, dim, device=device),
            torch.zeros(1, 1, dtype=torch.bool, device=device),
            torch.zeros(1, 3 * dim, device=device),
        )
        with self.autocast():
            return self.student.encoder.cache(nothing).repeat_interleave(batch)

    def denoise(
        self,
        x: Float[Tensor, "B 2 64 64"],
        sigma: Tensor,
        cache: ConditionCache,
        visible: Int[Tensor, "B V"] | None = None,
        deep: Float[Tensor, "B N D"] | None = None,
        path_drop: float | None = None,
    ) -> tuple[Float[Tensor, "B 2 64 64"], Float[Tensor, "B N D"]]:
        """D(x; sigma) of the residual, and the deep features of all tokens for reuse in the next step.

        Args:
            path_drop: weight of path-drop guidance; D is affine in the network's output, so that is where the
                weak branch, which shares the dense path, comes in.
        """
        sigma = sigma.to(x.device).expand(len(x))
        valid = self.usable.expand(len(x), -1, -1, -1)
        read, c_noise, linear = self.precondition.inputs(x * valid, sigma)
        with self.autocast():
            encoder = self.student.encoder
            known = encoder.attendable(self.usable)
            known = None if known is None else known.expand(len(x), -1)
            encoded = self.student.encode(read, valid, c_noise, cache, visible, deep, known=known)
            raw = self.student.decode(encoded, encoded.deep).float()
            if path_drop is not None:
                hidden = self.student.decoder.hidden.expand_as(encoded.skip)
                weak = self.student.decode(encoded, hidden).float()
                raw = weak.lerp(raw, path_drop)
        return self.precondition.denoised(linear, sigma, raw), encoded.deep

    def sample_residual(
        self,
        noise: Float[Tensor, "B 2 64 64"],
        cache: ConditionCache,
        plan: SamplingPlan,
        order: Int[Tensor, "B N"] | None = None,
        generators: list[torch.Generator] | None = None,
    ) -> Float[Tensor, "B 2 64 64"]:
        """Draw residuals from unit noise.

        Masked inference runs the deep encoder on a share of the tokens; each evaluation takes the next ones of
        `order` (complementary halves A, B, A, B at ratio 0.5) and a hidden token keeps its own deep feature
        of the last evaluation that saw it. The first and last two evaluations are full.

        Args:
            order: a permutation of the token positions per sample (`draw_order`); needed for masked inference.
            generators: one per sample, of the noise that the `ddpm` sampler adds.

        Raises:
            ValueError: the plan needs `order` or `generators` and they are not given.
        """
        if plan.inference == "masked" and order is None:
            raise ValueError("masked inference needs `order`")
        masks = order if plan.inference == "masked" else None
        guidance, sigma_data = plan.guidance, self.config.sigma_data
        strong = self._branch(cache, masks, plan)
        weak = strong
        if guidance is not None and guidance.kind == "cfg":
            weak = self._branch(self.unconditional(len(noise)), masks, plan)

        def denoise(x: Tensor, sigma: Tensor, number: int) -> Tensor:
            if guidance is None or not guidance.active(float(sigma), sigma_data):
                out = strong(x, sigma, number, None)
            elif guidance.kind == "path_drop":
                out = strong(x, sigma, number, guidance.weight)
            else:
                out = weak(x, sigma, number, None).lerp(strong(x, sigma, number, None), guidance.weight)
            return out * self.usable

        noise = noise * self.usable
        low, high = self.config.sigma_min, self.config.sigma_max
        if plan.sampler == "trig":
            return sample_trig(denoise, noise, plan.steps, self.precondition, low, high)
        if plan.sampler == "ddpm":
            if generators is None:
                raise ValueError("the ddpm sampler needs `generators`")
            return sample_ddpm(denoise, noise, plan.steps, sigma_data, generators)
        start = self.precondition.noisy(noise, torch.tensor(high, device=noise.device))
        if plan.sampler == "heun":
            return sample_heun(denoise, start, plan.steps, low, high)
        return sample_dpm(denoise, start, plan.steps, sigma_data, low, high)

    def _branch(self, cache: ConditionCache, masks: Tensor | None, plan: SamplingPlan) -> "Branch":
        """A denoiser that remembers its own deep features from one evaluation to the next."""
        ratio = self.config.mask_ratio if plan.mask_ratio is None else plan.mask_ratio
        count = visible_count(self.student.encoder.tokens, ratio)
        deep: Tensor | None = None
        last = -1

        def denoise(x: Tensor, sigma: Tensor, number: int, path_drop: float | None) -> Tensor:
            nonlocal deep, last
            visible = None
            # a branch that was not run in the evaluation before has no fresh feature to reuse: it runs full
            if masks is not None and deep is not None and last == number - 1:
                visible = visible_at(masks, number, plan.evaluations, count)
            out, deep = self.denoise(x, sigma, cache, visible, deep, path_drop)
            last = number
            return out

        return denoise

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into an existing folder."""
        write_network(self.config, self.state_dict(), folder)

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> "OverlayModel":
        """Load a model folder.

        Raises:
            ModelError: a file is missing, damaged, or does not fit the code.
        """
        remedy = "run `dvc repro train`, or check the path"
        made = read_network(
            Path(folder), lambda values: cls(ModelConfig.from_json(values)), "model folder", remedy
        )
        return made.to(device)
