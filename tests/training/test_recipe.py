"""The recipe of docs/training.md and docs/model.md, each figure against its formula written out by hand."""

import copy
import dataclasses
import math

import pytest
import torch
from made_training import made_data, made_trainer

from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.model import OverlayModel
from ikddit.networks.discriminator import Discriminator
from ikddit.networks.sizes import SIZES
from ikddit.networks.student import Encoder
from ikddit.training.batch import draw_batch
from ikddit.training.fit import Fitted, save_models
from ikddit.training.loop import learning_rate
from ikddit.training.objective import compute_terms

SD = 0.4


def woken(trainer):
    """A trainer whose zero-initialised weights are not, so that every part has a say."""
    torch.manual_seed(1)
    for module in (trainer.student, trainer.teacher):
        for parameter in module.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return trainer


class Spy(Discriminator):
    """Keeps what it is shown."""

    def own_loss(self, real, fake, context):
        self.real, self.fake, self.context = real, fake, context
        return fake.sum() * 0, fake.sum() * 0

    def student_loss(self, real, fake, context):
        return fake.sum() * 0


def test_dsm_and_mae_are_those_of_the_denoiser_written_out():
    trainer = woken(made_trainer())
    data = made_data()
    data.valid[:, :, :20] = 0
    data.residual[:, :, :20] = 0
    batch = draw_batch(data, 0, trainer.params, trainer.student.encoder.tokens)
    terms = compute_terms(trainer.student, trainer.teacher, None, Preconditioning(SD), batch)
    dsm, mae = [], []
    with torch.no_grad():
        for i, sigma in enumerate(batch.sigma.tolist()):
            one = batch.condition[i : i + 1]
            noisy = (batch.residual[i : i + 1] + sigma * batch.noise[i : i + 1]) * batch.valid[i : i + 1]
            total = sigma**2 + SD**2  # EDM, table 1
            raw, _ = trainer.student(
                noisy / math.sqrt(total),
                batch.valid[i : i + 1],
                torch.tensor([math.log(sigma) / 4]),
                trainer.student.encoder.cache(one),
                batch.visible[i : i + 1],
            )
            denoised = SD**2 / total * noisy + sigma * SD / math.sqrt(total) * raw
            error = (denoised - batch.residual[i : i + 1])[:, :, 20:]
            dsm.append(float(error.square().mean()) * total / (sigma * SD) ** 2)
            mae.append(float(error.abs().mean()) / SD)
    assert float(terms.dsm.detach()) == pytest.approx(sum(dsm) / len(dsm), rel=1e-4)
    assert float(terms.mae.detach()) == pytest.approx(sum(mae) / len(mae), rel=1e-4)


def test_discriminator_is_shown_both_sides_at_the_same_places():
    trainer, spy = woken(made_trainer()), Spy()
    student, teacher = trainer.student.encoder, trainer.teacher
    batch = draw_batch(made_data(), 0, trainer.params, student.tokens)
    precondition = Preconditioning(SD)
    with torch.no_grad():
        compute_terms(trainer.student, teacher, spy, precondition, batch)
        # the teacher: all tokens, half of the noise on the same path, the tap at three quarters
        half = batch.sigma / 2
        read, c_noise, _ = precondition.inputs(batch.residual + half.view(-1, 1, 1, 1) * batch.noise, half)
        cache = teacher.cache(batch.condition)
        tokens, modulation = teacher.shallow(read, batch.valid, c_noise, cache)
        _, (real,) = teacher.deepen(tokens, modulation, cache, (3,))
    for i, places in enumerate(batch.visible):
        torch.testing.assert_close(spy.real[i], real[i][places])
        assert torch.equal(spy.context.position[i], student.position[places])
    torch.testing.assert_close(spy.context.c_noise, batch.sigma.log() / 4)
    assert torch.equal(spy.context.pooled, batch.condition.pooled)


@pytest.mark.parametrize("model", ["T/8", "L/8", "XL/8"])
def test_taps_are_a_quarter_and_three_quarters_of_the_depth(model):
    with torch.device("meta"):
        encoder = Encoder(model, 8)
    depth = SIZES[model].deep
    assert encoder.student_tap == pytest.approx(depth / 4, abs=0.5)
    assert encoder.teacher_tap == pytest.approx(3 * depth / 4, abs=0.5)


def test_learning_rate_warms_up_falls_to_a_tenth_and_is_halved_in_the_tail():
    params = made_trainer(steps=100, warmup_steps=10, learning_rate=0.002, unmasked_tail=0.1).params
    assert learning_rate(0, params) == pytest.approx(0.0002)
    assert learning_rate(50, params) == pytest.approx(0.002 * 0.55)
    assert learning_rate(89, params) == pytest.approx(0.002 * (0.1 + 0.45 * (1 + math.cos(0.89 * math.pi))))
    assert learning_rate(99, params) == pytest.approx(0.001 * (0.1 + 0.45 * (1 + math.cos(0.99 * math.pi))))


def test_tail_is_unmasked_and_conditions_are_dropped_by_their_share():
    params, data = made_trainer(steps=100, unmasked_tail=0.1, condition_dropout=0.25).params, made_data()
    assert draw_batch(data, 89, params, 60).visible is not None
    assert draw_batch(data, 90, params, 60).visible is None
    pooled = torch.cat([draw_batch(data, step, params, 60).condition.pooled for step in range(200)])
    share = float((pooled == 0).all(1).float().mean())
    assert abs(share - 0.25) < 0.05  # 800 rows: over three standard errors


def test_a_step_moves_teacher_and_average_by_their_own_decays_and_clips_the_gradient():
    trainer, data = woken(made_trainer(teacher_decay=0.9, ema_gamma=3.0, discriminator="none")), made_data()
    trainer.train_step(data)
    before = {name: copy.deepcopy(getattr(trainer, name)) for name in ("teacher", "average")}
    grown = dataclasses.replace(data, residual=1000 * data.residual)
    assert float(trainer.train_step(grown)["grad_norm"]) > 1
    gradient = torch.cat([p.grad.flatten() for p in trainer.student.parameters() if p.grad is not None])
    assert float(gradient.norm()) == pytest.approx(1, rel=1e-3)
    decay = (1 - 1 / 2) ** 4  # the second step
    for name, kept, source in (
        ("teacher", 0.9, trainer.student.encoder),
        ("average", decay, trainer.student),
    ):
        moved = getattr(trainer, name)
        for new, old, now in zip(
            moved.parameters(), before[name].parameters(), source.parameters(), strict=True
        ):
            torch.testing.assert_close(new, kept * old + (1 - kept) * now.detach())


def test_what_is_saved_is_the_average_and_the_teacher(tmp_path):
    trainer = woken(made_trainer(steps=2))
    trainer.run(made_data())
    average, raw = copy.deepcopy(trainer.average.state_dict()), copy.deepcopy(trainer.student.state_dict())
    (tmp_path / "prepared").mkdir()
    for name in ("normaliser.json", "vocabularies.json", "tokenizer.json"):
        (tmp_path / "prepared" / name).write_text("{}")
    save_models(Fitted(trainer, [], {}), tmp_path / "prepared", tmp_path / "student", tmp_path / "teacher")
    saved = OverlayModel.load(tmp_path / "student").student.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in average.items())
    assert any(not torch.equal(saved[name], value) for name, value in raw.items())
