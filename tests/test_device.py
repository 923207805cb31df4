"""`auto`, `cpu` and `cuda`, and what is said where there is no GPU."""

from dataclasses import replace

import pytest
import torch

from ikddit.device import fast_bf16, pick_device, pick_precision
from ikddit.errors import DeviceError
from made_generator import made_generator


def test_auto_is_a_gpu_where_torch_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda seen=seen: seen)
        assert pick_device("auto", "train.device", 3).type == kind
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cuda", "train.device", 3) == torch.device("cuda", 3)
    assert pick_device("cpu", "train.device", 3) == torch.device("cpu")


def test_a_missing_gpu_and_an_unknown_name_are_refused_with_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        DeviceError, match=r"evaluate.device: cuda, but torch sees no GPU; set evaluate.device: auto"
    ):
        pick_device("cuda", "evaluate.device")
    with pytest.raises(DeviceError, match=r"--device: 'gpu'; use auto, cpu or cuda"):
        pick_device("gpu", "--device")


def test_auto_precision_is_bf16_only_where_the_hardware_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for can, name in (
        ({"avx2": True}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert pick_precision("auto", "cpu") == name
        assert fast_bf16("cpu") == (name == "bf16")
    assert pick_precision("bf16", "cpu") == "bf16"
    assert pick_precision("fp32", "cuda") == "fp32"


def test_a_model_trained_in_bf16_is_computed_in_fp32_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = made_generator().model
    model.config = replace(model.config, precision="bf16")
    for can, name, dtype in (({}, "fp32", torch.float32), ({"avx512_bf16": True}, "bf16", torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert model.precision == name
        with model.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
