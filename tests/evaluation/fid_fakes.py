"""A seeded, untrained FID Inception network, smooth made maps, and a small embedding."""

from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from evaluation_fakes import CHANNELS, GRID

from ikddit.embedding.encoders import EmbeddingConfig, UnifiedEmbedding
from ikddit.mpom.schema import ID_FIELDS
from ikddit.vision import make_torchvision_importable


def made_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """State of an untrained network, scaled so that its features do not fade with depth."""
    make_torchvision_importable()
    from pytorch_fid import inception

    torch.manual_seed(seed)
    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(inception.torchvision.models.Inception3, "load_state_dict"),
    ):
        state = inception.fid_inception_v3().state_dict()
    for name, value in state.items():
        if name.endswith("bn.weight"):
            value.fill_(3.0)
    return state


@contextmanager
def seen_by_pytorch_fid(path: Path):
    """Point pytorch-fid at a weights file."""
    from pytorch_fid import inception

    original = inception.FID_WEIGHTS_URL
    inception.FID_WEIGHTS_URL = path.as_uri()
    try:
        yield
    finally:
        inception.FID_WEIGHTS_URL = original


def made_maps(count: int, seed: int, shift_nm: float = 0.0) -> np.ndarray:
    """Smooth maps plus noise, nm, float16, 0 outside the usable wafer."""
    rng = np.random.default_rng(seed)
    slopes = rng.normal(0, 0.02, (count, 2, 2, 1, 1))
    maps = slopes[:, :, 0] * GRID.x_mm + slopes[:, :, 1] * GRID.y_mm + shift_nm
    maps = maps + rng.normal(0, 0.5, (count, 2, 64, 64))
    return (maps * GRID.usable).astype(np.float16)


def made_embedding() -> UnifiedEmbedding:
    """An unfitted embedding of 16 numbers."""
    torch.manual_seed(0)
    return UnifiedEmbedding(EmbeddingConfig(16, (6,) * len(ID_FIELDS), len(CHANNELS), 4, 2)).eval()
