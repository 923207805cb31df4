"""Frechet distance on the project's own map embedding."""

import numpy as np
import torch
from jaxtyping import Shaped

from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.scores import Moments, frechet_from_moments, gaussian_of
from ikddit.generator import Generator

_CHUNK = 128


def frechet_embedding(
    generator: Generator,
    split: PreparedSplit,
    samples: Shaped[np.ndarray, "n m 2 64 64"],
    measured: Moments | None = None,
) -> float:
    """Frechet distance of measured and generated maps on the project's own map embedding (128 numbers a map).

    Generated maps get the masks of the measured ones, so that the mask is no difference.

    Args:
        generator: whose embedding is taken.
        split: the wafers of `samples`.
        samples: nm.
        measured: moments of more measured maps than the split's, where it holds fewer than they have dimensions.
    """
    return frechet_from_moments(
        *(measured or measured_moments(generator, split)), *_moments(generator, split, samples)
    )


def measured_moments(generator: Generator, split: PreparedSplit) -> Moments:
    """Moments of the embedded measured maps of a split."""
    return _moments(generator, split, split.map[:, None])


@torch.inference_mode()
def _moments(
    generator: Generator, split: PreparedSplit, maps_nm: Shaped[np.ndarray, "n m 2 64 64"]
) -> Moments:
    sigma_nm = generator.normaliser.sigma_nm
    embedding = generator.model.embedding
    device = embedding.log_temperature.device
    found = []
    for start in range(0, len(split), _CHUNK):
        part = slice(start, start + _CHUNK)
        valid = torch.from_numpy(split.valid[part].astype(np.float32)).to(device)[:, None]
        for k in range(maps_nm.shape[1]):
            maps = torch.from_numpy(maps_nm[part, k].astype(np.float32)).to(device) / sigma_nm * valid
            found.append(embedding.embed_map(maps, valid))
    return gaussian_of(torch.cat(found).cpu().numpy())
