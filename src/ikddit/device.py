"""Where networks run: the one rule by which a setting named `device` becomes a torch device."""

import torch

from ikddit.errors import DeviceError


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
