"""What the pipeline leaves behind, made by hand, with a stand-in for the generator."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors.numpy import load_file, save_file

from ikddit.atomic import write_json, write_text
from ikddit.dataset.arrow import array_columns, fixed_list, prepared_schema
from ikddit.dataset.normaliser import Normaliser
from ikddit.mpom.schema import ID_FIELDS, PIXELS

WAFERS = 3
CHANNELS = ["dose_mj_cm2", "focus_nm"]
METRICS = {"rmse_nm": 1.25, "r2": 0.5, "served": "full", "baselines": {"ridge_all": {"rmse_nm": 1.3}}}
LOCK = """schema: '2.0'
stages:
  prepare:
    cmd: python stages/prepare.py
    outs:
    - {path: data/prepared, hash: md5, md5: 0123abcd.dir, size: 10, nfiles: 7}
  ingest:
    cmd: python stages/ingest.py
    deps:
    - {path: data/simulated, hash: md5, md5: 4567ef01.dir, size: 10, nfiles: 7}
    - {path: stages/ingest.py, hash: md5, md5: '99', size: 10}
"""


class StandIn:
    """Answers with a constant kept in its model folder, so that a test sees which version answers."""

    def __init__(self, level_nm: float) -> None:
        self.level_nm = level_nm
        self.normaliser = SimpleNamespace(log_names=CHANNELS)

    @classmethod
    def load(cls, folder: str | Path) -> "StandIn":
        return cls(float(load_file(Path(folder) / "model.safetensors")["level_nm"][0]))

    def predict_frame(
        self, frame: pd.DataFrame, n: int = 16, steps: int = 20, seed: int = 0, limit_nm: float = 8.0
    ) -> pd.DataFrame:
        assert all(len(flat) == 2 * PIXELS for flat in frame["prev_map"])
        return pd.DataFrame({"barcode": frame["barcode"], "m3s_nm": self.level_nm, "n": n})


def write_model(workspace: Path, level_nm: float) -> None:
    folder = workspace / "models" / "student"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"level_nm": np.array([level_nm], np.float32)}, folder / "model.safetensors")
    write_json(folder / "config.json", {"model": "T/8"})
    normaliser = Normaliser(
        CHANNELS,
        np.array([30.0, 5.0], np.float32),
        np.array([2.0, 1.0], np.float32),
        2.0,
        np.zeros((2, 64, 64), np.float32),
    )
    normaliser.save(folder / "normaliser.json")


def write_prepared(folder: Path) -> None:
    schema = prepared_schema(CHANNELS, max_lines=4, values_per_line=2)
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 2, (WAFERS, schema.field(name).type.list_size)).astype(
            schema.field(name).type.value_type.to_pandas_dtype()
        )
        for name in array_columns(schema)
    }
    arrays["log_features"][0] = [1.0, -2.0]
    arrays["log_missing"][:] = 0
    arrays["log_missing"][1, 1] = 1
    arrays["prev_map"][:] = rng.normal(0, 3, arrays["prev_map"].shape)
    text: dict[str, Any] = {
        "barcode": [f"W{i}" for i in range(WAFERS)],
        "lot_id": ["L0"] * WAFERS,
        "slot": [1, 2, 3],
        "exposed_at": [0, 1, 2],
        "log_lines": [["dose 30.1 mJ"], None, []],
    } | {name: ["A", None, "B"] for name in ID_FIELDS}
    columns = [
        fixed_list(arrays[field.name], field.type)
        if field.name in arrays
        else pa.array(text[field.name], field.type)
        for field in schema
    ]
    table = pa.table(columns, schema=schema)
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(folder / "test.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(table)
    write_json(folder / "dataset.json", {"seeds": {"fab_seed": 0, "sample_seed": 7, "lots": 4}})


def write_workspace(folder: Path) -> Path:
    write_model(folder, 1.5)
    write_prepared(folder / "data" / "prepared")
    reports = folder / "reports"
    write_json(reports / "evaluation" / "metrics.json", METRICS)
    write_json(reports / "timing.json", {"student_ms": 12.5, "device": "cpu"})
    write_text(reports / "train" / "curves.csv", "step,loss,teacher\n0,1.0,\n10,0.5,0.25\n")
    write_text(reports / "evaluation" / "rmse.svg", "<svg xmlns='http://www.w3.org/2000/svg'/>")
    write_text(reports / "index.html", "<p>report</p>")
    write_text(folder / "dvc.lock", LOCK)
    return folder
