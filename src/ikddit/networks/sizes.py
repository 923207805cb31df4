"""The table of model sizes, named as DiT names them: width letter / patch size in pixels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Width and depths of one student; maps are 64x64, so there are (64/patch)^2 tokens."""

    width: int
    heads: int
    dense: int
    """Blocks of the dense shallow path, on all tokens."""
    deep: int
    """Blocks of the deep encoder, on visible tokens only."""
    decoder: int
    """Blocks of the light decoder, on all tokens."""
    patch: int

    @property
    def tokens(self) -> int:
        """Patch tokens of a 64x64 map."""
        return (64 // self.patch) ** 2


SIZES: dict[str, Size] = {
    "T/8": Size(width=128, heads=4, dense=1, deep=4, decoder=1, patch=8),
    "S/8": Size(width=384, heads=6, dense=2, deep=8, decoder=2, patch=8),
    "S/4": Size(width=384, heads=6, dense=2, deep=8, decoder=2, patch=4),
    "B/4": Size(width=768, heads=12, dense=2, deep=8, decoder=2, patch=4),
    "L/4": Size(width=1024, heads=16, dense=2, deep=20, decoder=2, patch=4),
    "XL/2": Size(width=1152, heads=16, dense=2, deep=24, decoder=2, patch=2),
}
