"""Maps that are known overlay terms."""

import numpy as np
from jaxtyping import Float

from ikddit.overlay.terms import Basis


def term_maps(basis: Basis, terms: Float[np.ndarray, "n 2 t"]) -> Float[np.ndarray, "n 2 64 64"]:
    """Maps of the given terms, nm, on all 64x64 pixels (also where there is no wafer)."""
    return np.einsum("nat,athw->nahw", terms, basis.design)
