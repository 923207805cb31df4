"""The student beside its peers, a plain DiT and MaskDiT: seconds of a training step and of a sampling call.

    python benchmarks/bench_peers.py [--tokens 64 256 1024] [--batch 8 64 256] [--repeats 5] [--device cpu]

`benchmarks/peers.py` says what the peers are and what they share with the student. A cell is one task (training step
or sampling call), one number of tokens (patches of the square; 60 / 216 / 812 of 64 / 256 / 1,024 lie on the wafer and
are tokens) and one batch. In a cell the contenders take turns, `--repeats` rounds after one that does not count;
figures are medians with quartiles, and a ratio is that of the two times within a round. Training: ours with all that
it does (masked student, EMA teacher, discriminator with its own optimiser, average of the weights), the peers with
loss, AdamW and average; `ours_alone` is the masked student by itself. Sampling: `--steps` evaluations for everybody;
`ours` masked as it is served, `ours_full` not.

Cells run from the cheapest to the dearest. One is left out, and listed with the reason, if its seconds, predicted from
its floating-point operations and the rate of the last cell of its task, exceed what is left of `--budget-s`, or if its
memory, predicted from what autograd keeps of one wafer, exceeds `--memory-gib`. The cheapest cell of a task has no
rate to be predicted from and always runs. Prints a table on stderr and one JSON object on stdout.
"""

import argparse
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psutil
import torch
from common import (
    DIM,
    SIGMA_DATA,
    SIGMA_MAX,
    SIGMA_MIN,
    Precision,
    Runs,
    add_torch_options,
    clock_of,
    made_condition,
    made_data,
    made_model,
    precision_of,
    sampling_runs,
    training_params,
    training_run,
    usable_pixels,
)
from peers import MASK_RATIO, DiT, MaskDiT, PeerBlock, PeerTrainer, sample_peer
from ratios import Ratio, print_result
from torch import Tensor, nn

from ikddit.console import configure_logging, log
from ikddit.diffusion.edm import Preconditioning
from ikddit.diffusion.plan import SamplingPlan
from ikddit.evaluation.timing import flops, interleaved
from ikddit.networks.blocks import Block
from ikddit.networks.discriminator import Discriminator
from ikddit.networks.outline import Outline
from ikddit.networks.sizes import SIZES

PATCH = {64: 8, 256: 4, 1024: 2}
"""Patch size that makes so many patches of a 64x64 map."""
PEERS: dict[str, type[DiT | MaskDiT]] = {"dit": DiT, "maskdit": MaskDiT}
OURS = {"train": ("ours", "ours_alone"), "sample": ("ours", "ours_full")}
"""The student in two ways each; the first is what the pipeline does."""
NOTES = {"ours_alone": "ours without teacher and discriminator", "ours_full": "ours unmasked"}
MEMORY_MARGIN = 1.5
"""Times what autograd keeps: workspaces of the kernels, gradients in flight."""
FREE_SHARE = 0.7
"""Share of the free memory that a cell may need."""
Task = Literal["train", "sample"]


@dataclass(frozen=True)
class Settings:
    """What is the same for all cells."""

    letter: str
    steps: int
    precision: Precision
    device: torch.device
    outline: Outline
    """Of the peers; the student's is `wafer`."""


@dataclass(frozen=True)
class Contest:
    """Contenders of one task, built for one number of tokens and one batch."""

    runs: Runs
    parts: dict[str, dict[str, nn.Module]]
    """The networks behind each run, by name."""


@dataclass(frozen=True)
class Cost:
    """What one contender's run costs, as counted at a small batch."""

    flops_per_wafer: float
    """Of matrix products and convolutions, a multiply-add counted as two; forward, and backward if it trains."""
    passes: dict[str, dict[int, int]]
    """Part -> tokens -> how many blocks (a discriminator counts as one) were run on that many tokens."""
    kept_bytes: float
    """By autograd, whatever the batch."""
    kept_bytes_per_wafer: float


@dataclass(frozen=True)
class Cell:
    """One task at one number of tokens and one batch, and what it is predicted to cost."""

    task: Task
    tokens: int
    batch: int
    costs: dict[str, Cost] = field(repr=False)

    @property
    def flops(self) -> float:
        """Of one round: all contenders."""
        return self.batch * sum(c.flops_per_wafer for c in self.costs.values())

    @property
    def bytes(self) -> float:
        """Of the contender that keeps the most; they take turns, so that one at a time keeps anything."""
        return MEMORY_MARGIN * max(
            c.kept_bytes + self.batch * c.kept_bytes_per_wafer for c in self.costs.values()
        )

    @property
    def name(self) -> str:
        return f"{self.task}, {self.tokens} tokens, batch {self.batch}"


def model_name(tokens: int, letter: str) -> str:
    """The student's size with that many patches.

    >>> model_name(1024, "T")
    'T/2'
    """
    return f"{letter}/{PATCH[tokens]}"


def training_contest(tokens: int, batch: int, settings: Settings) -> Contest:
    """One training step each; all read the same wafers, noise levels and noise."""
    name, device = model_name(tokens, settings.letter), settings.device
    data = made_data(4 * batch)
    runs: Runs = {}
    parts: dict[str, dict[str, nn.Module]] = {}
    for ours, discriminator in (("ours", "implicit"), ("ours_alone", "none")):
        params = training_params(batch, settings.precision, device.type, MASK_RATIO, discriminator)
        trainer, runs[ours] = training_run(made_model(name, settings.precision), params, data)
        parts[ours] = {"student": trainer.student}
        if trainer.discriminator is not None:
            parts[ours] |= {"teacher": trainer.teacher, "discriminator": trainer.discriminator}
    masks = {MaskDiT: MASK_RATIO, DiT: 0.0}
    for peer, kind in PEERS.items():
        torch.manual_seed(0)
        params = training_params(batch, settings.precision, device.type, masks[kind])
        theirs = PeerTrainer(kind(name, DIM, settings.outline), params, SIGMA_DATA, device)
        runs[peer] = lambda theirs=theirs: theirs.train_step(data)  # type: ignore[misc]
        parts[peer] = {"network": theirs.network}
    return Contest(runs, parts)


def sampling_contest(tokens: int, batch: int, settings: Settings) -> Contest:
    """One sample each of `batch` wafers, the same number of evaluations for everybody."""
    name, device = model_name(tokens, settings.letter), settings.device
    model = made_model(name, settings.precision).eval().to(device)
    condition = made_condition(batch)
    plans = {"ours": SamplingPlan(settings.steps, "masked"), "ours_full": SamplingPlan(settings.steps)}
    runs = sampling_runs(model, batch, plans, condition)
    parts: dict[str, dict[str, nn.Module]] = {ours: {"student": model.student} for ours in plans}
    noise = torch.randn(batch, 2, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    usable, pooled = usable_pixels().to(device), condition.pooled.to(device)
    precondition = Preconditioning(SIGMA_DATA).to(device)
    for peer, kind in PEERS.items():
        torch.manual_seed(0)
        network = kind(name, DIM, settings.outline).eval().to(device)

        def sample(network: DiT | MaskDiT = network) -> Tensor:
            return sample_peer(
                network,
                precondition,
                noise,
                usable,
                pooled,
                settings.steps,
                (SIGMA_MIN, SIGMA_MAX),
                settings.precision == "bf16",
            )

        runs[peer] = sample
        parts[peer] = {"network": network}
    return Contest(runs, parts)


CONTESTS: dict[Task, Callable[[int, int, Settings], Contest]] = {
    "train": training_contest,
    "sample": sampling_contest,
}


def count_passes(run: Callable[[], object], parts: dict[str, nn.Module]) -> dict[str, dict[int, int]]:
    """How many blocks of each part are run on how many tokens, by watching one run."""
    found: dict[str, Counter[int]] = {name: Counter() for name in parts}
    handles = []
    for name, part in parts.items():

        def count(module: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            found[name][out.shape[1]] += 1

        for module in part.modules():
            if isinstance(module, Block | PeerBlock | Discriminator):
                handles.append(module.register_forward_hook(count))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: dict(sorted(counts.items(), reverse=True)) for name, counts in found.items() if counts}


def kept_bytes(run: Callable[[], object]) -> int:
    """Bytes that autograd keeps between forward and backward, weights apart; 0 where nothing is trained."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(sizes.values())


@functools.cache
def costs_of(
    task: Task, tokens: int, settings: Settings
) -> tuple[dict[str, Cost], dict[str, dict[str, int]]]:
    """Cost of each contender, counted at one and two wafers, and the parameters of its parts.

    Sampling keeps nothing for a backward pass; what it needs at once is taken to be one block's share of what a
    training step keeps, times two.
    """
    contests = {batch: CONTESTS[task](tokens, batch, settings) for batch in (1, 2)}
    if task == "sample":
        depth = sum(
            getattr(SIZES[model_name(tokens, settings.letter)], n) for n in ("dense", "deep", "decoder")
        )
        trained, _ = costs_of("train", tokens, settings)
    costs, parameters = {}, {}
    for name, run in contests[1].runs.items():
        parts = contests[1].parts[name]
        if task == "train":
            one, two = (kept_bytes(contests[batch].runs[name]) for batch in (1, 2))
            fixed, each = max(0.0, 2 * one - two), float(max(0, two - one))
        else:
            like = trained[name.removesuffix("_full")]
            fixed, each = like.kept_bytes, 2 * like.kept_bytes_per_wafer / depth
        costs[name] = Cost(float(flops(run)), count_passes(run, parts), fixed, each)
        parameters[name] = {part: sum(p.numel() for p in m.parameters()) for part, m in parts.items()}
    return costs, parameters


def summary(seconds: dict[str, list[float]], cell: Cell) -> dict[str, Any]:
    """Seconds of every contender and ratios peer / ours, each as median and quartiles."""
    row: dict[str, Any] = {"task": cell.task, "tokens": cell.tokens, "batch": cell.batch}
    row["seconds"] = {name: quartiles(values) for name, values in seconds.items()}
    row["ratios"] = {
        f"{peer}/{ours}": quartiles(list(np.array(seconds[peer]) / np.array(seconds[ours])))
        for peer in PEERS
        for ours in OURS[cell.task]
    }
    row["gflops"] = {name: cell.batch * cost.flops_per_wafer / 1e9 for name, cost in cell.costs.items()}
    return row


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles, to four figures.

    >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
    {'median': 3.0, 'q25': 2.0, 'q75': 4.0}
    """
    low, mid, high = (float(f"{q:.4g}") for q in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": mid, "q25": low, "q75": high}


def run_cells(
    cells: Sequence[Cell],
    settings: Settings,
    repeats: int,
    budget_s: float,
    memory_bytes: float,
    clock: Callable[[], float],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the cells that fit, cheapest first, and those left out with the reason.

    Args:
        cells: in any order.
        settings: of all cells.
        repeats: rounds that count; one more goes before them.
        budget_s: wall seconds for all cells.
        memory_bytes: the most that one cell may need, by prediction.
        clock: what a run is timed with.
    """
    start = time.monotonic()
    rate: dict[Task, float] = {}
    rows, left_out = [], []
    for cell in sorted(cells, key=lambda c: c.flops):
        left = budget_s - (time.monotonic() - start)
        predicted = (1 + repeats) * cell.flops / rate[cell.task] if cell.task in rate else None
        facts = {"task": cell.task, "tokens": cell.tokens, "batch": cell.batch, "gib": cell.bytes / 2**30}
        if cell.bytes > memory_bytes:
            limit = memory_bytes / 2**30
            reason = f"memory: {facts['gib']:.1f} GiB predicted, {limit:.1f} GiB allowed"
            left_out.append(facts | {"reason": reason})
            continue
        if predicted is not None and predicted > left:
            reason = f"time: {predicted:.0f} s predicted, {max(0.0, left):.0f} s of the budget left"
            left_out.append(facts | {"reason": reason})
            continue
        about = "" if predicted is None else f", about {predicted:.0f} s"
        log.info("%s%s", cell.name, about)
        began = time.monotonic()
        contest = CONTESTS[cell.task](cell.tokens, cell.batch, settings)
        seconds = interleaved(contest.runs, 1, repeats, cell.name, clock)
        rows.append(summary(seconds, cell))
        rate[cell.task] = (1 + repeats) * cell.flops / (time.monotonic() - began)
    return rows, left_out


def table(rows: Sequence[dict[str, Any]], left_out: Sequence[dict[str, Any]]) -> str:
    """What the JSON says, for people: seconds of ours, and how many times that the peers take."""
    head = f"{'task':<7}{'tokens':>7}{'batch':>6}  {'ours s':>9}"
    lines = [head + "".join(f"  {label:>22}" for label in ("dit/ours", "maskdit/ours"))]
    for row in rows:
        for ours in OURS[row["task"]]:
            line = (
                f"{row['task']:<7}{row['tokens']:>7}{row['batch']:>6}  {row['seconds'][ours]['median']:>9.4g}"
            )
            for peer in PEERS:
                r = row["ratios"][f"{peer}/{ours}"]
                line += f"  {r['median']:>8.3g} ({r['q25']:.3g}-{r['q75']:.3g})".ljust(24)
            lines.append((line + (f"  ({NOTES[ours]})" if ours in NOTES else "")).rstrip())
    lines += [
        f"left out: {cell['task']}, {cell['tokens']} tokens, batch {cell['batch']}: {cell['reason']}"
        for cell in left_out
    ]
    return "\n".join(lines)


def ratios_of(rows: Sequence[dict[str, Any]]) -> list[Ratio]:
    """One ratio for each peer and cell, against what is served."""
    said = {"train": "training step", "sample": "sampling"}
    return [
        Ratio(
            f"{said[row['task']]}, {row['tokens']} tokens, batch {row['batch']}: {kind.__name__} / ours",
            row["ratios"][f"{peer}/ours"]["median"],
        )
        for row in rows
        for peer, kind in PEERS.items()
    ]


def free_bytes(device: torch.device) -> float:
    """Memory that nobody uses now, of the GPU or of the machine."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)


def machine(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", choices=list(PATCH), default=list(PATCH))
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--tasks", nargs="+", choices=list(CONTESTS), default=list(CONTESTS))
    parser.add_argument(
        "--letter", default="T", choices=sorted({n[:-2] for n in SIZES}), help="width, as in T/8"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--steps", type=int, default=10, help="evaluations of a sampling call; of 4 or fewer none is masked"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--outline",
        choices=["wafer", "square"],
        default="wafer",
        help="tokens of the peers: the student's, or all patches of the square as in their papers",
    )
    parser.add_argument("--budget-s", type=float, default=900.0, help="for all cells together")
    parser.add_argument(
        "--memory-gib", type=float, help=f"for one cell; default {FREE_SHARE:.0%} of what is free now"
    )
    add_torch_options(parser)
    args = parser.parse_args(arguments)
    if min(*args.batch, args.repeats) < 1 or args.steps < 1:
        parser.error("--batch, --repeats and --steps must be at least 1")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device {args.device}: no such device here")
    args.precision = precision_of(args)
    return args


def main() -> None:
    configure_logging()
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    settings = Settings(args.letter, args.steps, args.precision, device, args.outline)
    memory = args.memory_gib * 2**30 if args.memory_gib else FREE_SHARE * free_bytes(device)
    cells, networks = [], {}
    for tokens in args.tokens:
        log.info("counting parameters, passes and FLOPs at %d tokens", tokens)
        for task in args.tasks:
            costs, parameters = costs_of(task, tokens, settings)
            networks[f"{task}, {tokens} tokens"] = {
                name: {
                    "parameters": parameters[name],
                    "gflops_per_wafer": float(f"{cost.flops_per_wafer / 1e9:.4g}"),
                    "block_passes_by_tokens": cost.passes,
                }
                for name, cost in costs.items()
            }
            cells += [Cell(task, tokens, batch, costs) for batch in args.batch]
    rows, left_out = run_cells(
        cells, settings, args.repeats, args.budget_s, memory, clock_of(args.clock, device)
    )
    print(table(rows, left_out), file=sys.stderr)
    result = {
        "device": machine(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": {"bf16": "bfloat16 autocast", "fp32": "float32"}[args.precision],
        "clock": args.clock,
        "repeats": args.repeats,
        "steps": args.steps,
        "student": {str(t): model_name(t, args.letter) for t in args.tokens},
        "tokens_of_peers": args.outline,
        "budget_s": args.budget_s,
        "memory_gib": round(memory / 2**30, 2),
        "networks": networks,
        "cells": rows,
        "left_out": left_out,
    }
    print_result(result, ratios_of(rows))


if __name__ == "__main__":
    main()
