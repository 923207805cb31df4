"""Training with 1, 2, ... processes under torchrun: steps and wafers a second, and how near to N times one it comes.

    python benchmarks/bench_ddp.py [--model T/8] [--batch 64] [--steps 30] [--processes 1 2 4] [--device auto]

The training loop of the `train` stage (student, teacher, discriminator, optimisers, averages) on synthetic wafers, by
default with 1, 2, 4, ... processes up to the number of GPUs, or of cores where there are none. `train.batch` is the
batch of all processes together, so N processes do the same work: `speedup` is against one process, `efficiency` is
that divided by N. On CPUs every process has the same number of threads whatever N is (--threads), so that cores are
what is added. The gradients travel through NCCL between GPUs, through gloo between CPUs; the loss of the last step is
printed, since it must not depend on N beyond rounding. Prints one JSON object.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import precision_of
from ratios import Ratio, print_result

from ikddit.device import pick_device

CONTEXT = 66
"""Condition tokens of the default profile: 16 of the previous map, 8 of the log channels, 32 log lines, 10 ids."""
DIM = 128
WAFERS = 1024
WARM_UP = 5


def child(args: argparse.Namespace) -> None:
    """One of the processes: train, and let the first one write what it took."""
    from ikddit.diffusion.model import ModelConfig, OverlayModel
    from ikddit.embedding.encoders import ConditionTokens, EmbeddingConfig
    from ikddit.networks.mean import MeanConfig
    from ikddit.params import parse_params
    from ikddit.training.batch import TrainingData
    from ikddit.training.distributed import join_workers
    from ikddit.training.loop import Trainer

    torch.set_num_threads(args.threads)
    ids = (8,) * 10
    config = ModelConfig(
        model=args.model,
        embedding=EmbeddingConfig(DIM, ids, 20, 30, 6),
        mean=MeanConfig("none", ids, 20, 30, 5, 5, 0, (), 4.6875),
        sigma_nm=2.0,
        sigma_data=0.5,
        modes=64,
        sigma_min=0.02,
        sigma_max=40.0,
        mask_ratio=0.5,
        max_lines=32,
        precision=args.precision,
    )
    section = {"steps": args.steps + WARM_UP, "batch": args.batch, "precision": args.precision}
    params = parse_params({"model": args.model, "train": section | {"device": args.device}})
    generator = torch.Generator().manual_seed(0)
    data = TrainingData(
        0.5 * torch.randn(WAFERS, 2, 64, 64, generator=generator).half(),
        torch.ones(WAFERS, 1, 64, 64, dtype=torch.uint8),
        ConditionTokens(
            torch.randn(WAFERS, CONTEXT, DIM, generator=generator).half(),
            torch.zeros(WAFERS, CONTEXT, dtype=torch.bool),
            torch.randn(WAFERS, 3 * DIM, generator=generator).half(),
        ),
    )
    with join_workers(args.device) as workers:
        torch.manual_seed(0)
        device = pick_device(args.device, "--device", workers.local_rank)
        trainer = Trainer(OverlayModel(config), params, device, workers)
        for _ in range(WARM_UP):
            trainer.train_step(data)
        settle(device)
        start = time.perf_counter()
        for _ in range(args.steps):
            values = trainer.train_step(data)
        settle(device)
        seconds = time.perf_counter() - start
        loss = torch.as_tensor(values["loss"], device=device).reshape(1).double()
        loss = workers.mean(loss, workers.share(args.batch))
        if workers.main:
            found = {"seconds": seconds, "loss": float(loss), "device": str(device)}
            Path(args.child).write_text(json.dumps(found))


def settle(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(count: int, args: argparse.Namespace) -> dict[str, Any]:
    """Run `count` processes under torchrun and read what the first one found."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(count), __file__, "--child", str(result)]
        for name in ("model", "batch", "steps", "threads", "precision", "device"):
            command += [f"--{name}", str(getattr(args, name))]
        # Threads are set in the process; torchrun would otherwise warn that it chose one.
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{count} processes failed:\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
    steps = args.steps / found["seconds"]
    row = {"processes": count, "steps_per_s": round(steps, 3), "wafers_per_s": round(steps * args.batch, 1)}
    return {**row, "loss": found["loss"], "device": found["device"]}


def default_counts(device: str) -> list[int]:
    """1, 2, 4, ... and all."""
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    most = gpus or len(os.sched_getaffinity(0))
    return sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="T/8")
    parser.add_argument("--batch", type=int, default=64, help="of all processes together")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--processes", type=int, nargs="+")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="default: what the hardware does best")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--child", metavar="RESULT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.precision = precision_of(args)
    if args.child:
        child(args)
        return
    counts = args.processes or default_counts(args.device)
    rows = [measure(count, args) for count in counts]
    for row in rows:
        row["speedup"] = round(row["steps_per_s"] / rows[0]["steps_per_s"], 3)
        row["efficiency"] = round(row["speedup"] * rows[0]["processes"] / row["processes"], 3)
    result = {"model": args.model, "batch": args.batch, "threads": args.threads, "runs": rows}
    ratios = [
        Ratio(f"steps/s of {row['processes']} processes / of {rows[0]['processes']}", row["speedup"])
        for row in rows[1:]
    ]
    print_result(result, ratios)
    if counts == [1]:
        print("one device or core: nothing to compare with", file=sys.stderr)


if __name__ == "__main__":
    main()
