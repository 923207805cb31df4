"""The benchmarks are scripts, not a package: their folder is where Python finds their modules."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]  # the latter for pipelines
