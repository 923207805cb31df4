"""Where networks run and in which precision: the one rule for every setting named `device`, `precision` or `dtype`."""

from typing import Literal

import torch

from ikddit.errors import DeviceError

BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names, of torch.cpu.get_capabilities, of bf16 products in hardware (x86, Arm)."""


def pick_device(name: str, setting: str, index: int | None = None) -> torch.device:
    """`auto` takes a GPU if torch sees one, else the CPU.

    Args:
        name: `auto`, `cpu` or `cuda`.
        setting: where the name stands, for the error: `train.device`, `--device`.
        index: of the GPU, where a machine has several.

    Raises:
        DeviceError: another name, or `cuda` where torch sees no GPU.

    >>> pick_device("cpu", "train.device", 1)
    device(type='cpu')
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"{setting}: {name!r}; use auto, cpu or cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"{setting}: cuda, but torch sees no GPU; set {setting}: auto or cpu")
    return torch.device(name, index) if name == "cuda" and index is not None else torch.device(name)


def fast_bf16(device: torch.device | str) -> bool:
    """Whether this hardware multiplies bf16 matrices itself.

    A CPU that does not (an AMD EPYC with AVX2, say) takes 37 times as long for them as for fp32.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return any(bool(can.get(name)) for name in BF16_CAPABILITIES)


def pick_precision(name: str, device: torch.device | str) -> Literal["fp32", "bf16"]:
    """`auto` takes bf16 where the hardware has it, else fp32; `bf16` is taken as it is, and all else is fp32.

    >>> pick_precision("fp32", "cpu")
    'fp32'
    """
    if name == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    return "bf16" if name == "bf16" else "fp32"
