"""`import ikddit`: light, and torch's threads are told to wait briefly before it is loaded."""

import os
import subprocess
import sys

import pytest

SAID = """
import os, sys
import ikddit
print(os.environ.get("GOMP_SPINCOUNT"), {"torch", "mlflow", "pandas"} & sys.modules.keys() or "light")
"""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "1000 light"),
        ({"GOMP_SPINCOUNT": "5"}, "5 light"),
        ({"OMP_WAIT_POLICY": "active"}, "None light"),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_how(given: dict[str, str], said: str) -> None:
    rest = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", SAID], env=rest | given, capture_output=True, text=True)
    assert done.stdout.strip() == said, done.stderr
