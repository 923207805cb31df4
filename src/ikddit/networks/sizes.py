"""The table of model sizes, named as DiT names them: width letter / patch size in pixels.

Widths and heads are DiT's (2212.09748, table 1). Depths are about 0.6 of DiT's: the paper's S (19.4 M parameters)
and XL (417.9 M), known second hand, are 0.59 and 0.62 of DiT-S/2 and DiT-XL/2, and so are their FLOPs. Whole
blocks cannot meet 19.4 M at width 384: 6 blocks give 18.5 M, 7 give 21.1 M or more. `ikddit sizes` measures all.
"""

from dataclasses import dataclass, replace
from typing import get_args

from ikddit.params import ModelName


@dataclass(frozen=True)
class Size:
    """Width and depths of one student; maps are 64x64, so the square grid has (64/patch)^2 patches."""

    width: int
    heads: int
    dense: int
    """Blocks of the dense shallow path, on all tokens."""
    deep: int
    """Blocks of the deep encoder, on visible tokens only."""
    decoder: int
    """Blocks of the light decoder, on all tokens."""
    patch: int = 1

    @property
    def side(self) -> int:
        """Patches along one side of a 64x64 map."""
        return 64 // self.patch


WIDTHS: dict[str, Size] = {
    "T": Size(width=128, heads=4, dense=1, deep=4, decoder=1),
    "S": Size(width=384, heads=6, dense=1, deep=4, decoder=1),
    "B": Size(width=768, heads=12, dense=1, deep=4, decoder=1),
    "L": Size(width=1024, heads=16, dense=2, deep=10, decoder=2),
    "XL": Size(width=1152, heads=16, dense=2, deep=12, decoder=2),
}


def _sized(name: str) -> Size:
    letter, patch = name.split("/")
    return replace(WIDTHS[letter], patch=int(patch))


SIZES: dict[str, Size] = {name: _sized(name) for name in get_args(ModelName)}
"""One entry for each name that params.yaml accepts as `model`."""
