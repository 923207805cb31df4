"""Ingest against a bare loop that only decodes the same PNG and JSON files; memory as the wafers grow fourfold.

    python benchmarks/bench_ingest.py [--lots 160] [--workers 2] [--repeats 3]

Every run is a fresh process tree. The bare loop reads the zips with `zipfile`, decodes with Pillow and `json`
and throws the result away, in as many processes as ingest. Starting the workers is timed on both sides, the
imports of the first process on neither (`import_s` says what ingest's take; `cpu_s` holds them).
Memory is watched in runs of their own: looking at all processes every 20 ms takes a good part of a core. Prints
one JSON object.
"""

import argparse
import io
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
from ratios import Ratio, print_result


def decode(path: Path) -> int:
    """Decode what is in one zip; returns the number of wafers."""
    from PIL import Image

    images = 0
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".png"):
                np.asarray(Image.open(io.BytesIO(archive.read(name))))
                images += 1
            elif name.endswith(".json"):
                json.loads(archive.read(name))
    return images // 2


def bare(raw: Path, workers: int) -> int:
    paths = sorted((raw / "lots").glob("*.zip"))
    if workers == 1:
        return sum(map(decode, paths))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        return sum(pool.imap_unordered(decode, paths, chunksize=8))


def full(raw: Path, workers: int) -> int:
    from ikddit.mpom.ingest import ingest  # imported before the clock starts
    from ikddit.params import IngestParams

    settings = IngestParams.model_validate({"workers": workers})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        report = ingest(raw, out / "records", out / "quarantine", out / "report.json", settings)
    return int(report["records"])


def child(kind: str, raw: Path, workers: int) -> None:
    """Run once in this process tree and print what it took; kind is bare, full or memory (full, watched)."""
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        me = psutil.Process()
        while not done.wait(0.02):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total)

    watcher = threading.Thread(target=watch)
    if kind == "memory":
        watcher.start()
    start = time.perf_counter()
    if kind != "bare":
        import ikddit.mpom.ingest  # noqa: F401
    imported = time.perf_counter() - start
    start = time.perf_counter()
    wafers = (bare if kind == "bare" else full)(raw, workers)
    wall = time.perf_counter() - start
    done.set()
    if kind == "memory":
        watcher.join()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    print(
        json.dumps(
            {"wafers": wafers, "wall_s": wall, "cpu_s": cpu, "import_s": imported, "peak_mib": peak / 2**20}
        )
    )


def measure(kind: str, raw: Path, workers: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", kind, str(raw), "--workers", str(workers)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]


def simulate(folder: Path, lots: int) -> Path:
    from ikddit.params import SimulateParams
    from ikddit.simulator.writer import write_dataset

    write_dataset(SimulateParams.model_validate({"lots": lots}), folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lots",
        type=int,
        default=160,
        help="lots of 25 wafers; 4x (by default the default data set) is timed, memory compared with 1x",
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, metavar=("KIND", "RAW"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), args.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        large = simulate(Path(folder) / "large", 4 * args.lots)
        small = simulate(Path(folder) / "small", args.lots)
        # Taken in turns, so that what else runs on the machine hits both alike; the best of each counts.
        runs: dict[str, list[dict[str, float]]] = {"bare": [], "full": []}
        for _ in range(args.repeats):
            for kind in runs:
                runs[kind].append(measure(kind, large, args.workers))
        best = {kind: min(run["wall_s"] for run in several) for kind, several in runs.items()}
        cpu = {kind: min(run["cpu_s"] for run in several) for kind, several in runs.items()}
        peak_large, peak_small = (
            min(measure("memory", raw, args.workers)["peak_mib"] for _ in range(args.repeats))
            for raw in (large, small)
        )
    wafers = runs["bare"][0]["wafers"]
    result = {
        "workers": args.workers,
        "wafers": wafers,
        "bare_wafers_per_s": round(wafers / best["bare"]),
        "ingest_wafers_per_s": round(wafers / best["full"]),
        "speed_ratio": round(best["bare"] / best["full"], 3),
        "import_s": round(min(run["import_s"] for run in runs["full"]), 2),
        "cpu_ratio": round(cpu["bare"] / cpu["full"], 3),
        "peak_mib": round(peak_small, 1),
        "peak_mib_at_4x": round(peak_large, 1),
        "memory_ratio": round(peak_large / peak_small, 3),
    }
    print_result(
        result,
        [
            Ratio("ingest, wall: bare decoding of the same files / ingest", float(result["speed_ratio"])),
            Ratio("ingest, CPU: bare decoding of the same files / ingest", float(result["cpu_ratio"])),
            Ratio("ingest, peak memory: four times the wafers / once", float(result["memory_ratio"])),
        ],
    )


if __name__ == "__main__":
    main()
