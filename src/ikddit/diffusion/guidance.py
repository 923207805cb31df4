"""Guidance of the student by a weaker denoiser: D = D_weak + w (D - D_weak), inside a noise interval."""

import math
from dataclasses import dataclass
from typing import Literal

GuidanceKind = Literal["cfg", "path_drop"]
"""The weak denoiser: `cfg` is the student without its condition (classifier-free, 2207.12598), `path_drop` the
student without its deep encoder (SPRINT, 2510.21986)."""
SIGMA_LOW = 0.4
SIGMA_HIGH = 3.2
"""Guidance interval of EDM2 (2404.07724: 0.19 to 1.61 at sigma_data 0.5), in units of sigma_data."""


@dataclass(frozen=True)
class Guidance:
    """How strongly, against what and at which noise levels a sample is guided.

    Args:
        weight: w, finite and at least 0; 1 is no guidance, bit for bit.
        kind: the weak denoiser.
        sigma_low: guided only above this noise level, in units of sigma_data.
        sigma_high: guided only up to this noise level, in units of sigma_data.

    Raises:
        ValueError: names the argument out of range.
    """

    weight: float
    kind: GuidanceKind = "cfg"
    sigma_low: float = SIGMA_LOW
    sigma_high: float = SIGMA_HIGH

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"guidance {self.weight}: use a finite weight of 0 or more; 1 is unguided")
        if self.kind not in ("cfg", "path_drop"):
            raise ValueError(f"guidance_kind {self.kind!r}: use cfg or path_drop")
        if not 0 <= self.sigma_low < self.sigma_high:
            raise ValueError(
                f"guidance interval ({self.sigma_low}, {self.sigma_high}]: use 0 <= sigma_low < sigma_high"
            )

    def active(self, sigma: float, sigma_data: float) -> bool:
        """Whether the denoiser is guided at noise level `sigma` (same unit as `sigma_data`).

        >>> g = Guidance(2.0)
        >>> [g.active(s, 0.5) for s in (0.1, 0.3, 1.6, 5.0)], Guidance(1.0).active(0.3, 0.5)
        ([False, True, True, False], False)
        """
        relative = sigma / sigma_data
        return self.weight != 1 and self.sigma_low < relative <= self.sigma_high
