"""The objective and the loop: who gets a gradient, exact resume, NaN guard, the mean's parts."""

import copy
import math

import pytest
import torch
from made_training import made_config, made_data, made_trainer

from ikddit.atomic import read_json, write_json
from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.model import OverlayModel
from ikddit.diffusion.plan import SamplingPlan
from ikddit.errors import ModelError, TrainingError
from ikddit.networks.codec import CodecConfig
from ikddit.networks.mean import ConditionalMean, SpotLine, interaction_columns, spot_grid
from ikddit.params import parse_params
from ikddit.training.batch import TrainingData, draw_batch
from ikddit.training.ema import power_decay, update_average
from ikddit.training.fit import fit
from ikddit.training.loop import CURVE_COLUMNS, Trainer
from ikddit.training.mean import (
    _add_interactions,
    _crossed_columns,
    _out_of_fold,
    _ridge,
    _screen,
    _splat,
    located_lines,
)
from ikddit.training.objective import compute_terms
from ikddit.training.recorded import RecordedStep, tensors_of, with_tensors


def test_teacher_receives_no_gradient_and_discriminator_none_from_the_student():
    trainer = made_trainer()
    batch = draw_batch(made_data(), 0, trainer.params, trainer.student.encoder.tokens)
    terms = compute_terms(
        trainer.student, trainer.teacher, trainer.discriminator, Preconditioning(0.4), batch
    )
    terms.total(0.1, 0.01).backward()
    assert all(p.grad is None for p in trainer.teacher.parameters())
    assert all(p.grad is None for p in trainer.discriminator.parameters())
    assert trainer.student.encoder.patch.weight.grad is not None
    terms.discriminator.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trainer.discriminator.parameters())


def test_total_is_equation_8():
    trainer = made_trainer()
    batch = draw_batch(made_data(), 0, trainer.params, trainer.student.encoder.tokens)
    t = compute_terms(trainer.student, trainer.teacher, trainer.discriminator, Preconditioning(0.4), batch)
    torch.testing.assert_close(t.total(0.3, 0.2), t.dsm + 0.3 * t.mae + 0.2 * t.generator)


@pytest.mark.parametrize("kind", ["implicit", "cosine", "prototype", "none"])
def test_every_discriminator_trains_and_logs_its_alignment(kind):
    trainer = made_trainer(discriminator=kind, steps=3)
    before = copy.deepcopy(trainer.student.state_dict())
    (row,) = trainer.run(made_data())
    curve = dict(zip(CURVE_COLUMNS, row, strict=True))
    assert curve["step"] == 3
    assert any(not torch.equal(before[name], value) for name, value in trainer.student.state_dict().items())
    watched = [curve[c] for c in ("discriminator_accuracy", "alignment_cosine", "alignment_cka")]
    if kind == "none":
        assert all(math.isnan(v) for v in watched)
        assert curve["generator"] == curve["discriminator"] == 0
    else:
        assert 0 <= watched[0] <= 1
        assert -1 <= watched[1] <= 1
        assert 0 < watched[2] <= 1
        assert curve["discriminator"] > 0
        assert all(p.grad is None for p in trainer.teacher.parameters())
    assert 0 < curve["gate"] <= curve["gate_max"] < 1


@pytest.mark.parametrize("kind", ["cosine", "prototype"])
def test_state_of_a_discriminator_survives_a_resume(kind):
    data = made_data()
    whole = made_trainer(discriminator=kind, steps=4)
    whole.run(data)
    first = made_trainer(discriminator=kind, steps=4)
    for _ in range(2):
        first.train_step(data)
    second = made_trainer(discriminator=kind, steps=4)
    second.restore(copy.deepcopy(first.state()))
    second.run(data)
    for name, value in whole.discriminator.state_dict().items():
        assert torch.equal(second.discriminator.state_dict()[name], value), name


def test_latents_of_a_codec_are_trained_sampled_and_decoded_by_the_same_student(tmp_path):
    codec = CodecConfig(widths=(8, 8, 8), groups=4)
    torch.manual_seed(0)
    model = OverlayModel(made_config(codec=codec, sigma_data=1.0))
    assert model.student.encoder.tokens == 64
    small = made_data()
    maps, known = torch.randn(12, 2, 256, 256), torch.ones(12, 1, 256, 256)
    with torch.no_grad():
        latents = model.codec.encode(maps, known)
    data = TrainingData(latents, torch.ones(12, 1, 64, 64, dtype=torch.uint8), small.condition)
    settings = {"steps": 3, "batch": 4, "precision": "fp32", "warmup_steps": 0}
    trainer = Trainer(model, parse_params({"train": settings}), torch.device("cpu"))
    before = model.codec.network.encoder.conv_in.weight.clone()
    (row,) = trainer.run(data)
    assert all(math.isfinite(v) for v in row)
    assert torch.equal(
        model.codec.network.encoder.conv_in.weight, before
    )  # the codec is not trained with the student
    model.save(tmp_path)
    again = OverlayModel.load(tmp_path)
    assert again.config.codec == codec
    with torch.no_grad():
        c = small.condition[:2]
        condition = c.float()
        cache = again.student.encoder.cache(condition)
        sampled = again.sample_residual(torch.randn(2, 4, 64, 64), cache, SamplingPlan(2))
        assert again.codec.decode(sampled).shape == (2, 2, 256, 256)


def test_modes_beside_a_codec_are_refused_by_name():
    with pytest.raises(ModelError, match="modes 3 with a codec"):
        OverlayModel(made_config(codec=CodecConfig(widths=(8, 8, 8), groups=4), modes=3))


def test_modes_are_measured_trained_with_saved_and_used_again(tmp_path):
    torch.manual_seed(0)
    model, data = OverlayModel(made_config(modes=3, precision="bf16")), made_data()
    model.precondition.measure(data.residual, data.valid)
    assert model.student.encoder.patch.in_channels == 5  # noisy map, its linear estimate, mask
    settings = {"steps": 3, "batch": 4, "warmup_steps": 0}
    trainer = Trainer(model, parse_params({"train": settings}), torch.device("cpu"))
    (row,) = trainer.run(data)
    assert all(math.isfinite(v) for v in row)
    model.eval().save(tmp_path)
    again = OverlayModel.load(tmp_path)
    for name in ("modes", "mode_variance", "rest_variance"):
        assert torch.equal(getattr(again.precondition, name), getattr(model.precondition, name)), name
    c = data.condition[:2]
    condition = c.float()
    noise = torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        one, other = (
            m.sample_residual(noise, m.student.encoder.cache(condition), SamplingPlan(2))
            for m in (model, again)
        )
    assert torch.isfinite(one).all()
    assert torch.equal(one, other)


def test_power_function_average_weighs_steps_by_their_power():
    """Against EDM2's closed form (2312.02696): step t has the weight (t^(g+1) - (t-1)^(g+1)) / T^(g+1)."""
    gamma, states = 2.5, torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    average, source = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(3, 1, bias=False)
    for step, state in enumerate(states, 1):
        with torch.no_grad():
            source.weight.copy_(state[None])
        update_average(average, source, power_decay(step, gamma))
    t = torch.arange(21.0) ** (gamma + 1)
    expected = ((t[1:] - t[:-1])[:, None] * states).sum(0) / t[-1]
    torch.testing.assert_close(average.weight.detach()[0], expected, atol=1e-5, rtol=1e-5)


def test_pipeline_refuses_the_codec_for_small_maps(tmp_path):
    with pytest.raises(TrainingError, match=r"train\.codec: kl takes 256x256 maps"):
        fit(parse_params({"train": {"codec": "kl"}}), tmp_path, tmp_path, None)


def test_unmeasured_pixels_do_not_enter_the_terms():
    trainer = made_trainer()
    data = made_data()
    data.valid[:, :, 8:24, 8:24] = 0
    terms = []
    for value in (0.0, 50.0):
        data.residual[:, :, 8:24, 8:24] = value
        batch = draw_batch(data, 0, trainer.params, trainer.student.encoder.tokens)
        trainer.discriminator.load_state_dict(made_trainer().discriminator.state_dict())
        terms.append(
            compute_terms(
                trainer.student, trainer.teacher, trainer.discriminator, Preconditioning(0.4), batch
            )
        )
    assert torch.equal(terms[0].dsm, terms[1].dsm)
    assert torch.equal(terms[0].discriminator, terms[1].discriminator)


def test_model_folder_round_trip_and_damage(tmp_path):
    model = OverlayModel(made_config())
    model.save(tmp_path)
    again = OverlayModel.load(tmp_path)
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ModelError, match="not a usable model folder"):
        OverlayModel.load(tmp_path)
    config = read_json(tmp_path / "config.json")
    config["mean"]["id_sizes"] = config["mean"]["id_sizes"][:2]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ModelError, match="not a usable model folder"):
        OverlayModel.load(tmp_path)


def test_screening_finds_the_planted_interaction():
    g = torch.Generator().manual_seed(0)
    x, ids = torch.randn(400, 12, generator=g), torch.randint(1, 3, (400, 10), generator=g)
    target = ((ids[:, 4] == 2) * x[:, 9])[:, None] * torch.tensor([[2.0, -1.0]])
    found = _screen(x, ids, _crossed_columns(ids, 10), target, 6, torch.zeros(0, 3, dtype=torch.long))
    assert found[0].tolist() == [4, 2, 9]
    assert torch.equal(interaction_columns(x, ids, found[:1])[:, 0], (ids[:, 4] == 2) * x[:, 9])


@pytest.mark.parametrize("most", [5, 15, 20])
def test_no_more_interactions_enter_than_are_asked_for(most):
    g = torch.Generator().manual_seed(0)
    mean = ConditionalMean(made_config().mean)
    ids = torch.randint(1, 3, (400, 10), generator=g)
    x, scores = (torch.randn(400, width, generator=g) for width in (mean.config.one_hot + 12, 2))
    mean.ridge, better = _ridge(x, scores, 1.0), iter(range(100, 0, -1))
    _add_interactions(mean, x, ids, scores, 1.0, most, lambda _: float(next(better)))
    assert len(mean.interaction) == mean.config.interactions == most


def test_a_missing_channel_can_change_what_another_input_is_worth():
    g = torch.Generator().manual_seed(0)
    ids, x = torch.ones(400, 10, dtype=torch.long), torch.randn(400, 12, generator=g)
    report = (
        torch.rand(400, 1, generator=g) < 0.3
    ).long()  # three channels of one report, and one never missing
    code = torch.cat([ids, report, report, report, torch.zeros_like(report)], dim=1)
    crossed = _crossed_columns(code, 10)
    assert [position for position, _ in crossed[-2:]] == [9, 10]
    target = (report * x[:, 7:8]) * torch.tensor([[2.0, -1.0]])
    assert [10, 1, 7] in _screen(x, code, crossed, target, 6, torch.zeros(0, 3, dtype=torch.long)).tolist()


def test_out_of_fold_scores_ignore_the_wafers_own_lot():
    import numpy as np

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 3, generator=g), torch.randn(60, 2, generator=g)
    lots = np.repeat([f"L{i}" for i in range(6)], 10)
    before = _out_of_fold(x, y, lots, 1.0, 3, 0)
    y[:10] += 100.0
    after = _out_of_fold(x, y, lots, 1.0, 3, 0)
    torch.testing.assert_close(before[:10], after[:10])
    assert not torch.allclose(before[10:], after[10:])


def test_ridge_is_sklearns():
    from sklearn.linear_model import Ridge

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=g), torch.randn(50, 2, generator=g)
    peer = Ridge(alpha=3.0, fit_intercept=False).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(_ridge(x, y, 3.0).T, torch.from_numpy(peer.coef_), atol=1e-5, rtol=1e-4)


def test_spot_kernel_is_recovered_and_lands_where_the_line_says():
    g = torch.Generator().manual_seed(0)
    pitch = 4.6875
    axis = (torch.arange(64) + 0.5) * pitch - 150
    x, y = (torch.rand(200, generator=g) - 0.5) * 160, (torch.rand(200, generator=g) - 0.5) * 160
    dx = axis[None, None, :] - x[:, None, None]
    dy = axis.flip(0)[None, :, None] - y[:, None, None]
    bump = torch.exp(-(dx**2 + dy**2) / 800)
    height = 20 + 60 * torch.rand(200, generator=g)
    maps = torch.stack([dx * bump, dy * bump], 1) / 12 * height[:, None, None, None]
    kernel = _splat(maps, torch.ones(200, 1, 64, 64), x, y, height, pitch)
    shape = torch.nn.functional.grid_sample(kernel[None], spot_grid(x[:1], y[:1], pitch), align_corners=True)
    error = (shape * height[0] - maps[:1]).square().mean().sqrt() / maps[:1].square().mean().sqrt()
    assert float(error) < 0.1
    templates = ["", "?", "WARN hot spot x=<num> y=<num> mm dz=<num> nm"]
    assert located_lines(templates, 3) == (SpotLine(2, 0, 1, 2),)
    assert located_lines(templates, 2) == ()  # its height is not kept


def test_an_average_with_a_decay_on_the_device_is_the_same():
    torch.manual_seed(0)
    source = torch.nn.Linear(3, 3)
    one, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    other.load_state_dict(one.state_dict())
    update_average(one, source, 0.9)
    update_average(other, source, torch.tensor(0.9))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_batch_is_taken_apart_and_put_together_in_one_order(ratio):
    trainer = made_trainer()
    params = parse_params({"mask_ratio": ratio, "train": {"batch": 4}})
    batch = draw_batch(made_data(), 0, params, trainer.student.encoder.tokens)
    tensors = tensors_of(batch)
    assert len(tensors) == (9 if ratio else 8)
    again = tensors_of(with_tensors(batch, [t.clone() for t in tensors]))
    for a, b in zip(tensors, again, strict=True):
        assert torch.equal(a, b)
        assert a is not b


def test_steps_are_not_recorded_on_a_cpu():
    assert made_trainer(cuda_graph=True).recorded is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch without a GPU refuses to record")
def test_a_step_that_cannot_be_recorded_names_the_way_out():
    trainer = made_trainer()
    batch = draw_batch(made_data(), 0, trainer.params, trainer.student.encoder.tokens)
    step = RecordedStep(lambda batch, rate, decay: {"loss": batch.sigma.sum()}, torch.device("cpu"))
    with pytest.raises(TrainingError, match=r"set train\.cuda_graph: false"):
        step._record(batch)
