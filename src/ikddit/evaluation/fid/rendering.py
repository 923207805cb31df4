"""The one rule by which overlay maps become the 8-bit RGB images that Inception sees."""

import numpy as np
from jaxtyping import Float32, UInt8

from ikddit.mpom.encoding import rgb_from_nm

SIGMAS = 6.0
"""Range of the rendering, in sd of the measured maps, where the data set has no PNG scale of its own."""


def render_scale_nm(wanted: float | None, declared: float | None, sigma_nm: float) -> float:
    """Choose the range of the rendering, nm.

    Args:
        wanted: `fid.scale_nm`.
        declared: PNG scale of the data set (dataset.json); absent for mark tables.
        sigma_nm: standard deviation of all measured maps.

    >>> render_scale_nm(None, 16.0, 2.0), render_scale_nm(None, None, 2.0), render_scale_nm(8.0, 16.0, 2.0)
    (16.0, 12.0, 8.0)
    """
    if wanted is not None:
        return wanted
    return declared if declared is not None else SIGMAS * sigma_nm


def render(
    maps_nm: Float32[np.ndarray, "b 2 64 64"], valid: UInt8[np.ndarray, "b 64 64"], scale_nm: float
) -> UInt8[np.ndarray, "b 64 64 3"]:
    """Render maps as the RGB images that Inception sees: the PNG encoding of the MPOM format.

    R is dx, G is dy, -scale_nm..scale_nm to 0..255 (values beyond are clipped); B is 255 on valid marks; the
    corners of the wafer and invalid marks are black. With the data set's own scale a measured map is, pixel for
    pixel, the PNG it came as, and a generated map the PNG it would be sent as.
    """
    return rgb_from_nm(maps_nm, valid, scale_nm)
