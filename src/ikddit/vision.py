"""Make torchvision importable beside a torch build that its compiled operators do not fit.

torchvision from a package index is built for one torch build. Beside another one (a CPU torch, say) its
compiled library does not load, and the import then dies with "operator torchvision::nms does not exist",
taking pytorch-fid with it. Nothing here uses these operators; their schemas alone let the import go on.
"""

import importlib.util
from pathlib import Path

import torch

_kept: list[torch.library.Library] = []
"""The schemas live as long as this object."""


def make_torchvision_importable() -> bool:
    """Call before anything that imports torchvision (pytorch-fid, diffusers' autoencoders).

    Declares the schemas of `nms` and `qnms` only when torchvision's compiled operators cannot be loaded.

    Returns:
        True when the compiled operators work, False when the schemas stand in for them.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    if _kept:
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed; pip install -c constraints.txt torchvision")
    try:
        for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        if hasattr(torch.ops.torchvision, "nms"):
            return True
    except OSError:
        pass  # built for another torch: the schemas below
    schemas = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _kept.append(schemas)
    return False
