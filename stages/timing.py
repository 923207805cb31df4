"""Stage `timing`: the student's speed -> reports/timing.json."""

from ikddit.atomic import write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.timing import measure
from ikddit.generator import Generator
from ikddit.params import load_params


def main() -> None:
    """Time full and masked student inference and a single denoiser evaluation, interleaved in one process."""
    params = load_params()
    generator = Generator.load("models/student")
    test = PreparedSplit.open("data/prepared/test.arrow")
    write_json(
        "reports/timing.json", measure(generator, test, params.timing, params.evaluate.steps, params.seed)
    )


if __name__ == "__main__":
    run_plainly(main)
