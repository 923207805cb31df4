"""Stage `validate`: the quality gate on records and tool logs."""

from ikddit import atomic
from ikddit.console import run_plainly
from ikddit.mpom.validate import validate
from ikddit.params import load_params


def main() -> None:
    """Read data/records, write data/validated, data/quarantine/validate and the report."""
    metrics = validate(
        "data/records",
        "data/validated",
        "data/quarantine/validate",
        "reports/validation",
        load_params().validate_,
        ingest_quarantine="data/quarantine/ingest",
    )
    atomic.write_json("reports/validation.json", metrics)


if __name__ == "__main__":
    run_plainly(main)
