"""Stage `timing`: the student's speed -> reports/timing.json."""

from ikddit.atomic import write_json
from ikddit.console import run_plainly
from ikddit.dataset.arrow import PreparedSplit
from ikddit.device import pick_device
from ikddit.evaluation.timing import measure, with_teacher
from ikddit.generator import Generator
from ikddit.params import load_params


def main() -> None:
    """Time full, masked and guided student, the teacher's path and DDPM, interleaved in one process."""
    params = load_params()
    generator = Generator.load("models/student", pick_device(params.timing.device, "timing.device"))
    test = PreparedSplit.open("data/prepared/test.arrow")
    teacher = with_teacher(generator, "models/teacher")
    steps = params.evaluate.steps
    write_json("reports/timing.json", measure(generator, test, params.timing, steps, params.seed, teacher))


if __name__ == "__main__":
    run_plainly(main)
