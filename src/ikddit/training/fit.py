"""From prepared data and the embedding to the student and teacher folders: mean, residuals, loop, saving."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ikddit.atomic import atomic_dir
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.device import fast_bf16, pick_device, pick_precision
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.conditions import gather_conditions, gather_maps
from ikddit.embedding.encoders import ConditionTokens, UnifiedEmbedding
from ikddit.embedding.fit import load_embedding
from ikddit.errors import TrainingError
from ikddit.model_folder import write_network
from ikddit.networks.mean import ConditionalMean
from ikddit.params import Params
from ikddit.training.batch import LearningConditions, TrainingData
from ikddit.training.checkpoint import CheckpointFile
from ikddit.training.distributed import ALONE, Workers
from ikddit.training.loop import Trainer
from ikddit.training.mean import fit_mean

log = logging.getLogger("ikddit")
CHUNK = 512
SIGMA_MIN = 0.02
"""Lowest noise in network units: about 0.04 nm, far below the white noise of a mark."""


@dataclass(frozen=True)
class Fitted:
    """A trained model with its curves and figures."""

    trainer: Trainer
    rows: list[list[float]]
    report: dict[str, float | int | str]


@torch.no_grad()
def residuals(
    train: PreparedSplit, mean: ConditionalMean, scores: Tensor, sigma_nm: float
) -> tuple[Tensor, Tensor]:
    """Residual maps around the out-of-fold mean (float16, network units, zero where invalid) and their masks."""
    maps_out = torch.empty(len(train), 2, 64, 64, dtype=torch.float16)
    mask_out = torch.empty(len(train), 1, 64, 64, dtype=torch.uint8)
    for start in range(0, len(train), CHUNK):
        s = slice(start, min(start + CHUNK, len(train)))
        maps, valid = gather_maps(train, s, sigma_nm)
        if mean.config.kind != "none":
            maps = maps - mean.assemble(gather_conditions(train, s, sigma_nm), scores[s])
        maps_out[s] = (maps * valid).half()
        mask_out[s] = valid.byte()
    return maps_out, mask_out


@torch.no_grad()
def condition_tokens(embedding: UnifiedEmbedding, train: PreparedSplit, sigma_nm: float) -> ConditionTokens:
    """Condition tokens of all training wafers, once: the encoders are frozen while the student trains."""
    parts = []
    for start in range(0, len(train), CHUNK):
        parts.append(embedding(gather_conditions(train, slice(start, start + CHUNK), sigma_nm)))
    return ConditionTokens(
        torch.cat([p.tokens.half() for p in parts]),
        torch.cat([p.pad for p in parts]),
        torch.cat([p.pooled.half() for p in parts]),
    )


def measured_sigma(residual: Tensor, valid: Tensor) -> tuple[float, float]:
    """Standard deviation on valid pixels, and a noise level that drowns every map.

    A wafer-wide mode adds up over all its pixels, so noise hides it only when sigma exceeds the mode's norm:
    sigma_max is twice the root mean square norm of the leading component.
    """
    r = residual[:: max(1, len(residual) // 2000)].float().flatten(1)
    count = float(valid[:: max(1, len(valid) // 2000)].sum()) * 2
    sigma = float((r.square().sum() / count).sqrt())
    torch.manual_seed(0)
    _, singular, _ = torch.svd_lowrank(r, q=min(6, len(r)))
    return sigma, max(10 * sigma, 2 * float(singular[0]) / len(r) ** 0.5)


def fit(
    params: Params,
    prepared: Path,
    embedding_dir: Path,
    checkpoint: CheckpointFile | None,
    workers: Workers = ALONE,
) -> Fitted:
    """Fit the mean, measure sigma_data, train student, teacher and discriminator.

    Of several processes each fits the mean by itself (the same data, the same result); they share the training.

    Raises:
        TrainingError: `train.codec: kl` asked for on 64x64 records, or the loss is not finite.
        DeviceError: there is no GPU where one is asked for.
    """
    if params.train.codec == "kl":
        raise TrainingError(
            "train.codec: kl takes 256x256 maps, prepared records hold 64x64; set train.codec: none, "
            "or train latents through the Python API (docs/model.md)"
        )
    train = PreparedSplit.open(prepared / "train.arrow")
    val = PreparedSplit.open(prepared / "val.arrow")
    normaliser = Normaliser.load(prepared / "normaliser.json")
    vocabularies = Vocabularies.load(prepared / "vocabularies.json")
    embedding = load_embedding(embedding_dir)
    mean_fit = fit_mean(
        train,
        val,
        ["", "?", *vocabularies.templates],
        embedding.config.id_sizes,
        normaliser.sigma_nm,
        params.train.mean,
        params.seed,
    )
    residual, valid = residuals(train, mean_fit.mean, mean_fit.out_of_fold, normaliser.sigma_nm)
    sigma_data, sigma_max = measured_sigma(residual, valid)
    device = pick_device(params.train.device, "train.device", workers.local_rank)
    precision = pick_precision(params.train.precision, device)
    if precision == "bf16" and not fast_bf16(device):
        log.warning("train.precision: bf16, which this hardware does not have: fp32 would be much faster")
    config = ModelConfig(
        model=params.model,
        embedding=embedding.config,
        mean=mean_fit.mean.config,
        sigma_nm=normaliser.sigma_nm,
        sigma_data=sigma_data,
        modes=params.train.residual_modes,
        sigma_min=SIGMA_MIN,
        sigma_max=sigma_max,
        mask_ratio=params.mask_ratio,
        max_lines=train.line_templates.shape[1],
        precision=precision,
        condition_dropout=params.train.condition_dropout,
        path_dropout=params.train.path_dropout,
        dense_path=params.train.dense_path,
        cross_attention=params.train.cross_attention,
    )
    torch.manual_seed(params.seed)
    model = OverlayModel(config)
    model.embedding.load_state_dict(embedding.state_dict())
    model.mean.load_state_dict(mean_fit.mean.state_dict())
    model.usable.copy_((valid.float().mean(0) > 0.5).float())
    model.precondition.measure(residual, valid)
    log.info(
        "sigma_data %.3f nm, sigma_max %.1f nm", *(s * normaliser.sigma_nm for s in (sigma_data, sigma_max))
    )
    whole = torch.cat([model.student.encoder.whole(v.float()) for v in torch.split(valid, CHUNK)])
    trainer = Trainer(model, params, device, workers)
    data = TrainingData(
        residual,
        valid,
        condition_tokens(embedding, train, normaliser.sigma_nm)
        if embedding.config.contrastive
        else LearningConditions(train, normaliser.sigma_nm, model.embedding),
        whole,
    )
    clocks = time.perf_counter(), time.process_time()
    rows = trainer.run(data, checkpoint)
    seconds = {"seconds": time.perf_counter() - clocks[0], "cpu_seconds": time.process_time() - clocks[1]}
    report: dict[str, float | int | str] = {
        "train_wafers": len(train),
        "model": params.model,
        "tokens": model.student.encoder.tokens,
        "student_parameters": sum(p.numel() for p in model.student.parameters()),
        "mean_parameters": sum(b.numel() for b in model.mean.buffers()),
        "sigma_data_nm": sigma_data * normaliser.sigma_nm,
        "sigma_max_nm": sigma_max * normaliser.sigma_nm,
        "device": str(trainer.device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": workers.count,
        "final_loss": float(np.mean([row[1] for row in rows[-5:]])),
        # of a run that was resumed they would be those of its last part
        **({} if trainer.resumed else seconds),
        **{f"mean_{name}": value for name, value in mean_fit.report.items()},
    }
    return Fitted(trainer, rows, report)


def save_models(fitted: Fitted, prepared: Path, student_dir: Path, teacher_dir: Path) -> None:
    """Write the student folder (EMA weights, with normaliser and vocabularies) and the teacher folder."""
    trainer = fitted.trainer
    with atomic_dir(student_dir) as scratch:
        trainer.model.student.load_state_dict(trainer.average.state_dict())
        if trainer.average_encoders is not None:
            trainer.model.embedding.load_state_dict(trainer.average_encoders.state_dict())
        trainer.model.save(scratch)
        for name in ("normaliser.json", "vocabularies.json", "tokenizer.json"):
            shutil.copyfile(prepared / name, scratch / name)
    with atomic_dir(teacher_dir) as scratch:
        state = {f"encoder.{k}": v for k, v in trainer.teacher.state_dict().items()}
        if trainer.discriminator is not None:
            state |= {f"discriminator.{k}": v for k, v in trainer.discriminator.state_dict().items()}
        config = {
            "model": trainer.params.model,
            "context_dim": trainer.model.config.embedding.dim,
            "discriminator": trainer.params.train.discriminator,
        }
        write_network(config, state, scratch)
