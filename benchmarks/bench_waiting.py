"""What torch's threads cost when other processes use the cores, by how long they wait in a loop (GOMP_SPINCOUNT).

    python benchmarks/bench_waiting.py
    python benchmarks/bench_waiting.py --busy 0 1 2 --spins 300000 1000 300 --rounds 5

A transformer layer of the student's width trains on many wafers and on few, in a process of its own for each count
(libgomp reads it once), beside 0, 1, ... processes that do nothing but turn. Ratios are of libgomp's own count, 300000,
over the others', taken within a round, medians over the rounds.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from ratios import Ratio, print_result

DEFAULT = 300_000
"""libgomp's own, where there are no more threads than cores."""
STEPS = """
import json, sys, time
import torch
from torch import nn
torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, activation="gelu", dropout=0.0)
optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
def steps(wafers, count):
    x = torch.randn(wafers, 66, 128)
    for number in range(count + 2):
        if number == 2:
            start = time.perf_counter()
        optimiser.zero_grad()
        layer(x).square().mean().backward()
        optimiser.step()
    return (time.perf_counter() - start) / count
count = int(sys.argv[1])
print(json.dumps({"256 wafers": steps(256, count), "8 wafers": steps(8, 5 * count)}))
"""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that turn without end."""
    turning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in turning:
            process.kill()
            process.wait()


def seconds(spins: int, count: int) -> dict[str, float]:
    """Seconds a step, by the number of wafers."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"} | {"GOMP_SPINCOUNT": str(spins)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(count)], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="processes beside")
    parser.add_argument("--spins", type=int, nargs="+", default=[1000], help=f"counts beside {DEFAULT}")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    cells, ratios = [], []
    for beside in given.busy:
        with busy(beside):
            rounds = [
                {n: seconds(n, given.steps) for n in (DEFAULT, *given.spins)} for _ in range(given.rounds)
            ]
        for size in rounds[0][DEFAULT]:
            times = {n: [1e3 * r[n][size] for r in rounds] for n in rounds[0]}
            cells.append(
                {"busy": beside, "step": size}
                | {f"ms_{n}": round(median(found), 2) for n, found in times.items()}
                | {f"worst_ms_{n}": round(max(found), 2) for n, found in times.items()}
            )
            print(json.dumps(cells[-1]), file=sys.stderr, flush=True)
            ratios += [
                Ratio(
                    f"step of {size} beside {beside} busy processes: spins {DEFAULT} / {n}",
                    round(median(a / b for a, b in zip(times[DEFAULT], times[n], strict=True)), 2),
                )
                for n in given.spins
            ]
    facts = {"cpus": os.cpu_count(), "steps": given.steps, "rounds": given.rounds, "cells": cells}
    print_result(facts, ratios)


if __name__ == "__main__":
    main()
