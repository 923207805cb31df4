"""A tiny model and data set for tests of the loop; run as a script it trains them, alone or under torchrun.

    python made_training.py ROWS.json CHECKPOINT.pt '{"steps": 60}'

It prints each step as it is done. With `"fatal": n` among the settings SIGKILL comes at a random moment
after step n, while the next step computes; with `"double": true` all arithmetic is in float64.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from ikddit.console import run_plainly
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.encoders import ConditionTokens, EmbeddingConfig
from ikddit.networks.mean import MeanConfig
from ikddit.params import parse_params
from ikddit.training.batch import TrainingData
from ikddit.training.checkpoint import CheckpointFile
from ikddit.training.distributed import ALONE, Workers, join_workers
from ikddit.training.loop import Trainer

SIZES = (2, 3, 3, 3, 3, 2, 3, 3, 3, 3)


def made_config(**changes) -> ModelConfig:
    embedding = EmbeddingConfig(dim=16, id_sizes=SIZES, log_channels=4, templates=3, values_per_line=2)
    mean = MeanConfig("none", SIZES, 4, 3, 5, 5, 0, (), 4.6875)
    settings = {
        "model": "T/8",
        "embedding": embedding,
        "mean": mean,
        "sigma_nm": 2.0,
        "sigma_data": 0.4,
        "modes": 0,
        "sigma_min": 0.02,
        "sigma_max": 20.0,
        "mask_ratio": 0.5,
        "max_lines": 3,
        "precision": "fp32",
    }
    return ModelConfig(**(settings | changes))


def made_data(n: int = 12) -> TrainingData:
    g = torch.Generator().manual_seed(0)
    return TrainingData(
        0.4 * torch.randn(n, 2, 64, 64, generator=g).half(),
        torch.ones(n, 1, 64, 64, dtype=torch.uint8),
        ConditionTokens(
            torch.randn(n, 6, 16, generator=g).half(),
            torch.zeros(n, 6, dtype=torch.bool),
            torch.randn(n, 48, generator=g).half(),
        ),
    )


def made_trainer(workers: Workers = ALONE, **train) -> Trainer:
    settings = {
        "steps": 20,
        "batch": 4,
        "precision": "fp32",
        "warmup_steps": 2,
        "checkpoint_every": 10,
    } | train
    params = parse_params({"train": settings})
    torch.manual_seed(0)
    return Trainer(OverlayModel(made_config()), params, torch.device("cpu"), workers)


def main() -> None:
    rows, checkpoint, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    torch.set_num_threads(1)
    double, fatal = settings.pop("double", False), settings.pop("fatal", -1)
    if double:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
    with join_workers("cpu") as workers:
        trainer = made_trainer(workers, **settings)
        if double:
            for module in (trainer.model, trainer.teacher, trainer.average, trainer.discriminator):
                module.double()
        step = trainer.train_step

        def step_and_tell(data: TrainingData) -> dict[str, torch.Tensor | float]:
            begun = time.monotonic()
            values = step(data)
            print(trainer.step, flush=True)
            if trainer.step == fatal:
                delay = random.uniform(0, time.monotonic() - begun)
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return values

        trainer.train_step = step_and_tell
        trainer.run(made_data(), CheckpointFile(checkpoint))
    if workers.main:
        rows.write_text(json.dumps(trainer.rows))


if __name__ == "__main__":
    run_plainly(main)
