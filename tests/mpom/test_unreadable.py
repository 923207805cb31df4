"""Files that the system really refuses to open, also where the tests run as root."""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rawmpom import data_set, write

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
"""What lets root read files whose mode forbids it."""
RUN = """
import json, sys
from pathlib import Path
from ikddit.mpom.ingest import ingest
from ikddit.params import IngestParams
for raw in sys.argv[1:]:
    out = Path(raw + "-out")
    settings = IngestParams.model_validate({"workers": 1})
    ingest(raw, out / "records", out / "quarantine", out / "report.json", settings)
"""


def become_ordinary() -> None:
    """Give up root's right to read everything, in the child before it starts; others have none to give up."""
    if os.geteuid() == 0:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if prctl(PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError(ctypes.get_errno(), "cannot give up root's rights")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An MPOM set and a folder of mark tables, each with files that cannot be opened, after ingest."""
    top = tmp_path_factory.mktemp("unreadable")
    items, tables = data_set(top / "items", 4, "nested"), top / "tables"
    sound = Path(data_set(top / "more", 2, "zip") / "lots" / "L1.zip")
    write(items / "lots", {"L8.zip": sound.read_bytes(), "L9/id_9.txt": b"9"})
    tables.mkdir()
    marks = {"wafer_x_mm": [0.0, 9.0], "wafer_y_mm": 0.0, "ovl_x_nm": 1.0, "ovl_y_nm": 2.0}
    for name in ("a", "b"):
        frame = pd.DataFrame({"barcode": name, **marks})
        frame.to_csv(tables / f"{name}.csv", index=False)
        frame.assign(barcode=f"p{name}").to_parquet(tables / f"{name}.parquet")
    (tables / "notes.csv").write_text("")
    closed = [
        items / "lots/L1/overlay_000000.png",
        items / "lots/L8.zip",
        items / "lots/L9",
        tables / "b.csv",
        tables / "b.parquet",
    ]
    modes = [path.stat().st_mode for path in closed]
    for path in closed:
        path.chmod(0)
    command = [sys.executable, "-c", RUN, str(items), str(tables)]
    done = subprocess.run(command, preexec_fn=become_ordinary, capture_output=True, text=True)
    for path, mode in zip(closed, modes, strict=True):
        path.chmod(mode)
    assert done.returncode == 0, done.stderr
    return {"items": top / "items-out", "tables": top / "tables-out"}


@pytest.mark.parametrize(
    ("data", "item", "file"),
    [
        ("items", "lots/L1/000000", "lots/L1/overlay_000000.png"),
        ("items", "lots/L8.zip", "lots/L8.zip"),
        ("items", "lots/L9", "lots/L9"),
        ("tables", "b.csv", "b.csv"),
        ("tables", "b.parquet", "b.parquet"),
    ],
)
def test_what_may_not_be_read_is_quarantined_with_the_systems_words(outputs, data, item, file):
    lines = (outputs[data] / "quarantine/quarantine.jsonl").read_text().splitlines()
    (entry,) = (entry for entry in map(json.loads, lines) if entry["item"] == item)
    assert (entry["file"], entry["field"]) == (file, "file")
    assert "not readable: Permission denied" in entry["reason"]
    assert "permissions" in entry["remedy"]


@pytest.mark.parametrize(("data", "records", "rejected"), [("items", 3, 3), ("tables", 2, 3)])
def test_what_may_be_read_survives_and_counts_add_up(outputs, data, records, rejected):
    report = json.loads((outputs[data] / "report.json").read_text())
    assert (report["found"], report["records"]) == (records + rejected, records)
