"""torchvision beside any torch build."""

import subprocess
import sys


def test_pytorch_fid_imports_in_a_fresh_process() -> None:
    code = (
        "from ikddit.vision import make_torchvision_importable as make\n"
        "first = make(); assert make() == first\n"
        "import pytorch_fid.fid_score, pytorch_fid.inception, torch, torchvision.ops\n"
        "assert pytorch_fid.inception.InceptionV3.BLOCK_INDEX_BY_DIM[2048] == 3\n"
        "print(torch.ops.torchvision.nms.default._schema)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold)" in done.stdout, done.stderr
