"""What every benchmark prints: one JSON object with its `ratios`, of which `run.py` makes one table.

Imports nothing heavy: some benchmarks measure processes that import them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Ratio:
    """One figure of a benchmark that can be read alone; `python benchmarks/run.py` makes its table of them."""

    what: str
    """Of what, as numerator / denominator: of times, above 1 says that the second is the faster."""
    value: float


def print_result(result: Mapping[str, object], ratios: Sequence[Ratio]) -> None:
    """Print the one JSON object that a benchmark says on stdout."""
    print(json.dumps({**result, "ratios": [asdict(r) for r in ratios]}, indent=2))
