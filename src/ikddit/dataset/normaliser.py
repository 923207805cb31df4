"""Statistics of the train split: log channels, map scale, mean map."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8

from ikddit import atomic
from ikddit.errors import InputError
from ikddit.mpom.schema import MAP_SIZE

CLIP = 10.0
"""z-scores beyond this are clipped: one odd sensor must not dominate a batch."""


@dataclass(frozen=True)
class Normaliser:
    """What train looks like; nothing in it comes from val or test."""

    log_names: list[str]
    log_mean: Float32[np.ndarray, "F"]
    log_std: Float32[np.ndarray, "F"]
    """1 for a channel that is constant or was never received."""
    sigma_nm: float
    """Standard deviation of the valid map pixels, dx and dy together."""
    mean_map: Float32[np.ndarray, "2 64 64"]
    """Mean over the wafers valid at a pixel, nm; 0 where no wafer is."""

    def encode_logs(
        self, features: Float[np.ndarray, "n F"]
    ) -> tuple[Float32[np.ndarray, "n F"], UInt8[np.ndarray, "n F"]]:
        """Standardise log channels.

        Args:
            features: raw values, NaN where not received.

        Returns:
            z-scores clipped to +-10 (0 where missing) and the mask of missing values.
        """
        missing = ~np.isfinite(features)
        z = (np.where(missing, self.log_mean, features) - self.log_mean) / self.log_std
        return np.clip(z, -CLIP, CLIP).astype(np.float32), missing.astype(np.uint8)

    def save(self, path: Path | str) -> None:
        """Write JSON, atomically; float32 survives the round trip exactly."""
        atomic.write_json(
            path,
            {
                "log_names": self.log_names,
                "log_mean": self.log_mean.tolist(),
                "log_std": self.log_std.tolist(),
                "sigma_nm": self.sigma_nm,
                "mean_map": self.mean_map.reshape(-1).tolist(),
            },
        )

    @classmethod
    def load(cls, path: Path | str) -> "Normaliser":
        """Read what `save` wrote.

        Raises:
            InputError: it is missing or no JSON, a key is missing, or the lengths do not agree.
        """
        try:
            data = atomic.read_json(path)
            loaded = cls(
                log_names=[str(name) for name in data["log_names"]],
                log_mean=np.array(data["log_mean"], np.float32),
                log_std=np.array(data["log_std"], np.float32),
                sigma_nm=float(data["sigma_nm"]),
                mean_map=np.array(data["mean_map"], np.float32).reshape(2, MAP_SIZE, MAP_SIZE),
            )
        except (OSError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(
                str(path), "normaliser", f"missing or malformed: {error}", "run `dvc repro prepare`"
            ) from None
        channels = (len(loaded.log_names),)
        if loaded.log_mean.shape != channels or loaded.log_std.shape != channels:
            raise InputError(
                str(path), "log_mean", "another length than log_names", "run `dvc repro prepare`"
            )
        return loaded


class NormaliserFit:
    """Streaming moments in float64 (Chan, Golub & LeVeque 1983), one batch after the other."""

    def __init__(self, log_names: list[str]) -> None:
        """Begin with nothing seen."""
        n = len(log_names)
        self.log_names = log_names
        self._count, self._mean, self._m2 = np.zeros(n), np.zeros(n), np.zeros(n)
        self._pixels, self._sum, self._squares = 0, 0.0, 0.0
        self._map_sum = np.zeros((2, MAP_SIZE, MAP_SIZE))
        self._map_count = np.zeros((MAP_SIZE, MAP_SIZE), np.int64)

    def update(
        self,
        features: Float[np.ndarray, "n F"],
        maps: Float[np.ndarray, "n 2 64 64"],
        valid: UInt8[np.ndarray, "n 64 64"],
    ) -> None:
        """Add a batch; features are NaN where missing, maps (nm) hold 0 where invalid."""
        finite = np.isfinite(features)
        count = finite.sum(0)
        some = np.maximum(count, 1)
        mean = np.where(finite, features, 0.0).sum(0, dtype=np.float64) / some
        m2 = (np.where(finite, features - mean, 0.0) ** 2).sum(0, dtype=np.float64)
        total = self._count + count
        delta = mean - self._mean
        weight = count / np.maximum(total, 1)
        self._mean = self._mean + delta * weight
        self._m2 = self._m2 + m2 + delta**2 * self._count * weight
        self._count = total
        self._pixels += 2 * int(valid.sum())
        self._map_count += valid.sum(0, dtype=np.int64)
        self._map_sum += maps.sum(0, dtype=np.float64)
        self._sum += float(maps.sum(dtype=np.float64))
        self._squares += float(np.square(maps, dtype=np.float64).sum())

    def finish(self) -> Normaliser:
        """Turn the moments into a `Normaliser`."""
        std = np.sqrt(self._m2 / np.maximum(self._count, 1))
        # A constant channel's spread is rounding error: it must not blow up the next value that differs.
        constant = std <= 1e-6 * np.maximum(np.abs(self._mean), 1e-6)
        pixels = max(self._pixels, 1)
        variance = self._squares / pixels - (self._sum / pixels) ** 2
        return Normaliser(
            log_names=self.log_names,
            log_mean=self._mean.astype(np.float32),
            log_std=np.where(constant, 1.0, std).astype(np.float32),
            sigma_nm=float(np.sqrt(variance)) if variance > 0 else 1.0,
            mean_map=(self._map_sum / np.maximum(self._map_count, 1)).astype(np.float32),
        )
