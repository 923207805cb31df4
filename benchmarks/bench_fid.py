"""Inception features: ours against pytorch-fid's own `get_activations`, on the same images in one process.

    python benchmarks/bench_fid.py [--weights PATH] [--images 48] [--rounds 3] [--clock wall]

Without --weights the network is untrained and seeded: that changes the features, not the time. Both read PNG files
of rendered noise from a folder one after the other, ours by the project's decoder; the ratio is pytorch-fid's time
over ours, its median over rounds in which both take turns. Aim: 1.0 or better at 768 numbers a map; our pass gives
64, 192 and the spatial features beside them. On a machine that others use, `--clock cpu --threads 1` counts the time
of this process alone. Prints one JSON object.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from ratios import Ratio, print_result

from ikddit.evaluation.fid.inception import InceptionFeatures
from ikddit.evaluation.fid.rendering import render
from ikddit.evaluation.fid.weights import Weights, read_weights
from ikddit.evaluation.timing import interleaved
from ikddit.mpom.encoding import decode_png, encode_png
from ikddit.overlay.grid import wafer_grid
from ikddit.vision import make_torchvision_importable

AIM = 1.0
SCALE_NM = 16.0


def untrained() -> Weights:
    """The network as it is initialised."""
    make_torchvision_importable()
    from pytorch_fid import inception

    torch.manual_seed(0)
    with (
        mock.patch.object(inception, "load_state_dict_from_url"),
        mock.patch.object(inception.torchvision.models.Inception3, "load_state_dict"),
    ):
        return Weights(inception.fid_inception_v3().state_dict(), "untrained", "")


def write_images(folder: Path, count: int) -> list[Path]:
    """Rendered maps of noise, as PNG files."""
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 2, (count, 2, 64, 64)).astype(np.float32)
    valid = np.stack([wafer_grid().usable.astype(np.uint8)] * count)
    files = [folder / f"{i:05d}.png" for i in range(count)]
    for path, image in zip(files, render(maps, valid, SCALE_NM), strict=True):
        path.write_bytes(encode_png(image))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves torch's choice")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    weights = read_weights(args.weights) if args.weights else untrained()
    ours = InceptionFeatures(weights, [64, 192, 768], SCALE_NM, args.batch)
    bf16 = InceptionFeatures(weights, [64, 192, 768], SCALE_NM, args.batch, bf16=True)

    from pytorch_fid import inception
    from pytorch_fid.fid_score import get_activations

    with mock.patch.object(inception, "load_state_dict_from_url", return_value=weights.state):
        theirs = inception.InceptionV3([inception.InceptionV3.BLOCK_INDEX_BY_DIM[768]])
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        files = write_images(Path(name), args.images)

        def take(network: InceptionFeatures, label: str) -> None:
            parts = []
            for start in range(0, len(files), args.batch):
                part = files[start : start + args.batch]
                parts.append(
                    network.of_images(np.stack([decode_png(f.read_bytes(), 64, f.name) for f in part]))
                )
            found[label] = np.concatenate([part["inception_768"] for part in parts])

        def take_theirs() -> None:
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                found["pytorch_fid"] = get_activations(files, theirs, args.batch, 768, "cpu", num_workers=0)

        runs = {
            "pytorch_fid": take_theirs,
            "ours": lambda: take(ours, "ours"),
            "ours_bf16": lambda: take(bf16, "ours_bf16"),
        }
        clock = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
        seconds = interleaved(runs, 1, args.rounds, "features", clock)
    base = np.array(seconds["pytorch_fid"])
    ratio = {
        label: round(float(np.median(base / np.array(seconds[label]))), 3) for label in ("ours", "ours_bf16")
    }
    result = {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "images": args.images,
        "batch": args.batch,
        "rounds": args.rounds,
        "images_per_s": {k: round(args.images / float(np.median(v)), 2) for k, v in seconds.items()},
        "ratio_to_pytorch_fid": ratio,
        "largest_difference": {
            label: float(np.abs(found[label] - found["pytorch_fid"]).max()) for label in ("ours", "ours_bf16")
        },
        "verdict": f"{ratio['ours']}x, aim {AIM}x, {'reached' if ratio['ours'] >= AIM else 'not reached'}",
    }
    ratios = [
        Ratio(f"Inception features: pytorch-fid / {label.replace('_', ', ')}", v)
        for label, v in ratio.items()
    ]
    print_result(result, ratios)


if __name__ == "__main__":
    main()
