"""The public inference API: records in, overlay maps in nm with uncertainty out."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.encode import encode_records
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.request import align_log_channels, request_table
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.diffusion.guidance import SIGMA_HIGH, SIGMA_LOW, Guidance
from ikddit.diffusion.model import OverlayModel
from ikddit.diffusion.plan import RareOptions, SamplingOptions, SamplingPlan, draw_order
from ikddit.diffusion.sampler import DDPM_STEPS
from ikddit.embedding.conditions import gather_conditions, missing_inputs
from ikddit.errors import InputError, ModelError
from ikddit.forecast import Forecast, forecast_table
from ikddit.manifest import check_manifest, file_hashes, fingerprint
from ikddit.mpom.schema import ID_FIELDS
from ikddit.overlay.kpi import m3s_interval_nm, out_of_spec_probability, samples_m3s_nm

if TYPE_CHECKING:
    import pandas as pd

Records = pa.Table | PreparedSplit
SAMPLES_AT_ONCE = 256
POINT_PAIRS = 2
"""Antithetic noise pairs of the point forecast."""


class Generator:
    """A trained student with its normaliser and vocabularies."""

    fingerprint: str = ""
    """Names the files it was loaded from by their content; empty where it was not loaded from files."""

    def __init__(self, model: OverlayModel, normaliser: Normaliser, vocabularies: Vocabularies) -> None:
        self.model = model
        self.normaliser = normaliser
        self.vocabularies = vocabularies

    @classmethod
    def load(cls, path: Path | str, device: str | torch.device = "cpu") -> "Generator":
        """Load a model folder or a registry address such as `models:/ikddit@champion`.

        The files of a registered version are held to the hashes noted at its registration.

        Raises:
            ModelError: the folder is incomplete, damaged or changed, or the registry has no such version.
        """
        folder = _from_registry(str(path)) if str(path).startswith("models:/") else Path(path)
        hashes = file_hashes(folder)
        check_manifest(folder, hashes)
        model = OverlayModel.load(folder, device)
        if model.codec is not None:
            raise ModelError(
                f"{folder}: diffuses latents; sample and decode it through OverlayModel (docs/model.md)"
            )
        try:
            normaliser = Normaliser.load(folder / "normaliser.json")
            vocabularies = Vocabularies.load(folder / "vocabularies.json")
        except InputError as error:
            raise ModelError(f"{folder}: {error}; run `dvc repro train`, or check the path") from error
        generator = cls(model, normaliser, vocabularies)
        generator.fingerprint = fingerprint(hashes)
        return generator

    @property
    def usable(self) -> np.ndarray:
        """Pixels (64, 64) where a map is generated; elsewhere it is 0."""
        return self.model.usable[0, 0].cpu().numpy() > 0

    def sample(
        self,
        records: Records,
        n: int = 16,
        steps: int = 20,
        mask_ratio: float | None = None,
        guidance: float | None = None,
        seed: int = 0,
        **options: Unpack[RareOptions],
    ) -> Float[np.ndarray, "W n 2 64 64"]:
        """Draw n maps per wafer, in nm.

        A wafer's samples depend on `seed` and its barcode alone, not on the wafers around it.

        Args:
            records: wafers in the record schema (targets are ignored), or a prepared split of the same data.
            n: samples per wafer, at least 1.
            steps: of the sampler, at least 2; one denoiser evaluation each (Heun two).
            mask_ratio: share of tokens hidden from the deep encoder in masked inference; None: as trained.
            guidance: weight w of D_weak + w (D - D_weak), at least 0; None or 1: unguided. It sharpens the
                residual around the conditional mean, which itself is not guided.
            seed: of the noise.
            options: see `RareOptions`.

        Raises:
            InputError: an argument is out of range, there are no wafers, or the model was not trained for this
                guidance.
        """
        blocks = self.sample_blocks(
            records, n, steps, seed, mask_ratio=mask_ratio, guidance=guidance, **options
        )
        return np.concatenate([maps for _, maps in blocks])

    def sample_blocks(
        self,
        records: Records,
        n: int = 16,
        steps: int = 20,
        seed: int = 0,
        **options: Unpack[SamplingOptions],
    ) -> Iterator[tuple[slice, Float[np.ndarray, "w n 2 64 64"]]]:
        """As `sample`, a few wafers at a time: memory does not grow with the number of wafers."""
        if n < 1 or steps < 2:
            raise InputError("request", "n, steps", f"n={n}, steps={steps}", "use n >= 1 and steps >= 2")
        plan = self.plan(steps, **options)
        split = self._encode(records)
        if not len(split):
            raise InputError("request", "records", "no wafers", "name one or more")
        wafers = max(1, SAMPLES_AT_ONCE // n)
        with torch.inference_mode():
            for start in range(0, len(split), wafers):
                block = slice(start, min(start + wafers, len(split)))
                yield block, self._sample_block(split, block, n, seed, plan)

    def plan(self, steps: int = 20, **options: Unpack[SamplingOptions]) -> SamplingPlan:
        """Check the options of a request against this model.

        Raises:
            InputError: an option is out of range, or the model was not trained for this guidance.
        """
        config = self.model.config
        sampler = options.get("sampler", "trig")
        if sampler not in ("trig", "dpm", "heun", "ddpm"):
            raise InputError("request", "sampler", repr(sampler), "use trig, dpm, heun or ddpm")
        if sampler == "ddpm" and steps > DDPM_STEPS:
            raise InputError("request", "steps", str(steps), f"the ddpm sampler has at most {DDPM_STEPS}")
        inference = options.get("inference") or config.served
        if inference not in ("full", "masked"):
            raise InputError("request", "inference", repr(inference), "use full or masked")
        ratio = options.get("mask_ratio")
        if ratio is not None and not 0 <= ratio < 1:
            raise InputError("request", "mask_ratio", str(ratio), "use a share from 0 to below 1")
        weight, kind = options.get("guidance"), options.get("guidance_kind", "cfg")
        low, high = options.get("sigma_low", SIGMA_LOW), options.get("sigma_high", SIGMA_HIGH)
        try:
            guidance = Guidance(1.0 if weight is None else float(weight), kind, low, high)
        except ValueError as error:
            raise InputError("request", "guidance", str(error), "leave it out to sample unguided") from None
        dropout = config.condition_dropout if kind == "cfg" else config.path_dropout
        if guidance.weight != 1 and dropout == 0:
            name = "train.condition_dropout" if kind == "cfg" else "train.path_dropout"
            raise InputError(
                "request",
                "guidance",
                f"the model has no weak branch for {kind}, it was trained with {name} 0",
                f"train with {name} above 0, or leave guidance out",
            )
        return SamplingPlan(steps, inference, ratio, None if weight is None else guidance, sampler)

    def _sample_block(
        self, split: PreparedSplit, block: slice, n: int, seed: int, plan: SamplingPlan
    ) -> np.ndarray:
        device = self.model.usable.device
        conditions = gather_conditions(split, block, self.normaliser.sigma_nm).to(device)
        mean = self.model.mean(conditions)
        cache = self.model.condition(conditions).repeat_interleave(n)
        noise, order, lost, generators = [], [], [], []
        groups = self.model.student.encoder.groups
        gaps = missing_inputs(conditions).any(1).tolist()
        for barcode, gap in zip(split.barcode[block], gaps, strict=True):
            generator = torch.Generator().manual_seed(_wafer_seed(seed, barcode))
            noise.append(torch.randn(n, 2, 64, 64, generator=generator))
            order.append(draw_order(n, groups, generator))
            shape = n, *self.model.mean.lost.shape[:2]
            lost.append(torch.randn(shape, generator=generator) if gap else torch.zeros(shape))
            generators += [generator] * n
        residual = self.model.sample_residual(
            torch.cat(noise).to(device), cache, plan, torch.cat(order).to(device), generators
        )
        if any(gaps):
            residual = residual + self.model.mean.draw_lost(conditions, torch.stack(lost).to(device)).flatten(
                0, 1
            )
        maps = (mean.repeat_interleave(n, 0) + residual) * self.model.usable * self.normaliser.sigma_nm
        out: np.ndarray = maps.view(-1, n, 2, 64, 64).cpu().numpy()
        return out

    def point(self, records: Records, seed: int = 0) -> Float[np.ndarray, "W 2 64 64"]:
        """The point forecast in nm: mu(c) plus the residual's mean.

        At the highest noise the denoiser's answer is E[residual | c] (EDM), shrunk by what the preconditioning knows
        of that noise, which is undone. It is averaged over two antithetic pairs of noise, so it carries no sampling
        noise worth the name.
        """
        split = self._encode(records)
        out = np.empty((len(split), 2, 64, 64), np.float32)
        device = self.model.usable.device
        sigma = torch.tensor(self.model.config.sigma_max, device=device)
        precondition = self.model.precondition
        with torch.inference_mode():
            for start in range(0, len(split), SAMPLES_AT_ONCE // 2):
                block = slice(start, min(start + SAMPLES_AT_ONCE // 2, len(split)))
                conditions = gather_conditions(split, block, self.normaliser.sigma_nm).to(device)
                cache = self.model.condition(conditions)
                generator = torch.Generator().manual_seed(seed)
                residual: Tensor = torch.zeros(1, device=device)
                for _ in range(POINT_PAIRS):
                    noise = torch.randn(1, 2, 64, 64, generator=generator).to(device) * self.model.usable
                    for sign in (1, -1):
                        x = precondition.noisy(sign * noise, sigma).expand(len(conditions), -1, -1, -1)
                        residual = residual + self.model.denoise(x, sigma, cache)[0] / (2 * POINT_PAIRS)
                total = self.model.mean(conditions) + precondition.unshrunk(residual, sigma)
                out[block] = (total * self.model.usable * self.normaliser.sigma_nm).cpu().numpy()
        return out

    def predict(
        self,
        records: Records,
        n: int = 16,
        steps: int = 20,
        seed: int = 0,
        limit_nm: float = 8.0,
        each: Callable[[list[str], np.ndarray], None] | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Forecast:
        """Point forecast, sigma map, M3S with its 90 % interval, out-of-spec probability.

        Args:
            limit_nm: specification limit for the larger of the two axes' |mean| + 3 sigma, above 0.
            each: called with the barcodes and the maps (w, n, 2, 64, 64), nm, of a few wafers at a time, before
                their samples are let go.
            options: of the samples, see `SamplingOptions`; the point forecast comes from the highest noise,
                which is never guided or masked.

        Raises:
            InputError: the limit is not above 0, there are no wafers, or as in `sample`.
        """
        if not limit_nm > 0:
            raise InputError("request", "limit_nm", str(limit_nm), "use a limit above 0 nm")
        split = self._encode(records)
        usable = self.usable
        sigma, m3s = [], []
        for block, maps in self.sample_blocks(split, n, steps, seed, **options):
            if each is not None:
                each(split.barcode[block], maps)
            sigma.append(maps.std(axis=1, ddof=1) if n > 1 else np.zeros_like(maps[:, 0]))
            m3s.append(samples_m3s_nm(maps, np.broadcast_to(usable, (len(maps), *usable.shape))))
        m = np.concatenate(m3s)
        low, high = m3s_interval_nm(m)
        return Forecast(
            barcode=split.barcode,
            mean=self.point(split, seed),
            sigma=np.concatenate(sigma),
            m3s=m.mean(1),
            m3s_low=low,
            m3s_high=high,
            out_of_spec=out_of_spec_probability(m, limit_nm),
            missing=_missing(split),
        )

    def predict_frame(
        self,
        frame: "pd.DataFrame",
        n: int = 16,
        steps: int = 20,
        seed: int = 0,
        limit_nm: float = 8.0,
        **options: Unpack[SamplingOptions],
    ) -> "pd.DataFrame":
        """`predict` for a table with one wafer a row, as MLflow serving and batch scoring use it.

        Args:
            frame: column `barcode`, and any of the record's id columns, `log_lines` (list of str),
                `log_features` (list of float, NaN or None where missing), `prev_map` (flat list of 2*64*64
                float, nm), `prev_valid` (flat list of 64*64). What is absent counts as missing.

        Returns:
            barcode, mean and sigma (flat lists of 2*64*64, nm), m3s_x_nm, m3s_x_low_nm, m3s_x_high_nm (and y),
            out_of_spec, missing (text; inputs that the wafer lacks or, of ids, that training did not know).

        Raises:
            InputError: names the column that does not fit.
        """
        return forecast_table(
            self.predict(self._table(frame), n, steps, seed, limit_nm, **options)
        ).to_pandas()

    def _table(self, frame: "pd.DataFrame") -> pa.Table:
        return request_table(frame, self.normaliser.log_names)

    def _encode(self, records: Records) -> PreparedSplit:
        if isinstance(records, PreparedSplit):
            return records
        config = self.model.config
        table = align_log_channels(records, self.normaliser.log_names)
        return PreparedSplit.from_table(
            encode_records(
                table,
                self.normaliser,
                self.vocabularies,
                config.max_lines,
                config.embedding.values_per_line,
            )
        )


def _missing(split: PreparedSplit) -> list[str]:
    """What each wafer lacks of `missing_inputs`, by name: its sigma is the larger for it."""
    names = np.array(["prev_map", "logs", *ID_FIELDS])
    logs = (split.log_missing > 0).all(1) & (split.line_templates == 0).all(1)
    lacking = np.column_stack([~split.prev_valid.any((1, 2)), logs, split.ids == 0])
    return [", ".join(names[row]) for row in lacking]


def _wafer_seed(seed: int, barcode: str) -> int:
    digest = hashlib.sha256(f"{seed}:{barcode}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _from_registry(uri: str) -> Path:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
    import mlflow
    from mlflow.exceptions import MlflowException

    from ikddit.checkout import tracking_uri

    # What it is told in the call, MLflow forgets for the registry, and looks beside the working directory.
    mlflow.set_tracking_uri(tracking_uri())
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except MlflowException as error:
        raise ModelError(f"{uri}: {error}; `ikddit models` lists what is registered") from error
    found = sorted(folder.rglob("model.safetensors"))
    if not found:
        raise ModelError(f"{uri}: holds no model.safetensors; it was not registered by this project")
    return found[0].parent
