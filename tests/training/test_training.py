"""The objective and the loop: who gets a gradient, exact resume, NaN guard, the mean's parts."""

import pytest
import torch

from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.model import ModelConfig, OverlayModel
from ikddit.embedding.encoders import ConditionTokens, EmbeddingConfig
from ikddit.errors import ModelError, TrainingError
from ikddit.networks.mean import MeanConfig, SpotLine, interaction_columns, spot_grid
from ikddit.params import parse_params
from ikddit.training.checkpoint import CheckpointFile
from ikddit.training.loop import Trainer, TrainingData, draw_batch
from ikddit.training.mean import _out_of_fold, _ridge, _screen, _splat, located_lines
from ikddit.training.objective import compute_terms

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


def made_trainer(**train) -> Trainer:
    settings = {
        "steps": 20,
        "batch": 4,
        "precision": "fp32",
        "warmup_steps": 2,
        "checkpoint_every": 10,
    } | train
    params = parse_params({"train": settings})
    torch.manual_seed(0)
    return Trainer(OverlayModel(made_config()), params, torch.device("cpu"))


def test_teacher_receives_no_gradient_and_discriminator_none_from_the_student():
    trainer = made_trainer()
    batch = draw_batch(made_data(), 0, trainer.params, 64)
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
    batch = draw_batch(made_data(), 0, trainer.params, 64)
    t = compute_terms(trainer.student, trainer.teacher, trainer.discriminator, Preconditioning(0.4), batch)
    torch.testing.assert_close(t.total(0.3, 0.2), t.dsm + 0.3 * t.mae + 0.2 * t.generator)


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    data = made_data()
    whole = made_trainer().run(data)
    first = made_trainer()
    checkpoint = CheckpointFile(tmp_path / "state.pt")

    class Killed(Exception):
        pass

    save = checkpoint.save

    def save_and_die(state):
        save(state)
        raise Killed

    checkpoint.save = save_and_die
    with pytest.raises(Killed):
        first.run(data, checkpoint)
    second = made_trainer()
    rows = second.run(data, CheckpointFile(tmp_path / "state.pt"))
    assert rows == whole
    assert second.step == 20


def test_nan_stops_training_and_names_the_step():
    trainer = made_trainer()
    data = made_data()
    data.residual[:] = float("nan")
    with pytest.raises(TrainingError, match=r"step 0: loss nan"):
        trainer.run(data)


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


def test_screening_finds_the_planted_interaction():
    g = torch.Generator().manual_seed(0)
    x, ids = torch.randn(400, 12, generator=g), torch.randint(1, 3, (400, 10), generator=g)
    target = ((ids[:, 4] == 2) * x[:, 9])[:, None] * torch.tensor([[2.0, -1.0]])
    found = _screen(x, ids, target, 6, torch.zeros(0, 3, dtype=torch.long))
    assert found[0].tolist() == [4, 2, 9]
    assert torch.equal(interaction_columns(x, ids, found[:1])[:, 0], (ids[:, 4] == 2) * x[:, 9])


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
    assert located_lines(["", "?", "WARN hot spot x=<num> y=<num> mm dz=<num> nm"]) == (SpotLine(2, 0, 1, 2),)
