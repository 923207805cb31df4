"""Tests of the Dask engine, in a session of their own: the threads of its client stay when they are over."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.pipeline
def test_ingest_on_dask(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(Path(__file__).with_name("test_engines.py")),
        "-p",
        "no:cacheprovider",
    ]
    command += ["-o", "faulthandler_timeout=240", "-o", "faulthandler_exit_on_timeout=true"]
    command += ["--basetemp", str(tmp_path / "session")]
    done = subprocess.run(
        command, env=os.environ | {"IKDDIT_TEST_DASK": "1"}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
