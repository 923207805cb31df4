"""Patches off the wafer: one forward pass that drops them, against masking their keys and against keeping them.

Ratios are the median over rounds of the ratio within a round (the three ways take turns in one process), for 64, 256
and 1,024 patches and both precisions. Weights are random; the corners are the same for every wafer of a batch. Prints
one JSON object.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from ratios import Ratio, print_result

from ikddit.embedding.encoders import ConditionTokens
from ikddit.networks.student import Student
from ikddit.overlay.grid import wafer_grid

ROUNDS, WARMUP = 7, 1
CASES = (("T/8", 64), ("T/4", 16), ("T/2", 4))
"""Size and batch: about the same number of tokens in each."""


def passes(name: str, batch: int) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """One forward pass in three ways, and the tokens each works on."""
    torch.manual_seed(0)
    outline, square = Student(name, 128), Student(name, 128, outline="square")
    condition = ConditionTokens(
        torch.randn(batch, 66, 128), torch.zeros(batch, 66, dtype=torch.bool), torch.randn(batch, 384)
    )
    x = torch.randn(batch, 2, 64, 64)
    on_wafer = torch.from_numpy(wafer_grid().usable).float().expand(batch, 1, 64, 64)
    everywhere, c_noise = torch.ones(batch, 1, 64, 64), torch.zeros(batch)

    def run(student: Student, valid: torch.Tensor) -> Callable[[], object]:
        cache = student.encoder.cache(condition)
        return lambda: student(x, valid, c_noise, cache)

    ways = {"drop": run(outline, on_wafer), "mask": run(square, on_wafer), "keep": run(square, everywhere)}
    tokens = square.encoder.tokens
    return ways, {"drop": outline.encoder.tokens, "mask": tokens, "keep": tokens}


def main() -> None:
    rows: list[dict[str, float | str]] = []
    ratios = []
    with torch.no_grad():
        for name, batch in CASES:
            ways, tokens = passes(name, batch)
            for precision in ("fp32", "bf16"):
                seconds: dict[str, list[float]] = {way: [] for way in ways}
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    for number in range(WARMUP + ROUNDS):
                        for way, run in ways.items():
                            start = time.perf_counter()
                            run()
                            if number >= WARMUP:
                                seconds[way].append(time.perf_counter() - start)
                keep = np.array(seconds["keep"])
                share = {way: float(np.median(np.array(values) / keep)) for way, values in seconds.items()}
                rows.append(
                    {
                        "model": name,
                        "precision": precision,
                        "batch": batch,
                        "tokens_keep": tokens["keep"],
                        "tokens_drop": tokens["drop"],
                        "keep_ms": round(1e3 * float(np.median(keep)), 1),
                        "mask_over_keep": round(share["mask"], 3),
                        "drop_over_keep": round(share["drop"], 3),
                    }
                )
                what = f"forward pass, {tokens['keep']} patches, {precision}: all / those on the wafer"
                ratios.append(Ratio(what, round(float(np.median(keep / np.array(seconds["drop"]))), 3)))
    result = {"device": "cpu", "threads": torch.get_num_threads(), "rounds": ROUNDS, "rows": rows}
    print_result(result, ratios)


if __name__ == "__main__":
    main()
