"""Stage `ingest`: raw MPOM data or mark tables to canonical records, quarantine and a report."""

from ikddit.console import run_plainly
from ikddit.mpom.ingest import ingest
from ikddit.params import load_params


def main() -> None:
    """Read params.yaml and ingest `data.raw`."""
    params = load_params()
    ingest(params.data.raw, "data/records", "data/quarantine/ingest", "reports/ingest.json", params.ingest)


if __name__ == "__main__":
    run_plainly(main)
