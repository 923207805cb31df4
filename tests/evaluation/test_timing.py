"""The timing stage: every mode measured in turns, operations counted, DDPM named by the steps it ran."""

import numpy as np
import pytest
import torch
from evaluation_fakes import small_fab
from safetensors.torch import save_file
from student_fakes import made_generator
from torch import nn

from ikddit.errors import ModelError
from ikddit.evaluation import timing
from ikddit.params import TimingParams

PARAMS = TimingParams(batch=3, repeats=3, warmup=1, ddpm_steps=4)
MODES = ("full", "masked", "guided_cfg", "guided_path_drop", "teacher")


@pytest.fixture(scope="module")
def measured():
    generator = made_generator()
    return timing.measure(generator, small_fab(6, seed=0), PARAMS, 8, 0, generator)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_time_rate_latency_and_operations(measured, mode):
    assert 0 < measured[f"{mode}_s_q25"] <= measured[f"{mode}_s"] <= measured[f"{mode}_s_q75"]
    assert measured[f"{mode}_samples_per_s"] == pytest.approx(3 / measured[f"{mode}_s"])
    assert 0 < measured[f"{mode}_latency_s_q25"] <= measured[f"{mode}_latency_s_q75"]
    assert measured[f"{mode}_gflops_per_sample"] > 0


def test_operations_tell_the_modes_apart_whatever_the_machine_does(measured):
    operations = {mode: measured[f"{mode}_gflops_per_sample"] for mode in MODES}
    assert operations["masked"] < operations["full"] == operations["teacher"]
    assert operations["full"] < operations["guided_path_drop"] < operations["guided_cfg"]


def test_machine_and_settings_stand_beside_the_figures(measured):
    assert measured["device"] == "cpu"
    assert measured["threads"] == torch.get_num_threads()
    assert (measured["tokens"], measured["batch"], measured["steps"], measured["repeats"]) == (60, 3, 8, 3)
    assert measured["peak_memory_mib"] > 50


def test_ddpm_is_named_by_the_steps_it_ran(measured):
    assert measured["ddpm4_latency_s"] > 0
    assert not any(name.startswith("ddpm1000") for name in measured)


def test_guidance_the_model_lacks_is_absent_and_not_zero():
    assert set(timing.sampling_modes(made_generator(path_dropout=0.0))) == {"full", "masked", "guided_cfg"}
    assert set(timing.sampling_modes(made_generator(path_dropout=0.0, condition_dropout=0.0))) == {
        "full",
        "masked",
    }


def test_runs_take_turns_and_warm_up_is_not_counted(monkeypatch):
    order = []
    clock = iter(np.arange(100.0))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    seconds = timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 1, 2, "t")
    assert order == ["a", "b"] * 3
    assert seconds == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_operations_are_two_per_multiplication_and_addition():
    layer, x = nn.Linear(8, 16), torch.randn(4, 8)
    assert timing.flops(lambda: layer(x)) == 2 * 4 * 8 * 16
    q = torch.randn(1, 2, 5, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert timing.flops(lambda: attention(q, q, q)) == 2 * (2 * 2 * 5 * 5 * 8)


def test_teacher_is_the_folders_encoder_with_the_students_decoder(tmp_path):
    generator, other = made_generator(), made_generator()
    for parameter in other.model.student.encoder.parameters():
        parameter.data.mul_(1.5)
    save_file(
        {f"encoder.{k}": v.clone() for k, v in other.model.student.encoder.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    teacher = timing.with_teacher(generator, tmp_path).model.student
    for name, value in other.model.student.encoder.state_dict().items():
        assert torch.equal(teacher.encoder.state_dict()[name], value), name
    assert torch.equal(teacher.decoder.head.weight, generator.model.student.decoder.head.weight)
    with pytest.raises(ModelError, match="dvc repro train"):
        timing.with_teacher(generator, tmp_path / "nowhere")
