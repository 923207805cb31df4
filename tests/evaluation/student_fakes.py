"""An untrained student on the tiny fab's conditions, every path of which contributes."""

import numpy as np
import torch
from evaluation_fakes import CHANNELS, GRID, LINES

from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.encoders import EmbeddingConfig
from ikddit.generator import Generator
from ikddit.mpom.schema import ID_FIELDS
from ikddit.networks.mean import MeanConfig


def made_generator(**changes) -> Generator:
    """T/8 with random instead of zero gates and heads."""
    sizes = (6,) * len(ID_FIELDS)
    settings = {
        "model": "T/8",
        "embedding": EmbeddingConfig(16, sizes, len(CHANNELS), 4, 2),
        "mean": MeanConfig("none", sizes, len(CHANNELS), 4, 5, 5, 0, (), 4.6875),
        "sigma_nm": 1.0,
        "sigma_data": 0.5,
        "modes": 0,
        "sigma_min": 0.02,
        "sigma_max": 20.0,
        "mask_ratio": 0.5,
        "max_lines": LINES,
        "precision": "fp32",
        "condition_dropout": 0.1,
        "path_dropout": 0.1,
    }
    torch.manual_seed(0)
    model = OverlayModel(ModelConfig(**(settings | changes))).eval()
    model.usable.copy_(torch.from_numpy(GRID.usable.astype(np.float32)))
    for parameter in model.student.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    zeros, ones = np.zeros(len(CHANNELS), np.float32), np.ones(len(CHANNELS), np.float32)
    normaliser = Normaliser(CHANNELS, zeros, ones, 1.0, np.zeros((2, 64, 64), np.float32))
    return Generator(model, normaliser, Vocabularies({name: ["A"] for name in ID_FIELDS}, []))
