"""torchvision beside any torch build."""

import subprocess
import sys


def test_pytorch_fid_imports_in_a_fresh_process() -> None:
    code = (
        "from ikddit.vision import make_torchvision_importable as make\n"
        "first = make(); assert make() == first\n"
        "import pytorch_fid.inception, torchvision; print('imported')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr
