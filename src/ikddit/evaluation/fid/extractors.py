"""The feature spaces of a run: which there are, which are missing and why, under which weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ikddit.device import pick_device
from ikddit.embedding.encoders import UnifiedEmbedding
from ikddit.evaluation.fid.inception import make_inception, wanted_spaces
from ikddit.evaluation.fid.spaces import EmbeddingFeatures, Extractor, OverlayFeatures
from ikddit.evaluation.fid.weights import NoWeights, Weights
from ikddit.params import FidParams


@dataclass(frozen=True)
class Extractors:
    """What features are taken with."""

    each: Sequence[Extractor]
    missing: dict[str, str]
    """Inception spaces that are wanted and cannot be had, with the reason."""
    weights: dict[str, str] = field(default_factory=dict)
    """`source` and `sha256` of the Inception weights, or `reason` why there are none."""


def own_extractors(embedding: UnifiedEmbedding, sigma_nm: float, device: torch.device) -> list[Extractor]:
    """The project's embedding and the overlay coefficients.

    Args:
        embedding: from stage `embed`, so that students of other embeddings compare.
        sigma_nm: unit of the maps that the embedding was fitted to.
        device: of the embedding.
    """
    return [EmbeddingFeatures(embedding, sigma_nm, device), OverlayFeatures()]


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
        embedding: see `own_extractors`.
        sigma_nm: see `own_extractors`.
        scale_nm: of the rendering.

    Raises:
        ModelError: the weights do not fit the network, or a GPU is missing (DeviceError).
    """
    own = own_extractors(embedding, sigma_nm, pick_device(params.device, "fid.device"))
    if isinstance(weights, NoWeights):
        return Extractors(own, dict.fromkeys(wanted_spaces(params.dims), "no weights"), weights.facts)
    inception = make_inception(params, weights, scale_nm)
    return Extractors([*own, inception], inception.missing, weights.facts)
