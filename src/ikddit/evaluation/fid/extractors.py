"""The feature spaces of a run: which there are, which are missing and why, under which weights."""

from dataclasses import dataclass, field

import torch

from ikddit.embedding.encoders import UnifiedEmbedding
from ikddit.errors import ModelError
from ikddit.evaluation.fid.inception import InceptionFeatures, wanted_spaces
from ikddit.evaluation.fid.spaces import EmbeddingFeatures, Extractor, OverlayFeatures
from ikddit.evaluation.fid.weights import NoWeights, Weights
from ikddit.params import FidParams


@dataclass(frozen=True)
class Extractors:
    """What features are taken with."""

    each: list[Extractor]
    missing: dict[str, str]
    """Inception spaces that are wanted and cannot be had, with the reason."""
    weights: dict[str, str] = field(default_factory=dict)
    """`source` and `sha256` of the Inception weights, or `reason` why there are none."""


def make_extractors(
    params: FidParams,
    weights: Weights | NoWeights,
    embedding: UnifiedEmbedding,
    sigma_nm: float,
    scale_nm: float,
) -> Extractors:
    """The project's embedding and the overlay coefficients always, Inception where there are weights.

    Args:
        params: section `fid`.
        weights: from `find_weights`.
        embedding: from stage `embed`, so that students of other embeddings compare.
        sigma_nm: unit of the maps that the embedding was fitted to.
        scale_nm: of the rendering.

    Raises:
        ModelError: the weights do not fit the network, or there is no GPU where one is asked for.
    """
    device = pick_device(params.device)
    each: list[Extractor] = [EmbeddingFeatures(embedding, sigma_nm, device), OverlayFeatures()]
    if isinstance(weights, NoWeights):
        missing = dict.fromkeys(wanted_spaces(params.dims), "no weights")
        return Extractors(each, missing, {"reason": weights.reason})
    inception = InceptionFeatures(
        weights, params.dims, scale_nm, params.batch, device, params.dtype == "bf16"
    )
    each.append(inception)
    return Extractors(each, inception.missing, {"source": weights.source, "sha256": weights.sha256})


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU if torch sees one.

    Raises:
        ModelError: `cuda` is asked for and torch sees no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("fid.device: cuda, but torch sees no GPU; set fid.device: auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
