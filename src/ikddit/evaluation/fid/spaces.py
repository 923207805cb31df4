"""Feature spaces that need no Inception network, and the walk over the maps that fills any space."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from ikddit.console import progress
from ikddit.embedding.encoders import UnifiedEmbedding
from ikddit.evaluation.fid.maps import MapSet
from ikddit.overlay.terms import Basis, Fitter, intrafield_basis, linear_basis

EMBEDDING, OVERLAY_10, OVERLAY_K = "embedding", "overlay10_nm2", "overlay_k_nm2"
"""The overlay spaces bear the unit of the Frechet distance in them."""


class Extractor(Protocol):
    """Turns masked maps into the features of one or more spaces."""

    label: str
    """In progress lines."""
    spaces: list[str]
    batch: int
    """Maps at a time."""

    def __call__(
        self, maps_nm: Float32[np.ndarray, "b 2 64 64"], valid: UInt8[np.ndarray, "b 64 64"]
    ) -> dict[str, Float32[np.ndarray, "b d"]]:
        """Features of maps that are 0 where invalid, by space."""
        ...


class EmbeddingFeatures:
    """Unit vectors of the project's own contrastive map encoder (128 numbers a map)."""

    label, batch = "embedding features", 128

    def __init__(
        self, embedding: UnifiedEmbedding, sigma_nm: float, device: torch.device | str = "cpu"
    ) -> None:
        self.spaces = [EMBEDDING]
        self._device, self._sigma_nm = torch.device(device), sigma_nm
        self._embedding = embedding.eval().to(self._device)

    @torch.inference_mode()
    def __call__(
        self, maps_nm: Float32[np.ndarray, "b 2 64 64"], valid: UInt8[np.ndarray, "b 64 64"]
    ) -> dict[str, Float32[np.ndarray, "b d"]]:
        """Features of maps that are 0 where invalid."""
        maps = torch.from_numpy(maps_nm).to(self._device) / self._sigma_nm
        mask = torch.from_numpy(valid).to(self._device, torch.float32)[:, None]
        return {EMBEDDING: self._embedding.embed_map(maps, mask).cpu().numpy()}


class OverlayFeatures:
    """Overlay coefficients of the map: what a scanner can correct, as a distribution.

    `overlay10_nm2` holds the 10-parameter linear model, `overlay_k_nm2` the 6-parameter wafer model with the
    intra-field terms k3..k20. Coefficients are in a basis that is orthonormal over the usable marks: each is
    the root mean square in nm that its pattern adds to the map, so that distances are nm^2 and no unit (nm,
    ppm, nm/mm^3) outweighs the others.
    """

    label, batch = "overlay coefficients", 256

    def __init__(self) -> None:
        self._bases: dict[str, Basis] = {
            OVERLAY_10: linear_basis(10),
            OVERLAY_K: linear_basis(6) + intrafield_basis(3, translation=False),
        }
        self.spaces = list(self._bases)

    def __call__(
        self, maps_nm: Float32[np.ndarray, "b 2 64 64"], valid: UInt8[np.ndarray, "b 64 64"]
    ) -> dict[str, Float32[np.ndarray, "b d"]]:
        """Features of maps that are 0 where invalid."""
        return {
            name: Fitter.of(basis, valid).coefficients(maps_nm).reshape(len(maps_nm), -1).astype(np.float32)
            for name, basis in self._bases.items()
        }


def features_of(maps: MapSet, extractors: Sequence[Extractor]) -> dict[str, Float32[np.ndarray, "n d"]]:
    """Features of all maps in all spaces; maps are read, rendered and dropped block by block.

    Memory is that of the features: 2,048 dims of 15,000 maps are 123 MB.

    Args:
        maps: the maps.
        extractors: each walks the maps once.
    """
    out: dict[str, np.ndarray] = {}
    for extractor in extractors:
        if not extractor.spaces:
            continue
        blocks = progress(
            maps.blocks(extractor.batch),
            f"{extractor.label}, {maps.name}",
            total=-(-len(maps) // extractor.batch),
            unit=f"x {extractor.batch} maps",
        )
        for rows, maps_nm, valid in blocks:
            for space, values in extractor(maps_nm, valid).items():
                out.setdefault(space, np.empty((len(maps), values.shape[1]), np.float32))[rows] = values
    return out
