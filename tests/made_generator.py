"""A tiny untrained model that answers, in memory and as a model folder."""

from pathlib import Path

import numpy as np
import torch

from ikddit.dataset.normaliser import Normaliser
from ikddit.dataset.vocabulary import Vocabularies
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.encoders import EmbeddingConfig
from ikddit.generator import Generator
from ikddit.mpom.schema import ID_FIELDS
from ikddit.networks.mean import MeanConfig

LOGS = ["dose", "heat"]


def made_generator() -> Generator:
    vocabularies = Vocabularies({name: ["A", "B"] for name in ID_FIELDS}, ["dose <num>", "dose <num> mJ"])
    sizes = tuple(vocabularies.id_sizes)
    embedding = EmbeddingConfig(16, sizes, len(LOGS), vocabularies.template_size, 2)
    config = ModelConfig(
        model="T/8",
        embedding=embedding,
        mean=MeanConfig("none", sizes, len(LOGS), vocabularies.template_size, 5, 5, 0, (), 4.6875),
        sigma_nm=2.0,
        sigma_data=0.4,
        modes=0,
        sigma_min=0.02,
        sigma_max=20.0,
        mask_ratio=0.5,
        max_lines=3,
        precision="fp32",
    )
    torch.manual_seed(0)
    zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
    normaliser = Normaliser(LOGS, zeros, ones, 2.0, np.zeros((2, 64, 64), np.float32))
    return Generator(OverlayModel(config).eval(), normaliser, vocabularies)


def write_generator(folder: Path) -> Path:
    """Save it as the train stage does."""
    made = made_generator()
    made.model.save(folder)
    made.normaliser.save(folder / "normaliser.json")
    made.vocabularies.save(folder / "vocabularies.json")
    return folder
