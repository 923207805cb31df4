"""Stage `register`: the result of this pipeline run as an MLflow run and a version in the model registry."""

from ikddit.console import run_plainly
from ikddit.params import load_params
from ikddit.registry.register import register, write_registration


def main() -> None:
    """Register the student with its metrics; does nothing when this very result is registered already."""
    write_registration(register(load_params()))


if __name__ == "__main__":
    run_plainly(main)
