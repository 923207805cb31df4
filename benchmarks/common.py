"""What the benchmarks of the network share: made models and data, options and clocks, steps and sampling calls."""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ikddit.device import pick_device, pick_precision
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.diffusion.plan import SamplingPlan, draw_order
from ikddit.embedding.encoders import ConditionTokens, EmbeddingConfig
from ikddit.networks.mean import MeanConfig
from ikddit.overlay.grid import wafer_grid
from ikddit.params import Params, parse_params
from ikddit.training.batch import TrainingData
from ikddit.training.loop import Trainer

CONTEXT = 66
"""Condition tokens: 16 of the previous map, 8 of the log channels, 32 log lines, 10 ids."""
DIM = 128
SIGMA_DATA, SIGMA_MIN, SIGMA_MAX = 0.5, 0.02, 40.0
Precision = Literal["bf16", "fp32"]
Runs = dict[str, Callable[[], object]]


def add_torch_options(parser: argparse.ArgumentParser) -> None:
    """`--threads`, `--precision` and `--clock`."""
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves torch's choice")
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], help="default: bf16 where the hardware has it, else fp32"
    )
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: of this process alone, on a busy machine",
    )


def precision_of(args: argparse.Namespace) -> Precision:
    """`--precision`, or what this hardware does best."""
    asked: Precision | None = args.precision
    return asked or pick_precision("auto", pick_device(getattr(args, "device", "cpu"), "--device"))


def clock_of(kind: str, device: torch.device | None = None) -> Callable[[], float]:
    """Seconds of the wall or of this process; on a GPU when everything it was given is done."""
    now = {"wall": time.perf_counter, "cpu": time.process_time}[kind]
    if device is None or device.type != "cuda":
        return now

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return now()

    return synchronised


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median over rounds of the ratio within a round: what else ran then hit both alike."""
    return round(float(np.median(np.array(slow) / np.array(fast))), 3)


def median(values: list[float]) -> float:
    return round(float(np.median(values)), 4)


def made_model(name: str, precision: Precision) -> OverlayModel:
    """An untrained model of the default profile's shape."""
    ids = (8,) * 10
    config = ModelConfig(
        model=name,
        embedding=EmbeddingConfig(DIM, ids, 20, 30, 6),
        mean=MeanConfig("none", ids, 20, 30, 5, 5, 0, (), 4.6875),
        sigma_nm=2.0,
        sigma_data=SIGMA_DATA,
        modes=64,
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        mask_ratio=0.5,
        max_lines=32,
        precision=precision,
    )
    torch.manual_seed(0)
    model = OverlayModel(config)
    model.usable.copy_(usable_pixels())
    return model


def usable_pixels() -> Float[Tensor, "1 1 64 64"]:
    """1 on the wafer, where marks are."""
    return torch.from_numpy(wafer_grid().usable)[None, None].float()


def made_condition(wafers: int) -> ConditionTokens:
    """Condition tokens of noise, none of them missing."""
    pad = torch.zeros(wafers, CONTEXT, dtype=torch.bool)
    return ConditionTokens(torch.randn(wafers, CONTEXT, DIM), pad, torch.randn(wafers, 3 * DIM))


def made_data(wafers: int) -> TrainingData:
    """Maps of noise, valid wherever there is wafer."""
    valid = usable_pixels().expand(wafers, -1, -1, -1)
    residual = SIGMA_DATA * torch.randn(wafers, 2, 64, 64) * valid
    return TrainingData(residual.half(), valid.byte(), made_condition(wafers))


def training_params(
    batch: int,
    precision: Precision,
    device: str = "cpu",
    mask_ratio: float = 0.5,
    discriminator: str = "implicit",
) -> Params:
    """Settings of a run far from its end: the learning rate is warm, the unmasked tail is not reached."""
    section = {
        "steps": 10_000,
        "batch": batch,
        "discriminator": discriminator,
        "precision": precision,
        "device": device,
    }
    return parse_params({"mask_ratio": mask_ratio, "train": section})


def training_run(
    model: OverlayModel, params: Params, data: TrainingData
) -> tuple[Trainer, Callable[[], object]]:
    """A trainer and one step of it."""
    trainer = Trainer(model, params, torch.device(params.train.device))
    return trainer, lambda: trainer.train_step(data)


def sampling_runs(
    model: OverlayModel,
    batch: int,
    plans: Mapping[str, SamplingPlan],
    condition: ConditionTokens | None = None,
) -> Runs:
    """One sample each of `batch` wafers, the condition's keys and values included, by each of the plans."""
    device = model.usable.device
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 2, 64, 64, generator=generator).to(device)
    order = draw_order(batch, model.student.encoder.groups, generator).to(device)
    tokens = (condition or made_condition(batch)).to(device)

    def run(plan: SamplingPlan) -> Callable[[], object]:
        @torch.inference_mode()
        def once() -> object:
            with model.autocast():
                cache = model.student.encoder.cache(tokens)
            return model.sample_residual(noise, cache, plan, order, [generator] * batch)

        return once

    return {name: run(plan) for name, plan in plans.items()}
