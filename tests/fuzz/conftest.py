"""The raw data of these tests are made by the writer of tests/mpom."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "mpom"))
