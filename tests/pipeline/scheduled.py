"""Served by test_pins: a flow that leaves a line each time its schedule fires."""

import sys
from pathlib import Path

from prefect import flow


@flow
def tick(path: str) -> None:
    with Path(path).open("a") as handle:
        handle.write("fired\n")


if __name__ == "__main__":
    tick.serve(
        name="every-two-seconds", interval=2, parameters={"path": sys.argv[1]}, pause_on_shutdown=False
    )
