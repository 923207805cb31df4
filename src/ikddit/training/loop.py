"""The training loop: student, EMA teacher and implicit discriminator, with exact resume, on one or more processes."""

import copy
import csv
import io
import logging
import math
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ikddit.atomic import write_text
from ikddit.console import progress
from ikddit.diffusion.model import OverlayModel
from ikddit.errors import TrainingError
from ikddit.networks.blocks import Block
from ikddit.networks.discriminator import make_discriminator
from ikddit.params import Params
from ikddit.training.batch import TrainingData, draw_batch, tail_start
from ikddit.training.checkpoint import CheckpointFile
from ikddit.training.distributed import ALONE, Workers
from ikddit.training.ema import power_decay, update_average
from ikddit.training.objective import TrainingBatch, compute_terms
from ikddit.training.recorded import RecordedStep

log = logging.getLogger("ikddit")
SomeModule = TypeVar("SomeModule", bound=nn.Module)
CURVE_EVERY = 10
"""Steps per row of the curves. Checkpoints fall on these steps too, so that a resumed run has whole rows."""
COMPILED_KINDS = 64
"""Kinds of block that torch may compile in one process."""
CURVE_COLUMNS = (
    "step", "loss", "dsm", "mae", "generator", "discriminator", "discriminator_accuracy",
    "alignment_cosine", "alignment_cka", "gate", "gate_max", "grad_norm", "learning_rate",
)  # fmt: skip


def learning_rate(step: int, params: Params) -> float:
    """Warm-up, cosine decay to a tenth, and half of that in the unmasked tail."""
    t = params.train
    warm = min(1.0, (step + 1) / max(1, t.warmup_steps))
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / t.steps))
    tail = 0.5 if step >= tail_start(params) else 1.0
    return t.learning_rate * warm * cosine * tail


def compile_blocks(*modules: nn.Module) -> None:
    """Compile every transformer block in place; the blocks of one shape share one compiled kernel."""
    # shapes, with and without gradient, masked and not: more kinds than torch's limit of 8, past which it gives up
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_KINDS)
    for module in modules:
        for part in module.modules():
            if isinstance(part, Block):
                part.compile(dynamic=False)


def frozen_copy(module: SomeModule) -> SomeModule:
    """A copy that gets no gradient."""
    return copy.deepcopy(module).requires_grad_(False)


class Trainer:
    """Holds what changes while training; `run` brings it to the last step and returns the curves.

    Args:
        model: its student is trained in place, and its encoders if nothing has trained them yet; the rest stays.
        params: `train` and the weights of the losses.
        device: where this process computes.
        workers: the processes that train together; `train.batch` is the batch of all of them.
    """

    def __init__(
        self,
        model: OverlayModel,
        params: Params,
        device: torch.device,
        workers: Workers = ALONE,
    ) -> None:
        torch.manual_seed(params.seed)
        self.params, self.device, self.model, self.workers = params, device, model.to(device), workers
        self.student = model.student
        workers.share_weights(model)
        self.teacher = frozen_copy(self.student.encoder)
        self.average = frozen_copy(self.student)
        self.encoders = None if model.config.embedding.contrastive else model.embedding.train()
        self.average_encoders = None if self.encoders is None else frozen_copy(self.encoders)
        self.trained: nn.Module = (
            self.student if self.encoders is None else nn.ModuleList([self.student, self.encoders])
        )
        width, context = self.student.encoder.size.width, model.config.embedding.dim
        made = make_discriminator(params.train.discriminator, width, context)
        self.discriminator = None if made is None else made.to(device)
        recordable = device.type == "cuda" and workers.count == 1 and self.encoders is None
        self.recorded = RecordedStep(self._update, device) if params.train.cuda_graph and recordable else None
        self.optimiser = self._adamw(self.trained, 0.01)
        self.opponent = None if made is None else self._adamw(made, 0.0)
        if self.discriminator is not None:
            workers.share_weights(self.discriminator)
        if params.train.compile:
            compile_blocks(self.student, self.teacher)
        # drawn on the CPU: read from a GPU it would make that wait in every step
        self.groups = self.student.encoder.groups.cpu()
        self.step = 0
        self.saved: int | None = None
        self.resumed = False
        self.rows: list[list[float]] = []

    def _adamw(self, module: nn.Module, decay: float) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            module.parameters(),
            lr=self.params.train.learning_rate if self.recorded is None else self.recorded.rate,
            betas=(0.9, 0.95),
            weight_decay=decay,
            fused=True,
            capturable=self.recorded is not None,
        )

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs to print the same losses bit for bit."""
        return {
            "step": self.step,
            "rows": self.rows,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "average": self.average.state_dict(),
            "encoders": self.encoders.state_dict() if self.encoders else None,
            "average_encoders": self.average_encoders.state_dict() if self.average_encoders else None,
            "optimiser": self.optimiser.state_dict(),
            "discriminator": self.discriminator.state_dict() if self.discriminator else None,
            "opponent": self.opponent.state_dict() if self.opponent else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            TrainingError: it is not a state of this model.
        """
        try:
            self.student.load_state_dict(state["student"])
            self.teacher.load_state_dict(state["teacher"])
            self.average.load_state_dict(state["average"])
            if self.encoders is not None and self.average_encoders is not None:
                self.encoders.load_state_dict(state["encoders"])
                self.average_encoders.load_state_dict(state["average_encoders"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.discriminator is not None and self.opponent is not None:
                self.discriminator.load_state_dict(state["discriminator"])
                self.opponent.load_state_dict(state["opponent"])
            for optimiser in (self.optimiser, self.opponent):
                for group in optimiser.param_groups if optimiser else ():
                    group["capturable"] = self.recorded is not None  # the state may be of another device
            self.step, self.rows, self.saved = state["step"], state["rows"], state["step"]
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise TrainingError(
                f"the checkpoint is not of this model ({reason}); remove it to start over"
            ) from error

    def train_step(self, data: TrainingData) -> dict[str, Tensor | float]:
        """One step of student and discriminator; returns the curve values of this process's rows.

        Values stay on the device: reading one would make a GPU wait in every step.
        """
        batch = draw_batch(
            data,
            self.step,
            self.params,
            self.student.encoder.tokens,
            self.groups,
            workers=self.workers,
            device=self.device,
        )
        rate = learning_rate(self.step, self.params)
        decay = power_decay(self.step + 1, self.params.train.ema_gamma)
        if self.recorded is not None and batch.whole is not None:
            values = self.recorded.run(batch, rate, decay)
        else:
            share = self.workers.share(min(self.params.train.batch, len(data.residual)))
            values = self._update(batch, rate, decay, share)
        self.step += 1
        return {"step": self.step, **values, "learning_rate": rate}

    def _update(
        self, batch: TrainingBatch, rate: float | Tensor, decay: float | Tensor, share: float = 1.0
    ) -> dict[str, Tensor]:
        """Change student, discriminator and averages by one batch; nothing of it is read on the host.

        Args:
            batch: this process's rows.
            rate: learning rate.
            decay: of the student's average.
            share: what this process's means count for.
        """
        params = self.params
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.model.config.precision == "bf16"):
            terms = compute_terms(
                self.student, self.teacher, self.discriminator, self.model.precondition, batch
            )
        loss = terms.total(params.lambda1, params.lambda2)
        norm = self._descend(self.optimiser, self.trained, share * loss, rate, clip=True)
        if self.discriminator is not None and self.opponent is not None:
            self._descend(self.opponent, self.discriminator, share * terms.discriminator, rate)
            self.discriminator.after_step()
            self.workers.mean_statistics(self.discriminator.batch_statistics(), share)
        update_average(self.teacher, self.student.encoder, params.train.teacher_decay)
        update_average(self.average, self.student, decay)
        if self.encoders is not None and self.average_encoders is not None:
            update_average(self.average_encoders, self.encoders, decay)
        gates = [
            b.cross.gate.detach().tanh().abs().mean() for b in self.student.encoder.deep_blocks if b.cross
        ]
        opened = torch.stack(gates) if gates else norm.new_zeros(1)
        return {
            "loss": loss.detach(),
            "dsm": terms.dsm.detach(),
            "mae": terms.mae.detach(),
            "generator": terms.generator.detach(),
            "discriminator": terms.discriminator.detach(),
            "discriminator_accuracy": terms.accuracy,
            "alignment_cosine": terms.alignment,
            "alignment_cka": terms.cka,
            "gate": opened.mean(),
            "gate_max": opened.max(),
            "grad_norm": norm,
        }

    def _descend(
        self,
        optimiser: torch.optim.AdamW,
        module: nn.Module,
        loss: Tensor,
        rate: float | Tensor,
        clip: bool = False,
    ) -> Tensor:
        """One optimiser step on the loss of all processes; returns the norm of the gradient (0 if not clipped)."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.workers.sum_gradients(module)
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0) if clip else loss.new_zeros(())
        optimiser.step()
        return norm

    def _close_row(self, recent: list[dict[str, Tensor | float]], share: float) -> None:
        """Mean of the last steps over all processes, as one row of the curves.

        Raises:
            TrainingError: one of them was not finite; the first is named.
        """
        flat = [torch.as_tensor(row[c], device=self.device).double() for row in recent for c in CURVE_COLUMNS]
        table = self.workers.mean(torch.stack(flat), share).view(len(recent), -1).cpu().numpy()
        for row in table:
            values = dict(zip(CURVE_COLUMNS, row, strict=True))
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                kept = (
                    "no checkpoint was" if self.saved is None else f"the checkpoint of step {self.saved} is"
                )
                raise TrainingError(
                    f"step {round(values['step']) - 1}: loss {values['loss']}, gradient norm "
                    f"{values['grad_norm']}; lower train.learning_rate or set train.precision: fp32; {kept} "
                    + ("written yet" if self.saved is None else "kept")
                )
        mean = table.mean(0)
        self.rows.append([self.step, *(float(v) for v in mean[1:])])

    def run(self, data: TrainingData, checkpoint: CheckpointFile | None = None) -> list[list[float]]:
        """Train to the last step, resuming from `checkpoint` if it holds a state.

        Raises:
            TrainingError: a loss or gradient was not finite (found when a row of the curves is closed, at most
                `CURVE_EVERY` steps later and before a checkpoint is written), or the checkpoint is not of this model.
        """
        state = checkpoint.load() if checkpoint else None
        if state is not None:
            self.restore(state)
            self.resumed = True
            log.info("resuming at step %d of %d", self.step, self.params.train.steps)
        self.workers.agree(self.step, "the step to start from", self.device)
        share = self.workers.share(min(self.params.train.batch, len(data.residual)))
        data = data.on(self.device)
        every = max(CURVE_EVERY, self.params.train.checkpoint_every // CURVE_EVERY * CURVE_EVERY)
        recent: list[dict[str, Tensor | float]] = []
        steps = range(self.step, self.params.train.steps)
        for number in progress(steps, "train", unit="step") if self.workers.main else steps:
            recent.append(self.train_step(data))
            if (number + 1) % CURVE_EVERY == 0 or number + 1 == self.params.train.steps:
                self._close_row(recent, share)
                recent = []
            if checkpoint and self.workers.main and (number + 1) % every == 0:
                checkpoint.save(self.state())
                self.saved = self.step
        return self.rows


def write_curves(rows: list[list[float]], path: Path | str) -> None:
    """Write the curves as CSV, means over every ten steps."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CURVE_COLUMNS)
    writer.writerows([int(row[0]), *(f"{v:.6g}" for v in row[1:])] for row in rows)
    write_text(path, text.getvalue())
