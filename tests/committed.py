"""What the last commit holds: a run of one's own, on another machine or with other settings, is no fault."""

import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


def said_by_git(*arguments: str) -> str:
    """What git prints in this checkout; skips the tests where that is none."""
    done = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True)
    if done.returncode:
        pytest.skip("not a git checkout: there is no committed run to compare with", allow_module_level=True)
    return done.stdout.decode("utf-8")


def committed(path: str) -> str:
    """The text of a committed file."""
    return said_by_git("show", f"HEAD:{path}")
