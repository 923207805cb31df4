"""How the stages from raw data to prepared splits grow with the number of wafers: time, CPU, memory, disk.

    python benchmarks/bench_scale.py [--wafers 100000] [--workers 2] [--engine dask] [--folder DIR]

Simulates N wafers, then runs ingest, validate and prepare on a quarter, half and all of them, each in a process
tree of its own. Wall and CPU time are taken after the imports, so that they do not flatter the growth. Memory is the
largest resident size of the whole tree, looked at every 50 ms from outside; pages that processes share are counted
in each of them. Ratios of 1 mean: four times the wafers take four times the time (`time_ratio`), or no more memory
(`memory_ratio`). `kib_per_wafer` is what a further wafer adds to the peak, without what is there anyway.

The folder needs 120 kB a wafer (12 GB for 100,000): raw data, records, validated and prepared at once. It is a
temporary folder that goes at the end unless --folder names one. Prints a line per run on stderr, then one JSON object.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ratios import Ratio, print_result

STAGES = ("ingest", "validate", "prepare")
SHARES = (0.25, 0.5, 1.0)
PER_LOT = 25
DISK_BYTES = 120_000
"""Of one wafer in all four folders, rounded up from what this benchmark prints."""


def run_ingest(folder: Path, workers: int, engine: str) -> None:
    from ikddit.mpom.ingest import ingest
    from ikddit.params import IngestParams

    settings = IngestParams.model_validate({"workers": workers, "engine": engine})
    ingest(folder / "raw", folder / "records", folder / "refused", folder / "ingest.json", settings)


def run_validate(folder: Path, workers: int, engine: str) -> None:
    from ikddit.mpom.validate import validate
    from ikddit.params import ValidateParams

    validate(
        folder / "records",
        folder / "validated",
        folder / "rejected",
        folder / "validation",
        ValidateParams(),
        folder / "refused",
    )


def run_prepare(folder: Path, workers: int, engine: str) -> None:
    from ikddit.dataset.prepare import prepare
    from ikddit.params import PrepareParams

    prepare(folder / "validated", folder / "prepared", PrepareParams(), seed=0)


RUN: dict[str, Callable[[Path, int, str], None]] = {
    "ingest": run_ingest,
    "validate": run_validate,
    "prepare": run_prepare,
}
IMPORTS = {
    "ingest": ["ikddit.mpom.ingest"],
    "validate": ["ikddit.mpom.validate", "great_expectations", "pandas"],
    "prepare": ["ikddit.dataset.prepare"],
}


def child(stage: str, folder: Path, workers: int, engine: str) -> None:
    """Run one stage in this process tree and print what it took."""
    import importlib

    for module in IMPORTS[stage]:
        importlib.import_module(module)
    before = cpu_seconds()
    start = time.perf_counter()
    RUN[stage](folder, workers, engine)
    wall = time.perf_counter() - start
    print(json.dumps({"wall_s": wall, "cpu_s": cpu_seconds() - before}))


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def resident(process: psutil.Process) -> int:
    """Bytes of a process and all below it."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return total
    return total


def measure(stage: str, folder: Path, workers: int, engine: str) -> dict[str, float]:
    """Run one stage in a process of its own and watch its memory."""
    command = [sys.executable, __file__, "--child", stage, str(folder)]
    command += ["--workers", str(workers), "--engine", engine]
    with (folder / f"{stage}.out").open("w+") as out, (folder / f"{stage}.err").open("w+") as errors:
        run = subprocess.Popen(command, stdout=out, stderr=errors)
        watched, peak = psutil.Process(run.pid), 0
        while run.poll() is None:
            peak = max(peak, resident(watched))
            time.sleep(0.05)
        errors.seek(0)
        if run.returncode:
            raise SystemExit(f"{stage} failed:\n{errors.read()[-4000:]}")
        out.seek(0)
        found: dict[str, float] = json.loads(out.read().splitlines()[-1])
    return {**found, "peak_mib": peak / 2**20}


def simulate(folder: Path, lots: int, workers: int) -> Path:
    from ikddit.params import SimulateParams
    from ikddit.simulator.writer import write_dataset

    # As many days as the default fab takes for as many lots: the days are as busy as there.
    days = min(3650.0, max(365.0, 365.0 * lots / 640))
    write_dataset(SimulateParams.model_validate({"lots": lots, "days": days}), folder, workers)
    return folder


def link_share(whole: Path, part: Path, share: float) -> int:
    """Make a data set of the first lots of another one, by hard links; returns the wafers."""
    lots = sorted((whole / "lots").iterdir())
    taken = lots[: round(len(lots) * share)]
    (part / "lots").mkdir(parents=True)
    for lot in taken:
        os.link(lot, part / "lots" / lot.name)
    shutil.copyfile(whole / "dataset.json", part / "dataset.json")
    return PER_LOT * len(taken)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def growth(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per stage: the largest run against the smallest."""
    found = {}
    for stage in STAGES:
        small, *_, large = (row for row in rows if row["stage"] == stage)
        times = large["wafers"] / small["wafers"]
        more = large["wafers"] - small["wafers"]
        found[stage] = {
            "time_ratio": round(large["wall_s"] / small["wall_s"] / times, 3),
            "cpu_ratio": round(large["cpu_s"] / small["cpu_s"] / times, 3),
            "memory_ratio": round(large["peak_mib"] / small["peak_mib"], 3),
            "kib_per_wafer": round(1024 * (large["peak_mib"] - small["peak_mib"]) / more, 2),
            "wafers_per_cpu_s": round(more / (large["cpu_s"] - small["cpu_s"])),
        }
    return found


def bench(folder: Path, lots: int, workers: int, engine: str) -> dict[str, Any]:
    whole = simulate(folder / "simulated", lots, workers)
    rows: list[dict[str, Any]] = []
    disk: dict[str, float] = {}
    for share in SHARES:
        here = folder / f"share-{share:g}"
        wafers = link_share(whole, here / "raw", share)
        for stage in STAGES:
            row = {"stage": stage, "wafers": wafers, **measure(stage, here, workers, engine)}
            rows.append({name: round(v, 2) if isinstance(v, float) else v for name, v in row.items()})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        names = ("raw", "records", "validated", "prepared")
        disk = {name: round(size_of(here / name) / wafers) for name in names}
        shutil.rmtree(here)
    return {
        "workers": workers,
        "engine": engine,
        "bytes_per_wafer": disk,
        "growth": growth(rows),
        "runs": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wafers", type=int, default=100_000, help="rounded down to four lots of 25")
    parser.add_argument("--workers", type=int, default=2, help="of the simulator and of ingest")
    parser.add_argument("--engine", default="processes", help="ingest.engine: processes or dask")
    parser.add_argument("--folder", type=Path, help="a folder to work in; default a temporary one")
    parser.add_argument("--child", nargs=2, metavar=("STAGE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), args.workers, args.engine)
        return
    lots = max(args.wafers // PER_LOT // 4, 3) * 4
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        free, needed = shutil.disk_usage(folder).free, lots * PER_LOT * DISK_BYTES
        if free < needed:
            raise SystemExit(
                f"{folder}: {free / 1e9:.1f} GB are free, {needed / 1e9:.1f} GB needed; "
                "take fewer --wafers or another --folder"
            )
        result = bench(Path(folder), lots, args.workers, args.engine)
    ratios = [
        Ratio(f"{stage}: {what} at 4 x the wafers / {expected}", found[f"{name}_ratio"])
        for stage, found in result["growth"].items()
        for name, what, expected in (
            ("time", "time", "4 x the time"),
            ("memory", "peak memory", "peak memory"),
        )
    ]
    print_result(result, ratios)


if __name__ == "__main__":
    main()
