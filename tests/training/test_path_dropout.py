"""Path dropout: some rows must do without the deep encoder, drawn from the step's own generator."""

import torch
from test_training import made_data, made_trainer

from ikddit.training.batch import draw_batch
from ikddit.training.objective import compute_terms


def test_draw_depends_on_the_step_alone_and_changes_nothing_else():
    data = made_data()
    none, half = made_trainer(path_dropout=0.0).params, made_trainer(path_dropout=0.5).params
    plain, dropped = draw_batch(data, 3, none, 64), draw_batch(data, 3, half, 64)
    assert plain.path_drop is None
    assert torch.equal(dropped.path_drop, draw_batch(data, 3, half, 64).path_drop)
    for name in ("residual", "sigma", "noise", "visible"):
        assert torch.equal(getattr(plain, name), getattr(dropped, name)), name
    share = torch.cat([draw_batch(data, step, half, 64).path_drop for step in range(200)]).float().mean()
    assert abs(float(share) - 0.5) < 0.06  # 800 rows: over three standard errors


def test_dropped_rows_train_the_hidden_token_and_not_the_deep_encoder():
    trainer = made_trainer(path_dropout=0.5, discriminator="none")
    for parameter in trainer.student.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    batch = draw_batch(made_data(), 0, trainer.params, 64)
    batch = type(batch)(**(vars(batch) | {"visible": None, "path_drop": torch.ones(4, dtype=torch.bool)}))
    terms = compute_terms(trainer.student, trainer.teacher, None, trainer.model.precondition, batch)
    terms.dsm.backward()
    deep = [p.grad for p in trainer.student.encoder.deep.parameters() if p.grad is not None]
    assert all(not grad.any() for grad in deep)
    assert trainer.student.decoder.hidden.grad.any()
    assert trainer.student.encoder.patch.weight.grad.any()
