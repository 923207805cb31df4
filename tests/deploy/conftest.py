"""deploy/ is read by these tests and started by those in tests/pipeline, with the same helpers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipeline"))
