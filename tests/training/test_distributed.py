"""Several processes: the same curves as one, shares that add up, refusals; options of the loop."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_training import made_data, made_trainer

from ikddit.errors import TrainingError
from ikddit.networks.blocks import Block
from ikddit.params import TrainParams
from ikddit.training.batch import draw_batch
from ikddit.training.distributed import Workers
from ikddit.training.ema import update_average
from ikddit.training.loop import CURVE_COLUMNS

SCRIPT = Path(__file__).with_name("made_training.py")
SHARED = (
    "step", "loss", "dsm", "mae", "generator", "discriminator", "discriminator_accuracy", "alignment_cosine", "gate",
    "grad_norm", "learning_rate",
)  # fmt: skip
"""Columns that are means over wafers and tokens: how the batch is shared does not change them."""


def test_two_processes_have_the_curves_of_one(tmp_path):
    # In float64, since a step of Adam divides a gradient that should be zero by its own rounding error: in float32
    # the discriminator drifts by per cents within ten steps. Five wafers for two processes: a plain mean of their
    # means would be wrong. The last steps are without a mask.
    settings = {"steps": 20, "batch": 5, "unmasked_tail": 0.3, "double": True}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = {}
    for name, launcher in (("one", [sys.executable]), ("two", torchrun)):
        arguments = [str(tmp_path / f"{name}.json"), str(tmp_path / f"{name}.pt"), json.dumps(settings)]
        runs[name] = subprocess.Popen(
            [*launcher, str(SCRIPT), *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    for run in runs.values():
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 0, errors
    assert "training with 2 processes" in errors
    assert errors.count("done in") == 1  # one process speaks for both
    one, two = (np.array(json.loads((tmp_path / f"{name}.json").read_text())) for name in runs)
    assert one.shape == two.shape == (2, len(CURVE_COLUMNS))
    for name in SHARED:
        column = CURVE_COLUMNS.index(name)
        np.testing.assert_allclose(two[:, column], one[:, column], rtol=1e-9, err_msg=name)
    assert abs(one[0, 1] - one[1, 1]) > 1e-4  # it did learn
    state, peer = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("two", "one"))
    for part in ("student", "teacher", "average", "discriminator"):
        for name, value in peer[part].items():
            torch.testing.assert_close(state[part][name], value, rtol=1e-6, atol=1e-8, msg=f"{part} {name}")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_rows_of_all_processes_are_the_batch_of_one(count):
    trainer, data = made_trainer(batch=10), made_data(20)
    whole = draw_batch(data, 3, trainer.params, 64)
    parts = [draw_batch(data, 3, trainer.params, 64, workers=Workers(r, count)) for r in range(count)]
    for name in ("residual", "valid", "sigma", "noise", "visible"):
        together = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(together, getattr(whole, name)), name
    assert torch.equal(torch.cat([p.condition.tokens for p in parts]), whole.condition.tokens)
    assert sum(Workers(r, count).share(10) for r in range(count)) == pytest.approx(1.0)


def test_more_processes_than_wafers_in_a_batch_are_refused():
    with pytest.raises(TrainingError, match=r"batch of 4 wafers for 8 processes; raise train\.batch"):
        Workers(0, 8).rows(4)


def test_noise_differs_between_steps_and_seeds_and_repeats_otherwise():
    trainer, data = made_trainer(), made_data()
    first = draw_batch(data, 0, trainer.params, 64)
    assert torch.equal(first.noise, draw_batch(data, 0, trainer.params, 64).noise)
    other = trainer.params.model_copy(update={"seed": 1})
    for again in (draw_batch(data, 1, trainer.params, 64), draw_batch(data, 0, other, 64)):
        correlation = torch.corrcoef(torch.stack([first.noise.flatten(), again.noise.flatten()]))[0, 1]
        assert abs(float(correlation)) < 5 / first.noise.numel() ** 0.5


def test_average_follows_its_formula():
    average, source = (torch.nn.BatchNorm1d(3) for _ in range(2))
    with torch.no_grad():
        average.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        source.weight.copy_(torch.tensor([5.0, 6.0, 7.0]))
        source.running_mean.fill_(4.0)
    update_average(average, source, 0.75)
    torch.testing.assert_close(average.weight.detach(), torch.tensor([2.0, 3.0, 4.0]))
    assert torch.equal(average.running_mean, source.running_mean)
    assert torch.equal(source.weight.detach(), torch.tensor([5.0, 6.0, 7.0]))


def test_compile_is_off_unless_asked_for_and_reaches_every_block_of_student_and_teacher():
    # whether the compiled blocks run needs minutes of a compiler and is not repeated here
    assert TrainParams().compile is False
    for asked in (False, True):
        trainer = made_trainer(compile=asked)
        blocks = [b for m in (trainer.student, trainer.teacher) for b in m.modules() if isinstance(b, Block)]
        assert len(blocks) == 11
        assert {b._compiled_call_impl is not None for b in blocks} == {asked}
        assert not any("_orig_mod" in name for name in trainer.student.state_dict())
