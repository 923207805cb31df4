"""Contrastive pretraining of the unified embedding, its metrics, and its model folder."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ikddit.atomic import atomic_dir
from ikddit.console import progress
from ikddit.dataset.vocabulary import UNKNOWN, Vocabularies
from ikddit.embedding.conditions import Conditions, gather_conditions, gather_maps
from ikddit.embedding.encoders import EmbeddingConfig, UnifiedEmbedding
from ikddit.embedding.infonce import info_nce, retrieval, same_ids
from ikddit.embedding.text import sentence_vectors
from ikddit.model_folder import read_network, write_network
from ikddit.params import EmbedParams

if TYPE_CHECKING:
    from ikddit.dataset.arrow import PreparedSplit

log = logging.getLogger("ikddit")

PAIRS = (("map", "log"), ("map", "id"), ("log", "id"), ("current", "log"), ("current", "id"))
"""Pairings that are aligned; `current` is the target map, which makes the map encoder fit for comparing
generated maps (it is never a condition).

Where ids take part, wafers with the same ids are positives of one another. Where a map meets a log only its own
log is positive, although about four wafers of a lot share all ids: their sensors tell them apart. By the
simulator's likelihood a current map is nearer to its own log than to any other of its lot for 99 % of wafers (the
margin to the next of the same ids is 38 nats in the median), a previous map for 88 % (5 nats); what is left are
wafers whose levelling was not received. So wafers of a lot are hard negatives, hardly ever false ones."""


def modality_vectors(
    model: UnifiedEmbedding, c: Conditions, maps: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Unit vectors (B, D) of previous map, logs, ids and the current map."""
    prev, logs, ids = model(c).pooled.chunk(3, dim=-1)
    return {"map": prev, "log": logs, "id": ids, "current": model.embed_map(maps, valid)}


def embedding_config(
    vocabularies: Vocabularies, train: "PreparedSplit", params: EmbedParams
) -> EmbeddingConfig:
    """Sizes of the encoders for these data.

    Raises:
        ModelError: a sentence model is asked for and cannot be had, see `sentence_vectors`.
    """
    minilm = params.log_encoder == "minilm"
    return EmbeddingConfig(
        dim=params.dim,
        id_sizes=tuple(vocabularies.id_sizes),
        log_channels=train.log_features.shape[1],
        templates=vocabularies.template_size,
        values_per_line=train.line_values.shape[2],
        words=len(vocabularies.tokenizer),
        text_dim=sentence_vectors(["log"], params.minilm_path).shape[1] if minilm else 0,
        contrastive=params.contrastive,
    )


def _drop_modalities(c: Conditions, share: float, generator: torch.Generator) -> Conditions:
    """Blank the previous map, the logs or the ids of some wafers, so that a missing one is met in training."""
    keep = (torch.rand(3, len(c), generator=generator) >= share).float()
    return Conditions(
        ids=c.ids * keep[2].long()[:, None],
        log_features=c.log_features * keep[1][:, None],
        log_missing=torch.where(keep[1][:, None] > 0, c.log_missing, torch.ones_like(c.log_missing)),
        line_templates=c.line_templates * keep[1].long()[:, None],
        line_values=c.line_values * keep[1][:, None, None],
        line_words=c.line_words * keep[1].long()[:, None, None],
        prev_map=c.prev_map * keep[0][:, None, None, None],
        prev_valid=c.prev_valid * keep[0][:, None, None, None],
    )


def _forget_templates(
    c: Conditions, template_words: Tensor, share: float, generator: torch.Generator
) -> Conditions:
    """Show some lines as if their template were unknown, so that words alone are met in training."""
    draw = torch.rand(c.line_templates.shape, generator=generator)
    forget = (draw < share) & (c.line_templates > UNKNOWN)
    words = torch.where(forget[..., None], template_words[c.line_templates], c.line_words)
    return replace(c, line_templates=c.line_templates.masked_fill(forget, UNKNOWN), line_words=words)


def fit_embedding(
    config: EmbeddingConfig,
    train: "PreparedSplit",
    vocabularies: Vocabularies,
    sigma_nm: float,
    params: EmbedParams,
    seed: int,
    device: torch.device | str = "cpu",
) -> UnifiedEmbedding:
    """Align the modalities of the training wafers by InfoNCE over all pairings.

    With `embed.contrastive: false` the encoders stay as they start, for the student to train them.
    Batches and dropout come from a generator seeded by (seed, step), so the same seed gives the same bits
    on a CPU. The model comes back in main memory, wherever it was fitted.
    """
    torch.manual_seed(seed)
    model = UnifiedEmbedding(config)
    model.logs.know(vocabularies, params.minilm_path)
    if not config.contrastive:
        return model.eval()
    template_words = model.logs.template_words
    model.to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, params.learning_rate, total_steps=max(10, params.steps), pct_start=0.2
    )
    batch = min(params.batch, len(train))
    for step in progress(range(params.steps), "embed", unit="step"):
        rng = np.random.default_rng([seed, step])
        index = np.sort(rng.choice(len(train), batch, replace=False))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        full = gather_conditions(train, index, sigma_nm)
        maps, valid = gather_maps(train, index, sigma_nm)
        seen = _forget_templates(full, template_words, params.template_dropout, generator)
        seen = _drop_modalities(seen, params.modality_dropout, generator)
        vectors = modality_vectors(model, seen.to(device), maps.to(device), valid.to(device))
        shared = same_ids(full.ids).to(device)
        temperature = torch.exp(-model.log_temperature.clamp(max=4.6052))  # not below 0.01
        losses = [
            info_nce(vectors[a], vectors[b], temperature, shared if "id" in (a, b) else None)
            for a, b in PAIRS
        ]
        loss = torch.stack(losses).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval().cpu()


def retrieval_batches(wafers: int, batch: int = 256) -> Iterator[np.ndarray]:
    """Whole batches of a split's wafers, drawn at random without replacement, each in order of exposure."""
    batch = min(batch, wafers)
    order = np.random.default_rng(0).permutation(wafers)
    for start in range(0, wafers - batch + 1, batch):
        yield np.sort(order[start : start + batch])


@torch.no_grad()
def retrieval_metrics(
    model: UnifiedEmbedding, split: "PreparedSplit", sigma_nm: float, batch: int = 256
) -> dict[str, float]:
    """Retrieval@1 and @5 in every direction, averaged over `retrieval_batches`.

    A match counts if the ids are the same where ids take part in the pair, else only the same wafer counts.
    """
    batch = min(batch, len(split))
    sums: dict[str, list[float]] = {}
    for index in retrieval_batches(len(split), batch):
        c = gather_conditions(split, index, sigma_nm)
        vectors = modality_vectors(model, c, *gather_maps(split, index, sigma_nm))
        shared, own = same_ids(c.ids), torch.eye(batch, dtype=torch.bool)
        for pair in PAIRS:
            for a, b in (pair, pair[::-1]):
                positive = shared if "id" in pair else own
                for k in (1, 5):
                    value = retrieval(vectors[a], vectors[b], k, positive)
                    sums.setdefault(f"retrieval_{a}_to_{b}_at_{k}", []).append(value)
    return {"retrieval_batch": float(batch)} | {name: float(np.mean(v)) for name, v in sums.items()}


def save_embedding(model: UnifiedEmbedding, folder: Path | str) -> None:
    """Write config.json and model.safetensors, as a whole or not at all."""
    with atomic_dir(folder) as scratch:
        write_network(model.config, model.state_dict(), scratch)


def load_embedding(folder: Path | str) -> UnifiedEmbedding:
    """Load what `save_embedding` wrote.

    Raises:
        ModelError: a file is missing or does not fit the config.
    """

    def build(values: dict[str, Any]) -> UnifiedEmbedding:
        return UnifiedEmbedding(EmbeddingConfig(**{**values, "id_sizes": tuple(values["id_sizes"])}))

    return read_network(Path(folder), build, "embedding", "run `dvc repro embed`")
