"""Run the benchmarks of this folder one after the other, then print one table: bench, ratio, what it is of.

    python benchmarks/run.py [--only masking peers] [--list] [--json FILE]

Each runs in a process of its own, so that none warms the caches of the next, with its default settings but for
`bench_scale.py`, which would take 100,000 wafers and 12 GB of disk, `bench_ddpm.py`, which takes both cores, and
`bench_peers.py`, which leaves out the dearest cells. One that lacks something is left out and says what; one that fails
is named and makes the exit code 1, after the others have run.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikddit.registry.store import locate_store

HERE = Path(__file__).parent
ROOT = HERE.parent


def student_missing() -> str | None:
    """Why there is no trained student, or None."""
    return None if (ROOT / "models/student").is_dir() else "no models/student; run `dvc repro train`"


def store_missing() -> str | None:
    """Why there is no model to serve, or None; whether the store has a champion is for the server to say."""
    database = locate_store(cwd=ROOT).database
    if database is None or database.exists():
        return None
    return "no registered model; run `make repro`, which registers one"


def gpu_missing() -> str | None:
    """Why there is no GPU, or None."""
    import torch

    return None if torch.cuda.is_available() else "torch sees no GPU"


def nothing_missing() -> str | None:
    return None


@dataclass(frozen=True)
class Bench:
    """One script, and what to expect of it."""

    name: str
    """bench_<name>.py."""
    minutes: float
    """Rough, on two cores with nothing else on them."""
    missing: Callable[[], str | None] = nothing_missing
    """Why it cannot run here, or None."""
    arguments: tuple[str, ...] = ()
    """Other than its defaults."""


BENCHES = (
    Bench("simulator", 4),
    Bench("ingest", 6),
    Bench("outline", 2),
    Bench("masking", 8),
    Bench("peers", 9, arguments=("--repeats", "3", "--budget-s", "450")),
    Bench("recorded", 3, gpu_missing),
    Bench("samplers", 0.5, student_missing),
    Bench("ddpm", 7, student_missing, ("--threads", "2")),
    Bench("fid", 4),
    Bench("serving", 4, store_missing),
    Bench("scale", 2, arguments=("--wafers", "8000")),
    Bench("ddp", 2),
    Bench("waiting", 3),
)


@dataclass(frozen=True)
class Outcome:
    """What became of one bench."""

    name: str
    seconds: float
    ratios: list[dict[str, Any]]
    """`what` and `value` of each (`ratios.Ratio`)."""
    result: dict[str, Any]
    """Everything it printed."""
    reason: str = ""
    """Why there are no ratios."""
    failed: bool = False


def run_bench(bench: Bench, folder: Path = HERE) -> Outcome:
    """Run one script; its progress goes to this stderr as it comes."""
    if reason := bench.missing():
        return Outcome(bench.name, 0.0, [], {}, f"left out: {reason}")
    start = time.monotonic()
    command = [sys.executable, str(folder / f"bench_{bench.name}.py"), *bench.arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    if done.returncode:
        reason = f"failed with exit code {done.returncode}; its message is above"
        return Outcome(bench.name, seconds, [], {}, reason, failed=True)
    result = json.loads(done.stdout)
    return Outcome(bench.name, seconds, result["ratios"], result)


def table(outcomes: Sequence[Outcome]) -> str:
    """Bench, ratio and what it is of, one ratio a line.

    >>> print(table([Outcome("ingest", 61.0, [{"what": "bare / ingest", "value": 0.7}], {})]))
    bench        ratio  of what (numerator / denominator)
    ingest         0.7  bare / ingest
    took 1.0 min: ingest 1.0
    """
    lines = [f"{'bench':<10}{'ratio':>8}  of what (numerator / denominator)"]
    for outcome in outcomes:
        lines += [f"{outcome.name:<10}{ratio['value']:>8.4g}  {ratio['what']}" for ratio in outcome.ratios]
        if outcome.reason:
            lines.append(f"{outcome.name:<10}{'-':>8}  {outcome.reason}")
    total = sum(o.seconds for o in outcomes) / 60
    each = ", ".join(f"{o.name} {o.seconds / 60:.1f}" for o in outcomes if o.seconds)
    return "\n".join([*lines, f"took {total:.1f} min: {each}" if each else "nothing ran"])


def estimate(benches: Sequence[Bench]) -> str:
    """What will run and about how long."""
    lines = []
    for bench in benches:
        reason = bench.missing()
        lines.append(
            f"  {bench.name:<10} about {bench.minutes:g} min{f'; left out: {reason}' if reason else ''}"
        )
    total = sum(b.minutes for b in benches if not b.missing())
    return "\n".join([f"{len(benches)} benchmarks, about {total:g} min on two quiet cores", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[b.name for b in BENCHES], metavar="NAME")
    parser.add_argument(
        "--list", action="store_true", help="say what there is and how long it takes, and stop"
    )
    parser.add_argument("--json", type=Path, help="write everything the benchmarks printed to this file too")
    args = parser.parse_args()
    benches = [b for b in BENCHES if not args.only or b.name in args.only]
    print(estimate(benches), flush=True)
    if args.list:
        return 0
    outcomes = []
    for bench in benches:
        print(f"== {bench.name}", file=sys.stderr, flush=True)
        outcomes.append(run_bench(bench))
    print(table(outcomes))
    if args.json:
        text = json.dumps({o.name: o.result or {"reason": o.reason} for o in outcomes}, indent=2)
        args.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(o.failed for o in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
