"""What a recorded training step saves on a GPU: the step as it is, recorded (train.cuda_graph), and compiled too.

    python benchmarks/bench_recorded.py [--models T/8 S/8 S/4] [--batch 64 256] [--repeats 10] [--no-compile]

The step of the `train` stage (batch, student, teacher, discriminator, optimisers, averages) on synthetic wafers that
lie on the GPU. The ways take turns, `--repeats` rounds of `--steps` steps after the recording; a ratio is the median
over rounds of the two times of one round. Prints a table on stderr and one JSON object on stdout.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import Runs, clock_of, made_data, made_model, ratio, training_params
from ratios import Ratio, print_result

from ikddit.console import configure_logging
from ikddit.evaluation.timing import interleaved, quantiles
from ikddit.params import Params
from ikddit.training.batch import TrainingData
from ikddit.training.loop import Trainer
from ikddit.training.recorded import PLAIN_STEPS

WAYS = {"plain": (False, False), "recorded": (True, False), "compiled": (False, True), "both": (True, True)}
"""Name -> recorded, compiled."""


def with_ways(params: Params, recorded: bool, compiled: bool) -> Params:
    """The same settings, recorded and compiled or not."""
    train = params.train.model_copy(update={"cuda_graph": recorded, "compile": compiled})
    return params.model_copy(update={"train": train})


def steps_of(trainer: Trainer, data: TrainingData, count: int) -> Callable[[], None]:
    """So many steps in a row."""

    def run() -> None:
        for _ in range(count):
            trainer.train_step(data)

    return run


def measure(model: str, batch: int, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Milliseconds of a step in each way, and how much of the GPU's memory the last needed."""
    data = made_data(2 * batch)
    data = replace(data, whole=torch.ones(len(data.residual), dtype=torch.bool)).on(device)
    params = training_params(batch, "bf16", device.type)
    ways = {name: way for name, way in WAYS.items() if not (args.no_compile and way[1])}
    runs: Runs = {}
    torch.cuda.reset_peak_memory_stats(device)
    for name, way in ways.items():
        trainer = Trainer(made_model(model, "bf16"), with_ways(params, *way), device)
        for _ in range(PLAIN_STEPS + 1):
            trainer.train_step(data)
        runs[name] = steps_of(trainer, data, args.steps)
    seconds = interleaved(runs, 1, args.repeats, f"{model}, batch {batch}", clock_of("wall", device))
    row: dict[str, Any] = {"model": model, "batch": batch}
    for name, values in seconds.items():
        row |= quantiles([1e3 * value / args.steps for value in values], f"{name}_ms")
        row[f"plain_over_{name}"] = ratio(seconds["plain"], values)
    row["peak_memory_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return row


def main() -> None:
    configure_logging()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["T/8", "S/8", "S/4"])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-compile", action="store_true", help="leave out the ways that need a compiler")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU: there is nothing to record")
    device = torch.device("cuda")
    rows = [measure(model, batch, args, device) for model in args.models for batch in args.batch]
    for row in rows:
        ways = ", ".join(f"{name} {row[f'{name}_ms']:.1f}" for name in WAYS if f"{name}_ms" in row)
        print(f"{row['model']} batch {row['batch']}: ms a step: {ways}", file=sys.stderr)
    ratios = [
        Ratio(
            f"training step, {row['model']}, batch {row['batch']}: plain / {name}", row[f"plain_over_{name}"]
        )
        for row in rows
        for name in WAYS
        if name != "plain" and f"plain_over_{name}" in row
    ]
    result = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "steps": args.steps}
    print_result(result | {"repeats": args.repeats, "rows": rows}, ratios)


if __name__ == "__main__":
    main()
