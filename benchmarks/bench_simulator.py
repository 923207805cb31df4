"""The simulator: wafers/s drawn and written, against a bare loop that only encodes the same files; scaling.

    python benchmarks/bench_simulator.py [--lots 120] [--workers 2] [--repeats 3]

Every run is a fresh process tree, its start included. `draw` makes the wafers and throws them away, four times
as many of them, so that its scaling is not that of starting processes; `write` makes a whole data set with its
exact noise floor; `bare` encodes one lot's PNGs with Pillow and dumps its JSON, as many times as there are lots,
in the same pool of processes, and writes nothing. Prints one JSON object.
"""

import argparse
import functools
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ratios import Ratio, print_result

from ikddit.params import SimulateParams
from ikddit.simulator.constants import WAFERS_PER_LOT, Fab
from ikddit.simulator.parallel import map_lots
from ikddit.simulator.wafers import draw_lots, line_stream, lot_numbers
from ikddit.simulator.writer import wafer_files, write_dataset

DRAWN = 4
"""Lots drawn for each lot written."""


def draw(fab: Fab, params: SimulateParams, lot: int) -> int:
    """Draw one lot; returns the number of wafers."""
    return len(draw_lots(fab, params, [lot]).barcode)


@functools.cache
def first_lot(params_json: str) -> tuple[list[np.ndarray], list[dict[str, Any]]]:
    """Images and JSON objects of the first lot, decoded, once per process."""
    params = SimulateParams.model_validate_json(params_json)
    lot = int(lot_numbers(params)[0])
    files = dict(
        wafer_files(draw_lots(Fab.build(params.fab_seed), params, [lot]), params, line_stream(params, lot))
    )
    images = [np.asarray(Image.open(io.BytesIO(d))) for name, d in files.items() if name.endswith(".png")]
    return images, [json.loads(data) for name, data in files.items() if name.endswith(".json")]


def encode(fab: Fab, params: SimulateParams, lot: int) -> int:
    """Encode one lot's files and throw them away; returns the number of wafers."""
    images, records = first_lot(params.model_dump_json())
    for image in images:
        Image.fromarray(image).save(io.BytesIO(), "PNG")
    for record in records:
        json.dumps(record)
    return len(records)


def child(kind: str, lots: int, workers: int) -> None:
    """Run once in this process tree and print what it took."""
    params = SimulateParams.model_validate({"lots": lots})
    numbers = [int(lot) for lot in lot_numbers(params)]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        if kind == "write":
            wafers = int(write_dataset(params, Path(folder) / "raw", workers)["wafers"])
        else:
            wafers = sum(map_lots({"draw": draw, "bare": encode}[kind], params, numbers, workers))
        wall = time.perf_counter() - start
    assert wafers == lots * WAFERS_PER_LOT
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"wall_s": wall, "cpu_s": sum(u.ru_utime + u.ru_stime for u in used)}))


def measure(kind: str, lots: int, workers: int) -> dict[str, float]:
    """Run once in a process tree of its own."""
    command = [sys.executable, __file__, "--child", kind, "--lots", str(lots), "--workers", str(workers)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lots", type=int, default=120, help="lots of 25 wafers")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=("draw", "write", "bare"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.lots, args.workers)
        return
    many = DRAWN * args.lots
    kinds = {"draw_1": ("draw", many, 1), "draw": ("draw", many, args.workers)}
    kinds |= {kind: (kind, args.lots, args.workers) for kind in ("write", "bare")}
    # Taken in turns, so that what else runs on the machine hits all alike; the best of each counts.
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(args.repeats):
        for name, (kind, lots, workers) in kinds.items():
            runs[name].append(measure(kind, lots, workers))
    best = {name: min(run["wall_s"] for run in several) for name, several in runs.items()}
    cpu = {name: min(run["cpu_s"] for run in several) for name, several in runs.items()}
    wafers = args.lots * WAFERS_PER_LOT
    result = {
        "workers": args.workers,
        "wafers": wafers,
        "drawn_wafers_per_s_1_worker": round(DRAWN * wafers / best["draw_1"]),
        "drawn_wafers_per_s": round(DRAWN * wafers / best["draw"]),
        "draw_scaling": round(best["draw_1"] / best["draw"], 3),
        "written_wafers_per_s": round(wafers / best["write"]),
        "bare_wafers_per_s": round(wafers / best["bare"]),
        "write_ratio": round(best["bare"] / best["write"], 3),
        "write_cpu_ratio": round(cpu["bare"] / cpu["write"], 3),
    }
    print_result(
        result,
        [
            Ratio(f"simulator, drawing: 1 worker / {args.workers} workers", result["draw_scaling"]),
            Ratio("simulator, wall: bare encoding of the same files / draw and write", result["write_ratio"]),
            Ratio(
                "simulator, CPU: bare encoding of the same files / draw and write", result["write_cpu_ratio"]
            ),
        ],
    )


if __name__ == "__main__":
    main()
