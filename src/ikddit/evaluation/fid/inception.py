"""Features of the FID Inception network: every depth, spatial features and logits in one pass."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ikddit.device import pick_device, pick_precision
from ikddit.errors import ModelError
from ikddit.evaluation.fid.rendering import render
from ikddit.evaluation.fid.weights import Weights
from ikddit.params import FidParams
from ikddit.vision import make_torchvision_importable

SPATIAL, LOGITS = "inception_spatial", "inception_logits"
SPATIAL_CHANNELS = 7
"""Of the first branch of Mixed_6d, 17 x 17 each: 2,023 numbers a map (Nash et al. 2021; ADM's evaluator)."""
LAYERS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "Mixed_5b", "Mixed_5c",
    "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "fc",
)  # fmt: skip
"""In the order in which a map passes them."""
LAST_LAYERS = {
    "inception_64": "Conv2d_2b_3x3",
    "inception_192": "Conv2d_4a_3x3",
    SPATIAL: "Mixed_6d",
    "inception_768": "Mixed_6e",
    "inception_2048": "Mixed_7c",
    LOGITS: "fc",
}
"""Feature space and the last layer it needs."""
WIDTHS = {64: 0, 192: 1, 768: 2, 2048: 3}
"""Depth and the number of its output block in pytorch-fid."""


def space_of(dims: int) -> str:
    """Name of the feature space of a depth.

    >>> space_of(768)
    'inception_768'
    """
    return f"inception_{dims}"


def wanted_spaces(dims: Sequence[int]) -> list[str]:
    """The spaces that these depths bring: spatial features from 768 on, logits with 2048.

    >>> wanted_spaces([192, 64, 768])
    ['inception_64', 'inception_192', 'inception_768', 'inception_spatial']
    """
    spaces = [space_of(depth) for depth in sorted(set(dims))]
    return spaces + [SPATIAL] * (max(dims) >= 768) + [LOGITS] * (2048 in dims)


def missing_spaces(state: dict[str, Tensor], dims: Sequence[int]) -> dict[str, str]:
    """Wanted spaces that these weights cannot give, each with the reason.

    A space is missing when a layer on the way to it holds numbers that are not finite: its figures would be NaN.
    """
    bad = next((i for i, layer in enumerate(LAYERS) if not _finite(state, layer)), len(LAYERS))
    return {
        space: f"weights are not finite (NaN) in {LAYERS[bad]}"
        for space in wanted_spaces(dims)
        if LAYERS.index(LAST_LAYERS[space]) >= bad
    }


def _finite(state: dict[str, Tensor], layer: str) -> bool:
    own = (value for name, value in state.items() if name.startswith(f"{layer}."))
    return all(bool(torch.isfinite(value).all()) for value in own)


class InceptionFeatures:
    """Renders maps and takes the features of all wanted spaces in one forward pass.

    The network, its resize to 299 x 299 and its scaling are pytorch-fid's own; the depths below 2048 are
    averaged over the image as its command line does.

    Args:
        weights: what the network is filled with.
        dims: depths out of 64, 192, 768, 2048.
        scale_nm: of the rendering.
        batch: maps at a time.
        device: where it runs.
        bf16: autocast to bfloat16; about twice as fast on a CPU, but no longer pytorch-fid's figures to 1e-4.

    Raises:
        ModelError: the weights do not fit the network.
    """

    label = "Inception features"

    def __init__(
        self,
        weights: Weights,
        dims: Sequence[int],
        scale_nm: float,
        batch: int = 50,
        device: torch.device | str = "cpu",
        bf16: bool = False,
    ) -> None:
        self.missing = missing_spaces(weights.state, dims)
        self.spaces = [space for space in wanted_spaces(dims) if space not in self.missing]
        self.scale_nm, self.batch, self.device, self.bf16 = scale_nm, batch, torch.device(device), bf16
        self._depths = [depth for depth in WIDTHS if space_of(depth) in self.spaces]
        needed = self._depths + [768] * (SPATIAL in self.spaces)
        self._network = _build(weights, sorted({WIDTHS[depth] for depth in needed})) if needed else None
        self._spatial: list[Tensor] = []
        if SPATIAL in self.spaces and self._network is not None:
            branch: nn.Module = self._network.blocks[2][6].branch1x1
            branch.register_forward_hook(lambda _m, _i, out: self._spatial.append(out[:, :SPATIAL_CHANNELS]))
        if self._network is not None:
            self._network.to(self.device, memory_format=torch.channels_last)
        self._classes = weights.state["fc.weight"].to(self.device) if LOGITS in self.spaces else None

    def __call__(
        self, maps_nm: Float32[np.ndarray, "b 2 64 64"], valid: UInt8[np.ndarray, "b 64 64"]
    ) -> dict[str, Float32[np.ndarray, "b d"]]:
        """Features of masked maps in nm."""
        return self.of_images(render(maps_nm, valid, self.scale_nm)) if self.spaces else {}

    @torch.inference_mode()
    def of_images(self, rgb: UInt8[np.ndarray, "b h w 3"]) -> dict[str, Float32[np.ndarray, "b d"]]:
        """Features of RGB images."""
        if self._network is None:
            return {}
        # Channels come last in memory already: the view costs nothing and oneDNN's faster kernels take it so.
        images = torch.from_numpy(rgb).to(self.device).permute(0, 3, 1, 2).float() / 255
        self._spatial.clear()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            outputs = self._network(images)
        found = dict(zip(self._network.output_blocks, outputs, strict=True))
        features = {space_of(d): found[WIDTHS[d]].float().mean((2, 3)) for d in self._depths}
        if SPATIAL in self.spaces:
            features[SPATIAL] = self._spatial.pop().float().flatten(1)
        if self._classes is not None:
            # Without the bias, as in the Inception score of ADM's evaluator.
            features[LOGITS] = features[space_of(2048)] @ self._classes.T
        return {space: features[space].cpu().numpy() for space in self.spaces}


def make_inception(params: FidParams, weights: Weights, scale_nm: float) -> InceptionFeatures:
    """The network as section `fid` wants it.

    Raises:
        ModelError: the weights do not fit the network, or a GPU is missing (DeviceError).
    """
    device = pick_device(params.device, "fid.device")
    bf16 = pick_precision(params.dtype, device) == "bf16"
    return InceptionFeatures(weights, params.dims, scale_nm, params.batch, device, bf16)


def _build(weights: Weights, blocks: list[int]) -> Any:
    """pytorch-fid's network with these weights, for inference."""
    make_torchvision_importable()
    from pytorch_fid.inception import InceptionV3

    try:
        with _handing_over(weights.state):
            return _fused(InceptionV3(blocks).eval())
    except RuntimeError as error:
        raise ModelError(f"{weights.source}: not weights of the FID Inception network: {error}") from error


def _fused(network: nn.Module) -> nn.Module:
    """The same network with each normalisation folded into the convolution before it: a pass less over every image."""
    parts: Iterable[Any] = network.modules()
    for part in parts:
        if isinstance(getattr(part, "bn", None), nn.BatchNorm2d):
            part.conv, part.bn = fuse_conv_bn_eval(part.conv, part.bn), nn.Identity()
    return network


@contextmanager
def _handing_over(state: dict[str, Tensor]) -> Iterator[None]:
    """pytorch-fid unpickles whatever it downloads: hand it tensors that were read with weights_only instead."""
    from pytorch_fid import inception

    original = inception.load_state_dict_from_url
    inception.load_state_dict_from_url = lambda *_args, **_settings: state
    try:
        yield
    finally:
        inception.load_state_dict_from_url = original
