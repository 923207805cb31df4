"""The training loop: student, EMA teacher and implicit discriminator, with exact resume."""

import copy
import csv
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ikddit.atomic import write_text
from ikddit.console import progress
from ikddit.diffusion.edm import draw_sigma
from ikddit.diffusion.model import OverlayModel
from ikddit.embedding.encoders import ConditionTokens
from ikddit.errors import TrainingError
from ikddit.networks.discriminator import ImplicitDiscriminator
from ikddit.networks.masking import draw_visible
from ikddit.params import Params
from ikddit.training.checkpoint import CheckpointFile
from ikddit.training.ema import power_decay, update_average
from ikddit.training.objective import TrainingBatch, compute_terms

log = logging.getLogger("ikddit")
CURVE_EVERY = 10
CURVE_COLUMNS = (
    "step", "loss", "dsm", "mae", "generator", "discriminator", "discriminator_accuracy",
    "alignment_cosine", "gate", "grad_norm", "learning_rate",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingData:
    """What the loop reads: residuals (network units, zero where invalid), masks and condition tokens."""

    residual: Tensor
    valid: Tensor
    condition: ConditionTokens


def learning_rate(step: int, params: Params) -> float:
    """Warm-up, cosine decay to a tenth, and half of that in the unmasked tail."""
    t = params.train
    warm = min(1.0, (step + 1) / max(1, t.warmup_steps))
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / t.steps))
    tail = 0.5 if step >= tail_start(params) else 1.0
    return t.learning_rate * warm * cosine * tail


def tail_start(params: Params) -> int:
    """First step of the unmasked tail."""
    return round(params.train.steps * (1 - params.train.unmasked_tail))


def draw_batch(data: TrainingData, step: int, params: Params, tokens: int) -> TrainingBatch:
    """Step `step`'s batch: everything random derives from (seed, step), so resume needs no sampler state."""
    t = params.train
    rng = np.random.default_rng([params.seed, step])
    index = torch.from_numpy(np.sort(rng.choice(len(data.residual), min(t.batch, len(data.residual)), False)))
    generator = torch.Generator().manual_seed(params.seed * 1_000_003 + step)
    size = len(index)
    masked = params.mask_ratio > 0 and step < tail_start(params)
    drop = torch.rand(size, generator=generator) < t.condition_dropout
    return TrainingBatch(
        residual=data.residual[index].float(),
        valid=data.valid[index].float(),
        condition=_as_float(data.condition[index]).dropped(drop),
        sigma=draw_sigma(size, t.p_mean, t.p_std, generator),
        noise=torch.randn(size, 2, 64, 64, generator=generator),
        visible=draw_visible(size, tokens, params.mask_ratio, generator) if masked else None,
        path_drop=torch.rand(size, generator=generator) < t.path_dropout if t.path_dropout else None,
    )


def _as_float(c: ConditionTokens) -> ConditionTokens:
    return ConditionTokens(c.tokens.float(), c.pad, c.pooled.float())


def _move(batch: TrainingBatch, device: torch.device) -> TrainingBatch:
    c = batch.condition
    return TrainingBatch(
        batch.residual.to(device),
        batch.valid.to(device),
        ConditionTokens(c.tokens.to(device), c.pad.to(device), c.pooled.to(device)),
        batch.sigma.to(device),
        batch.noise.to(device),
        None if batch.visible is None else batch.visible.to(device),
        None if batch.path_drop is None else batch.path_drop.to(device),
    )


class Trainer:
    """Holds what changes while training; `run` brings it to the last step and returns the curves."""

    def __init__(self, model: OverlayModel, params: Params, device: torch.device) -> None:
        torch.manual_seed(params.seed)
        self.params, self.device, self.model = params, device, model.to(device)
        self.student = model.student
        self.teacher = copy.deepcopy(self.student.encoder).requires_grad_(False)
        self.average = copy.deepcopy(self.student).requires_grad_(False)
        width, context = self.student.encoder.size.width, model.config.embedding.dim
        implicit = params.train.discriminator == "implicit"
        self.discriminator = ImplicitDiscriminator(width, context).to(device) if implicit else None
        self.optimiser = self._adamw(self.student, params.train.learning_rate, 0.01)
        self.opponent = self._adamw(self.discriminator, params.train.learning_rate, 0.0) if implicit else None
        self.step = 0
        self.rows: list[list[float]] = []

    def _adamw(self, module: nn.Module | None, rate: float, decay: float) -> torch.optim.AdamW:
        assert module is not None
        return torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=decay)

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs to print the same losses bit for bit."""
        return {
            "step": self.step,
            "rows": self.rows,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "discriminator": self.discriminator.state_dict() if self.discriminator else None,
            "opponent": self.opponent.state_dict() if self.opponent else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.step, self.rows = state["step"], state["rows"]
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.discriminator is not None and self.opponent is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.opponent.load_state_dict(state["opponent"])

    def train_step(self, data: TrainingData) -> dict[str, float]:
        """One step of student and discriminator; returns the curve values."""
        params = self.params
        rate = learning_rate(self.step, params)
        batch = _move(draw_batch(data, self.step, params, self.student.encoder.size.tokens), self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=params.train.precision == "bf16"):
            terms = compute_terms(
                self.student, self.teacher, self.discriminator, self.model.precondition, batch
            )
        loss = terms.total(params.lambda1, params.lambda2)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
            raise TrainingError(
                f"step {self.step}: loss {float(loss.detach())}, gradient norm {float(norm)}; "
                "lower train.learning_rate or set train.precision: fp32; the last checkpoint is kept"
            )
        self.optimiser.step()
        if self.opponent is not None:
            for group in self.opponent.param_groups:
                group["lr"] = rate
            self.opponent.zero_grad(set_to_none=True)
            terms.discriminator.backward()  # type: ignore[no-untyped-call]
            self.opponent.step()
        self.step += 1
        update_average(self.teacher, self.student.encoder, params.train.teacher_decay)
        update_average(self.average, self.student, power_decay(self.step, params.train.ema_gamma))
        gates = [
            b.cross.gate.detach().tanh().abs().mean() for b in self.student.encoder.deep_blocks if b.cross
        ]
        return {
            "step": self.step,
            "loss": float(loss.detach()),
            "dsm": float(terms.dsm.detach()),
            "mae": float(terms.mae.detach()),
            "generator": float(terms.generator.detach()),
            "discriminator": float(terms.discriminator.detach()),
            "discriminator_accuracy": terms.accuracy,
            "alignment_cosine": terms.alignment,
            "gate": float(torch.stack(gates).mean()),
            "grad_norm": float(norm),
            "learning_rate": rate,
        }

    def run(self, data: TrainingData, checkpoint: CheckpointFile | None = None) -> list[list[float]]:
        """Train to the last step, resuming from `checkpoint` if it holds a state."""
        state = checkpoint.load() if checkpoint else None
        if state is not None:
            self.restore(state)
            log.info("resuming at step %d of %d", self.step, self.params.train.steps)
        recent: list[dict[str, float]] = []
        steps = range(self.step, self.params.train.steps)
        for number in progress(steps, "train", unit="step"):
            recent.append(self.train_step(data))
            if (number + 1) % CURVE_EVERY == 0 or number + 1 == self.params.train.steps:
                mean = [float(np.mean([r[c] for r in recent])) for c in CURVE_COLUMNS]
                self.rows.append([recent[-1]["step"], *mean[1:]])
                recent = []
            every = max(CURVE_EVERY, self.params.train.checkpoint_every // CURVE_EVERY * CURVE_EVERY)
            if checkpoint and (number + 1) % every == 0:
                checkpoint.save(self.state())
        return self.rows


def write_curves(rows: list[list[float]], path: Path | str) -> None:
    """Write the curves as CSV, means over every ten steps."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CURVE_COLUMNS)
    writer.writerows([int(row[0]), *(f"{v:.6g}" for v in row[1:])] for row in rows)
    write_text(path, text.getvalue())
