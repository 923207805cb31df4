"""Stage simulate: a fab draws wafers and writes them in the MPOM layout with their exact noise floor."""

from ikddit.console import run_plainly
from ikddit.params import load_params
from ikddit.simulator.writer import write_dataset


def main() -> None:
    """Read `simulate`, write data/simulated."""
    write_dataset(load_params().simulate, "data/simulated")


if __name__ == "__main__":
    run_plainly(main)
