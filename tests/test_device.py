"""`auto`, `cpu` and `cuda`, and what is said where there is no GPU."""

import pytest
import torch

from ikddit.device import pick_device
from ikddit.errors import DeviceError


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
