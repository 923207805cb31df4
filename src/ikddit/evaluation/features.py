"""What linear models and trees read of a wafer: map coefficients, one-hot ids, log channels, line counts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8

from ikddit.dataset.arrow import PreparedSplit
from ikddit.mpom.schema import ID_FIELDS, MAP_SIZE
from ikddit.overlay.kpi import Maps, Mask

PCA_WAFERS = 4000
"""Wafers from which principal components are computed, evenly spaced in time; more change them little."""
_CHUNK = 512


def id_codes(split: PreparedSplit, field: str) -> Int32[np.ndarray, " n"]:
    """Codes of one id field, 0 where unknown or missing."""
    return split.ids[:, ID_FIELDS.index(field)]


def scanner_chuck(split: PreparedSplit, previous: bool = False) -> Int32[np.ndarray, "n 2"]:
    """Codes of scanner and chuck, of this exposure or of the previous layer's."""
    prefix = "prev_" if previous else ""
    return np.stack([id_codes(split, f"{prefix}{name}") for name in ("scanner_id", "chuck_id")], axis=1)


class MapCodes:
    """Principal components of maps: (n, 2, 64, 64) in nm to (n, k) coefficients in nm and back.

    Invalid pixels are filled with the mean map to find the components. These are orthonormal, so a squared error
    of coefficients is the squared error of the maps over all pixels (nm^2, sum), up to invalid pixels and what the
    components leave out.
    """

    def __init__(self, maps: Maps, valid: Mask, components: int, seed: int) -> None:
        """Fit to training maps, with no more components than wafers or pixels allow."""
        from sklearn.decomposition import PCA

        rows = np.unique(np.linspace(0, len(maps) - 1, PCA_WAFERS).astype(np.int64))
        total = np.zeros(maps.shape[1:], np.float64)
        for start in range(0, len(maps), _CHUNK):
            part = slice(start, start + _CHUNK)
            total += np.where(valid[part, None] != 0, maps[part], 0).sum(axis=0, dtype=np.float64)
        count = np.count_nonzero(valid, axis=0)
        self.mean_map = (total / np.maximum(count, 1)).astype(np.float32)
        self._pixels = np.flatnonzero(np.broadcast_to(count > 0, maps.shape[1:]).reshape(-1))
        residual = self._residual(maps[rows], valid[rows])
        components = min(components, *residual.shape)
        pca = PCA(components, svd_solver="randomized", random_state=seed, copy=False).fit(residual)
        # The mean map is taken off already; PCA's own mean of the sample is put back by not using it.
        self._components = np.asarray(pca.components_, np.float32)

    def _residual(self, maps: np.ndarray, valid: np.ndarray) -> np.ndarray:
        residual = np.where(valid[:, None] != 0, maps - self.mean_map, np.float32(0))
        return np.asarray(residual.reshape(len(maps), -1)[:, self._pixels], np.float32)

    def encode(self, maps: Maps, valid: Mask) -> Float32[np.ndarray, "n k"]:
        """Coefficients of maps, from their valid pixels (`component_scores`)."""
        import torch

        from ikddit.dataset.components import component_scores

        basis, parts = torch.from_numpy(self._components), []
        for start in range(0, max(len(maps), 1), _CHUNK):
            part, mask = maps[start : start + _CHUNK], valid[start : start + _CHUNK]
            known = np.broadcast_to(mask[:, None] != 0, part.shape).reshape(len(part), -1)[:, self._pixels]
            rows = torch.from_numpy(self._residual(part, mask))
            parts.append(component_scores(rows, torch.from_numpy(known.astype(np.float32)), basis).numpy())
        return np.concatenate(parts)

    def decode(self, codes: Shaped[np.ndarray, "n k"]) -> Float32[np.ndarray, "n 2 64 64"]:
        """Maps of coefficients; the mean map (0 without data) where no training wafer was valid."""
        maps = np.tile(self.mean_map.reshape(-1), (len(codes), 1))
        maps[:, self._pixels] += np.asarray(codes, np.float32) @ self._components
        return maps.reshape(-1, 2, MAP_SIZE, MAP_SIZE)


class IdFeatures:
    """One-hot ids, and of scanner x chuck together; an id unknown to train is all zeros."""

    def __init__(self, train: PreparedSplit) -> None:
        """Learn the ids of train."""
        from sklearn.preprocessing import OneHotEncoder

        self._encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
        self._encoder.fit(self._columns(train))

    @staticmethod
    def _columns(split: PreparedSplit) -> np.ndarray:
        pairs = [scanner_chuck(split), scanner_chuck(split, previous=True)]
        # A pair of codes as one number: codes are far below 2^20.
        joined = [np.where((p > 0).all(axis=1), p[:, 0].astype(np.int64) << 20 | p[:, 1], 0) for p in pairs]
        return np.column_stack([split.ids.astype(np.int64), *joined])

    def __call__(self, split: PreparedSplit) -> Float32[np.ndarray, "n f"]:
        """Features of a split."""
        return np.asarray(self._encoder.transform(self._columns(split)), np.float32)


@dataclass(frozen=True)
class LogFeatures:
    """Log channels, which of them are missing, and how often each kind of log line occurs (bag of lines).

    The numbers inside the lines are not used: what a scanner reports as a channel is in the channels.
    """

    templates: int
    """Line templates are counted up to this code."""

    @classmethod
    def of(cls, train: PreparedSplit) -> "LogFeatures":
        """Learn the number of templates of train."""
        return cls(int(train.line_templates.max(initial=0)))

    def __call__(self, split: PreparedSplit) -> Float32[np.ndarray, "n f"]:
        """Features of a split."""
        return np.hstack([split.log_features, split.log_missing, self.counts(split.line_templates)])

    def for_trees(self, split: PreparedSplit) -> Float32[np.ndarray, "n g"]:
        """Channels with NaN where missing (trees read that as it is), then line counts; no missing flags."""
        channels = np.where(split.log_missing != 0, np.float32(np.nan), split.log_features)
        return np.hstack([channels, self.counts(split.line_templates)])

    def counts(self, line_templates: Int32[np.ndarray, "n l"]) -> Float32[np.ndarray, "n t"]:
        """Lines of each template (unknown ones included, padding not) per wafer."""
        n = len(line_templates)
        width = self.templates + 1
        codes = np.minimum(line_templates, self.templates) + np.arange(n)[:, None] * width
        counted = np.bincount(codes.reshape(-1), minlength=n * width).reshape(n, width)
        return counted[:, 1:].astype(np.float32)


def valid_share(valid: UInt8[np.ndarray, "n 64 64"]) -> float:
    """Share of valid pixels; 0 says that a split has no such maps at all."""
    return float(np.count_nonzero(valid) / max(valid.size, 1))
