"""Frechet distance on the project's own map embedding."""

import numpy as np
import torch
from jaxtyping import Shaped

from ikddit.dataset.arrow import PreparedSplit
from ikddit.embedding.conditions import gather_maps
from ikddit.evaluation.scores import frechet_from_moments, gaussian_of
from ikddit.generator import Generator


@torch.inference_mode()
def frechet_embedding(
    generator: Generator, split: PreparedSplit, samples: Shaped[np.ndarray, "n m 2 64 64"]
) -> float:
    """Frechet distance of measured and generated maps on the project's own map embedding (128 numbers a map).

    Generated maps get the masks of the measured ones, so that the mask is no difference.
    """
    sigma_nm = generator.normaliser.sigma_nm
    embedding = generator.model.embedding
    device = embedding.log_temperature.device
    real, fake = [], []
    for start in range(0, len(split), 128):
        part = slice(start, min(start + 128, len(split)))
        maps, valid = (t.to(device) for t in gather_maps(split, part, sigma_nm))
        real.append(embedding.embed_map(maps, valid))
        for k in range(samples.shape[1]):
            generated = torch.from_numpy(samples[part, k].astype(np.float32)).to(device) / sigma_nm * valid
            fake.append(embedding.embed_map(generated, valid))
    a, b = (gaussian_of(torch.cat(x).cpu().numpy()) for x in (real, fake))
    return frechet_from_moments(*a, *b)
