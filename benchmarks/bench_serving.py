"""Latency and throughput of a served model under a real HTTP load; prints JSON.

    ikddit serve &
    python benchmarks/bench_serving.py http://127.0.0.1:5001

Requests are made of the registered input example (`serving_input_example.json` is among a version's artifacts) or,
without `--example`, of zero maps. Each client sends its next request when the last one is answered.
"""

import argparse
import json
import os
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np


def made_record(number: int) -> dict[str, Any]:
    """A wafer with a previous map, the size of a real request."""
    rng = np.random.default_rng(number)
    values = np.round(rng.normal(0, 2, 2 * 64 * 64), 3).tolist()
    return {"barcode": f"W{number:04d}", "scanner_id": "A", "prev_map": values, "prev_valid": [1] * 4096}


def example_records(path: Path) -> list[dict[str, Any]]:
    split = json.loads(path.read_text())["dataframe_split"]
    return [dict(zip(split["columns"], row, strict=True)) for row in split["data"]]


def body(records: list[dict[str, Any]], wafers: int, n: int, steps: int) -> bytes:
    chosen = [{**records[i % len(records)], "barcode": f"W{i:04d}"} for i in range(wafers)]
    return json.dumps({"dataframe_records": chosen, "params": {"n": n, "steps": steps}}).encode()


def load(url: str, content: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Send the same request from some clients for some seconds, after one that does not count."""
    latencies: list[float] = []
    failures: list[int] = []
    headers = {"content-type": "application/json"}

    def client(until: float) -> None:
        with httpx.Client(timeout=300) as session:
            while time.perf_counter() < until:
                start = time.perf_counter()
                status = session.post(f"{url}/invocations", content=content, headers=headers).status_code
                latencies.append(time.perf_counter() - start)
                if status != 200:
                    failures.append(status)

    client(time.perf_counter() + 1e-9)
    latencies.clear()
    start = time.perf_counter()
    threads = [threading.Thread(target=client, args=(start + seconds,)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    p50, p95, p99 = (float(np.percentile(latencies, q)) for q in (50, 95, 99))
    return {
        "requests": len(latencies),
        "failed": len(failures),
        "requests_per_s": len(latencies) / took,
        "p50_ms": 1000 * p50,
        "p95_ms": 1000 * p95,
        "p99_ms": 1000 * p99,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:5001")
    parser.add_argument("--example", type=Path, help="serving_input_example.json of the version")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--wafers", type=int, nargs="+", default=[1, 25])
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    records = example_records(args.example) if args.example else [made_record(i) for i in range(25)]
    rows = []
    for wafers, clients in product(args.wafers, args.clients):
        content = body(records, wafers, args.n, args.steps)
        before = os.getloadavg()[0]
        figures = load(args.url, content, clients, args.seconds)
        rows.append(
            {
                "wafers": wafers,
                "clients": clients,
                **{name: round(value, 2) for name, value in figures.items()},
                "wafers_per_s": round(wafers * figures["requests_per_s"], 2),
                "load_before": round(before, 1),
            }
        )
    print(json.dumps({"n": args.n, "steps": args.steps, "cpus": os.cpu_count(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
