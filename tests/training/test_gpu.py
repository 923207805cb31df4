"""On a GPU: the CPU's numbers, no waiting in a step, resume, compiled blocks. Skipped where torch sees none."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_training import made_config, made_data
from torch import Tensor

from ikddit.diffusion.model import OverlayModel
from ikddit.diffusion.plan import SamplingPlan, draw_order
from ikddit.embedding.encoders import ConditionTokens
from ikddit.params import parse_params
from ikddit.training.batch import TrainingData, draw_batch
from ikddit.training.checkpoint import CheckpointFile
from ikddit.training.loop import CURVE_COLUMNS, Trainer
from ikddit.training.objective import TrainingBatch, compute_terms
from ikddit.training.recorded import PLAIN_STEPS, tensors_of, with_tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
LOSSES = ("loss", "dsm", "mae", "generator", "discriminator", "grad_norm")


def trainer_on(device: str, precision: str = "fp32", **train: object) -> Trainer:
    settings = {"steps": 20, "batch": 4, "precision": precision, "warmup_steps": 2, "checkpoint_every": 10}
    params = parse_params({"train": settings | train})
    torch.manual_seed(0)
    return Trainer(OverlayModel(made_config(precision=precision)), params, torch.device(device))


def data_with_flags() -> TrainingData:
    data = made_data()
    return replace(data, whole=torch.ones(len(data.residual), dtype=torch.bool))


def moved(batch: TrainingBatch, device: str) -> TrainingBatch:
    return with_tensors(batch, [tensor.to(device) for tensor in tensors_of(batch)])


def shaken(model: torch.nn.Module) -> None:
    """Weights of a model that has learnt something: at initialisation its output is zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def test_losses_and_gradients_are_those_of_the_cpu() -> None:
    found = {}
    for device in ("cpu", "cuda"):
        trainer = trainer_on("cpu")
        shaken(trainer.student)
        batch = moved(
            draw_batch(data_with_flags(), 0, trainer.params, trainer.student.encoder.tokens), device
        )
        parts = [trainer.student, trainer.teacher, trainer.discriminator, trainer.model.precondition]
        student, teacher, judge, precondition = (part.to(device) for part in parts)
        terms = compute_terms(student, teacher, judge, precondition, batch)
        terms.total(0.1, 0.01).backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in student.parameters() if p.grad is not None])
        found[device] = torch.stack([terms.dsm, terms.mae, terms.discriminator]).detach().cpu(), gradient
    for here, there in zip(found["cpu"], found["cuda"], strict=True):
        assert (here - there).norm() / here.norm() < 1e-3  # torch lets convolutions use TF32


@pytest.mark.parametrize("inference", ["full", "masked"])
def test_samples_are_those_of_the_cpu(inference: str) -> None:
    model = OverlayModel(made_config()).eval()
    shaken(model.student)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 2, 64, 64, generator=generator)
    order = draw_order(3, model.student.encoder.groups, generator)
    tokens = made_data(3).condition[torch.arange(3)]
    assert isinstance(tokens, ConditionTokens)
    found = []
    for device in ("cpu", "cuda"):
        one = copy.deepcopy(model).to(device)
        given = ConditionTokens(
            tokens.tokens.float().to(device), tokens.pad.to(device), tokens.pooled.float().to(device)
        )
        with torch.inference_mode():
            cache = one.student.encoder.cache(given)
            plan = SamplingPlan(8, inference)  # type: ignore[arg-type]
            found.append(one.sample_residual(noise.to(device), cache, plan, order.to(device)).cpu())
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_step_makes_the_gpu_wait_for_nothing(precision: str, recorded: bool) -> None:
    trainer = trainer_on("cuda", precision, cuda_graph=recorded)
    data = data_with_flags().on(torch.device("cuda"))
    assert data.residual.is_cuda
    for _ in range(PLAIN_STEPS + 2):  # what is set up once may wait
        trainer.train_step(data)
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = trainer.train_step(data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.as_tensor(values["loss"]))


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    parts = {"student": trainer.student, "teacher": trainer.teacher, "average": trainer.average}
    parts["discriminator"] = trainer.discriminator  # type: ignore[assignment]
    return {
        name: torch.cat([p.detach().flatten().cpu() for p in m.parameters()]) for name, m in parts.items()
    }


@pytest.mark.parametrize("discriminator", ["implicit", "prototype"])
def test_a_recorded_step_does_what_a_plain_one_does(discriminator: str) -> None:
    # masked steps, then the unmasked tail: two recordings
    settings = {"steps": 24, "unmasked_tail": 0.4, "discriminator": discriminator, "path_dropout": 0.3}
    found, start = {}, weights_of(trainer_on("cuda", **settings))
    for recorded in (False, True):
        trainer = trainer_on("cuda", cuda_graph=recorded, **settings)
        rows = trainer.run(data_with_flags())
        assert (trainer.recorded is not None) == recorded
        if trainer.recorded is not None:
            assert len(trainer.recorded.kinds) == 2
        found[recorded] = rows, weights_of(trainer)
    for one, other in zip(found[False][0], found[True][0], strict=True):
        for name, a, b in zip(CURVE_COLUMNS, one, other, strict=True):
            assert b == pytest.approx(a, rel=2e-2, abs=2e-2), name
    for name, before in start.items():
        plain, recorded_weights = found[False][1][name], found[True][1][name]
        # Adam divides gradients that are nearly zero by their own rounding error
        assert (recorded_weights - plain).norm() < 0.05 * (plain - before).norm(), name


def test_recorded_data_of_another_kind_are_recorded_anew_or_run_plainly() -> None:
    trainer, data = trainer_on("cuda"), data_with_flags()
    assert trainer.recorded is not None
    for _ in range(PLAIN_STEPS + 1):
        trainer.train_step(data)
    assert [kind[2] for kind in trainer.recorded.kinds] == [True]
    some = replace(data, whole=torch.zeros(len(data.residual), dtype=torch.bool))
    for _ in range(PLAIN_STEPS + 1):
        trainer.train_step(some)
    assert [kind[2] for kind in trainer.recorded.kinds] == [True, False]
    values = trainer.train_step(replace(data, whole=None))
    assert len(trainer.recorded.kinds) == 2
    assert torch.isfinite(torch.as_tensor(values["loss"]))


def test_data_that_do_not_fit_stay_in_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_with_flags()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 1000))
    assert data.on(torch.device("cuda")) is data
    trainer = trainer_on("cuda", steps=3)
    assert len(trainer.run(data)) == 1


def test_a_resumed_run_goes_on_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = trainer_on("cuda").run(data_with_flags())
    checkpoint = CheckpointFile(tmp_path / "state.pt")
    broken = trainer_on("cuda")
    step = broken.train_step

    def until_12(data: TrainingData) -> dict[str, Tensor | float]:
        if broken.step == 12:
            raise KeyboardInterrupt
        return step(data)

    broken.train_step = until_12  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run(data_with_flags(), checkpoint)
    again = trainer_on("cuda")
    rows = again.run(data_with_flags(), checkpoint)
    assert again.resumed
    for one, other in zip(whole, rows, strict=True):
        for name, a, b in zip(CURVE_COLUMNS, one, other, strict=True):
            if name in LOSSES:
                assert b == pytest.approx(a, rel=1e-3), name  # sums of a GPU come in no fixed order


def test_compiled_blocks_give_the_same_losses() -> None:
    plain, compiled = (
        trainer_on("cuda", compile=flag, steps=6).run(data_with_flags()) for flag in (False, True)
    )
    for name, a, b in zip(CURVE_COLUMNS, plain[0], compiled[0], strict=True):
        if name in LOSSES:
            assert b == pytest.approx(a, rel=1e-2), name
