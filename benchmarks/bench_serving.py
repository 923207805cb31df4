"""Latency and throughput of a served model under a real HTTP load; prints JSON.

    python benchmarks/bench_serving.py                          # starts `ikddit serve` on the champion itself
    python benchmarks/bench_serving.py http://fab-server:5001   # a server that runs already

Wafers have an id and a full previous map. Each client sends its next request when the last one is answered. Of a
server that it started it also says the CPU time of the server per wafer, which other load on the machine does
not change much.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from itertools import product
from typing import Any

import httpx
import numpy as np
import psutil
from ratios import Ratio, print_result


def made_record(number: int) -> dict[str, Any]:
    """A wafer with a previous map, the size of a real request."""
    rng = np.random.default_rng(number)
    values = np.round(rng.normal(0, 2, 2 * 64 * 64), 3).tolist()
    return {"barcode": f"W{number:04d}", "scanner_id": "A", "prev_map": values, "prev_valid": [1] * 4096}


@contextmanager
def started(threads: int) -> Iterator[tuple[str, psutil.Process]]:
    """`ikddit serve` on a free port, and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", "from ikddit.cli import main; main()", "serve"]
    server = subprocess.Popen([*command, "--port", port, "--threads", str(threads)])
    url = f"http://127.0.0.1:{port}"
    try:
        while server.poll() is None:
            with suppress(httpx.HTTPError):
                httpx.get(f"{url}/ping")
                break
            time.sleep(0.5)
        if server.poll() is not None:
            raise SystemExit("the server did not start; is there a champion (`ikddit models`)?")
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def cpu_s(process: psutil.Process | None) -> float:
    return sum(process.cpu_times()[:2]) if process else 0.0


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
    parser.add_argument("url", nargs="?", help="of a running server; without it one is started")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--wafers", type=int, nargs="+", default=[1, 25])
    parser.add_argument("--n", type=int, default=16, help="samples per wafer")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0, help="per row; a request begun is waited for")
    parser.add_argument("--threads", type=int, default=1, help="of the server that is started")
    args = parser.parse_args()
    records = [made_record(i) for i in range(25)]
    rows = []
    with nullcontext((args.url, None)) if args.url else started(args.threads) as (url, process):
        for wafers, clients in product(args.wafers, args.clients):
            content = body(records, wafers, args.n, args.steps)
            load_before, cpu_before = os.getloadavg()[0], cpu_s(process)
            figures = load(url, content, clients, args.seconds)
            answered = wafers * (figures["requests"] + 1)
            row = {
                **{name: round(value, 2) for name, value in figures.items()},
                "wafers_per_s": round(wafers * figures["requests_per_s"], 2),
                "load_before": round(load_before, 1),
            }
            if process:
                row["cpu_ms_per_wafer"] = round(1000 * (cpu_s(process) - cpu_before) / answered, 1)
            rows.append({"wafers": wafers, "clients": clients, **row})
    few, many = min(args.clients), max(args.clients)
    rate = {(row["wafers"], row["clients"]): row["wafers_per_s"] for row in rows}
    ratios = [
        Ratio(f"serving, wafers/s at {w} a request: {many} clients / {few}", rate[w, many] / rate[w, few])
        for w in args.wafers
        if many > few and rate[w, few]
    ]
    print_result({"n": args.n, "steps": args.steps, "cpus": os.cpu_count(), "rows": rows}, ratios)


if __name__ == "__main__":
    main()
