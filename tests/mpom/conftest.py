"""Fixtures of the mpom room."""

from pathlib import Path
from typing import Any

import pytest
from ingested import Ingested, RunIngest, ingest_into, read_back


@pytest.fixture
def run_ingest(tmp_path_factory: pytest.TempPathFactory) -> RunIngest:
    """`run_ingest(raw, **ingest params)` -> `Ingested`; checks that counts add up."""

    def run(raw: Path, **values: Any) -> Ingested:
        out = tmp_path_factory.mktemp("out")
        ingest_into(out, raw, **values)
        result = read_back(out)
        assert result.report["found"] == result.report["records"] + result.report["quarantined"]
        assert result.report["records"] == len(result.records)
        assert result.report["quarantined"] == len(result.quarantine)
        assert sum(result.report["quarantined_by_field"].values()) == len(result.quarantine)
        return result

    return run
