"""Interruption: kill -9, damaged and foreign checkpoints, poisoned data."""

import json
import logging
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made_training import made_data, made_trainer

from ikddit.errors import TrainingError
from ikddit.params import Params
from ikddit.training.batch import TrainingData, draw_batch
from ikddit.training.checkpoint import CheckpointFile, fingerprint

SCRIPT = Path(__file__).with_name("made_training.py")


def start(rows: Path, checkpoint: Path, **settings) -> subprocess.Popen[str]:
    settings = {"steps": 40, "batch": 2} | settings
    command = [sys.executable, str(SCRIPT), str(rows), str(checkpoint), json.dumps(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_run_resumes_to_the_same_curves_bit_for_bit(tmp_path):
    fatal = random.randint(11, 28)
    whole = start(tmp_path / "whole.json", tmp_path / "whole.pt")
    victim = start(tmp_path / "rows.json", tmp_path / "state.pt", fatal=fatal)
    told, _ = victim.communicate()
    assert victim.returncode == -signal.SIGKILL, f"step {fatal}"
    assert not (tmp_path / "rows.json").exists()
    last = int(told.split()[-1])  # the step after `fatal` may have been done when the signal came
    assert fatal <= last < 40
    reached = CheckpointFile(tmp_path / "state.pt").load()["step"]
    assert reached in {last // 10 * 10, (last - 1) // 10 * 10}, f"step {fatal}, killed after {last}"
    again = start(tmp_path / "rows.json", tmp_path / "state.pt")
    told, errors = again.communicate()
    assert f"resuming at step {reached} of 40" in errors
    assert [int(n) for n in told.split()] == list(range(reached + 1, 41))
    whole.communicate()
    assert whole.returncode == again.returncode == 0
    # the text of a float is exact: equal files are equal bits
    assert (tmp_path / "rows.json").read_text() == (tmp_path / "whole.json").read_text(), f"step {fatal}"


def test_interruption_while_saving_keeps_the_state_before(tmp_path, monkeypatch):
    checkpoint = CheckpointFile(tmp_path / "state.pt")
    checkpoint.save({"step": 10})

    def half(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"step": 20})
    assert checkpoint.load() == {"step": 10}


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 64):
        content[place] ^= 0xFF
    path.write_bytes(content)


def foreign(path: Path) -> None:
    path.write_text("this is no checkpoint")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def with_code(path: Path) -> None:
    torch.save({"step": 10, "note": Path("a class is code, and code is not loaded")}, path)


@pytest.mark.parametrize("damage", [truncated, altered, foreign, empty, with_code])
def test_unreadable_checkpoint_is_named_and_training_starts_over(tmp_path, caplog, damage):
    first = made_trainer(steps=10)
    checkpoint = CheckpointFile(tmp_path / "state.pt")
    first.run(made_data(), checkpoint)
    damage(checkpoint.path)
    second = made_trainer(steps=10)
    with caplog.at_level(logging.WARNING, "ikddit"):
        assert second.run(made_data(), checkpoint) == first.rows
    assert "state.pt cannot be read" in caplog.text
    assert "starts over" in caplog.text
    assert checkpoint.load()["step"] == 10


def test_checkpoint_of_another_model_is_refused(tmp_path):
    trainer = made_trainer()
    checkpoint = CheckpointFile(tmp_path / "state.pt")
    checkpoint.save(trainer.state() | {"student": {"other.weight": torch.zeros(2)}})
    with pytest.raises(TrainingError, match=r"not of this model.*remove it"):
        made_trainer().run(made_data(), checkpoint)


def test_checkpoint_is_keyed_by_settings_data_and_code(tmp_path):
    data, code = tmp_path / "train.arrow", tmp_path / "code"
    data.write_bytes(b"wafers")
    code.mkdir()
    (code / "loop.py").write_text("steps")
    key = fingerprint({"seed": 0}, [data], [code])
    assert fingerprint({"seed": 0}, [data], [code]) == key
    assert fingerprint({"seed": 1}, [data], [code]) != key
    (code / "loop.py").write_text("other steps")
    assert fingerprint({"seed": 0}, [data], [code]) != key
    (code / "loop.py").write_text("steps")
    data.write_bytes(b"other wafers")
    assert fingerprint({"seed": 0}, [data], [code]) != key


@pytest.mark.parametrize(
    "changed",
    [
        "prepared/val.arrow", "prepared/normaliser.json", "prepared/vocabularies.json", "src/ikddit/dataset/arrow.py",
        "src/ikddit/overlay/grid.py",
    ],
)  # fmt: skip
def test_whatever_the_stage_reads_is_in_the_key_of_its_checkpoint(tmp_path, monkeypatch, changed):
    run_key = runpy.run_path(str(Path(__file__).parents[2] / "stages" / "train.py"))["run_key"]
    monkeypatch.chdir(tmp_path)
    path = Path(changed)
    path.parent.mkdir(parents=True)
    path.write_text("as it was")
    before = run_key(Params(), Path("prepared"), Path("embedding"))
    path.write_text("another")
    assert run_key(Params(), Path("prepared"), Path("embedding")) != before


def test_removed_checkpoint_leaves_nothing_of_a_killed_writer(tmp_path):
    checkpoint = CheckpointFile(tmp_path / "key.pt")
    checkpoint.save({"step": 1})
    (tmp_path / ".key.pt.4711.part").write_bytes(b"half")
    (tmp_path / ".other.pt.4711.part").write_bytes(b"of another run")
    checkpoint.remove()
    assert [p.name for p in tmp_path.iterdir()] == [".other.pt.4711.part"]


def first_drawn(data: TrainingData, steps: int, trainer) -> dict[int, int]:
    """Wafer -> the first step that draws it; wafers are told apart by their first pixel."""
    wafer = {float(value): i for i, value in enumerate(data.residual[:, 0, 0, 0].float())}
    found: dict[int, int] = {}
    for step in range(steps):
        for value in draw_batch(data, step, trainer.params, 64).residual[:, 0, 0, 0]:
            found.setdefault(wafer[float(value)], step)
    return found


def test_poisoned_wafer_stops_with_its_step_and_the_last_good_checkpoint_is_kept(tmp_path):
    trainer, data = made_trainer(), made_data(60)
    data.residual[:, 0, 0, 0] = torch.arange(60)
    poisoned, step = next(item for item in first_drawn(data, 20, trainer).items() if item[1] > 10)
    data.residual[poisoned] = float("nan")
    checkpoint = CheckpointFile(tmp_path / "state.pt")
    with pytest.raises(TrainingError, match=f"step {step}: loss nan.*checkpoint of step 10 is kept"):
        trainer.run(data, checkpoint)
    state = checkpoint.load()
    assert state["step"] == 10
    assert all(torch.isfinite(v).all() for v in state["student"].values())


def test_poison_in_the_first_step_is_named_before_any_checkpoint():
    data = made_data()
    data.residual[:] = float("nan")
    with pytest.raises(TrainingError, match=r"step 0: loss nan.*no checkpoint was written yet"):
        made_trainer().run(data)
