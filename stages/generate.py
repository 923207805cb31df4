"""Stage `generate`: student on the test split -> data/generated/: maps, point forecasts, the gate's measurements."""

from ikddit.atomic import atomic_dir
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.device import pick_device
from ikddit.evaluation.generation import generate
from ikddit.generator import Generator
from ikddit.params import load_params


def main() -> None:
    """Run the model once; stage `evaluate` makes all figures from what it says."""
    params = load_params()
    generator = Generator.load("models/student", pick_device(params.evaluate.device, "evaluate.device"))
    test = PreparedSplit.open("data/prepared/test.arrow")
    unseen = PreparedSplit.open("data/prepared/test_unseen.arrow")
    with atomic_dir("data/generated") as folder:
        generate(generator, test, unseen, params.evaluate, params.seed, folder)


if __name__ == "__main__":
    run_plainly(main)
