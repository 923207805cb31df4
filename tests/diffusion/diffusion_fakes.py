"""A small untrained model whose every path contributes, and condition tokens for it."""

import torch

from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.encoders import ConditionTokens, EmbeddingConfig
from ikddit.networks.mean import MeanConfig

SIZES = (2,) * 10


def made_model(seed: int = 0, **changes) -> OverlayModel:
    """T/8 with random instead of zero gates and heads: deep path and condition show in the output."""
    embedding = EmbeddingConfig(dim=16, id_sizes=SIZES, log_channels=4, templates=3, values_per_line=2)
    settings = {
        "model": "T/8",
        "embedding": embedding,
        "mean": MeanConfig("none", SIZES, 4, 3, 5, 5, 0, (), 4.6875),
        "sigma_nm": 2.0,
        "sigma_data": 0.4,
        "modes": 0,
        "sigma_min": 0.02,
        "sigma_max": 20.0,
        "mask_ratio": 0.5,
        "max_lines": 3,
        "precision": "fp32",
    }
    torch.manual_seed(seed)
    model = OverlayModel(ModelConfig(**(settings | changes))).eval()
    for parameter in model.student.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def made_tokens(wafers: int, tokens: int = 6, seed: int = 0) -> ConditionTokens:
    """Random condition tokens, the last of each wafer a padding."""
    g = torch.Generator().manual_seed(seed)
    pad = torch.zeros(wafers, tokens, dtype=torch.bool)
    pad[:, -1] = True
    return ConditionTokens(
        torch.randn(wafers, tokens, 16, generator=g), pad, torch.randn(wafers, 48, generator=g)
    )


def unit_noise(batch: int, seed: int = 1) -> torch.Tensor:
    """Noise of `batch` samples."""
    return torch.randn(batch, 2, 64, 64, generator=torch.Generator().manual_seed(seed))
