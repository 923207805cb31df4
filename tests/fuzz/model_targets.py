"""The readers of model folders, requests and batch input. The forecast itself is left out: it reads nothing."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from contract import Target, require
from mutate import (
    arrow_bytes,
    damage,
    damage_json,
    damage_table,
    json_mutator,
    parquet_bytes,
    parquet_mutator,
)
from rawmpom import data_set
from targets import SETTINGS

from ikddit.batch import write_forecast
from ikddit.forecast import Forecast
from ikddit.generator import Generator, Records
from ikddit.manifest import MANIFEST, file_hashes
from ikddit.mpom.schema import ID_FIELDS
from made_generator import made_generator, write_generator

CONFIG_NAMES = (
    "model",
    "embedding",
    "mean",
    "modes",
    "sigma_data",
    "codec",
    "id_sizes",
    "dim",
    "served",
    "format_version",
)
REQUEST_NAMES = ("barcode", *ID_FIELDS, "log_lines", "log_features", "prev_map", "prev_valid")
BODY_NAMES = (
    "dataframe_records",
    "dataframe_split",
    "instances",
    "inputs",
    "params",
    "columns",
    "data",
    "index",
)
PARAM_NAMES = ("n", "steps", "seed", "limit_nm")
RECORD_NAMES = ("barcode", "log_lines", "log_features", "prev_map", "prev_valid", "map", "valid", *ID_FIELDS)


class Reading(Generator):
    """Reads and encodes wafers as a generator does, and forecasts zeros."""

    def predict(self, records: Records, n: int = 16, steps: int = 20, *args: Any, **options: Any) -> Forecast:
        self.plan(steps)
        split = self._encode(records)
        wafers = len(split)
        maps, pairs = np.zeros((wafers, 2, 64, 64), np.float32), np.zeros((wafers, 2))
        require(
            bool(np.isfinite(np.asarray(split.prev_map, np.float32)).all()), "what the model reads is finite"
        )
        require(bool(np.isfinite(split.line_values).all()), "what the model reads is finite")
        for i, size in enumerate(self.vocabularies.id_sizes):
            codes = split.ids[:, i]
            require(bool(((codes >= 0) & (codes < size)).all()), "codes are in the model's tables")
        return Forecast(split.barcode, maps, maps, pairs, pairs, pairs, np.zeros(wafers), [""] * wafers)


@cache
def reading() -> Reading:
    made = made_generator()
    generator = Reading(made.model, made.normaliser, made.vocabularies)
    generator.fingerprint = "made"
    return generator


# Model folder -----------------------------------------------------------------------------------------------


@cache
def _model_files() -> dict[str, bytes]:
    """Files of a sound model folder by name, with its manifest."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_generator(Path(folder))
        files = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
        files[MANIFEST] = json.dumps(file_hashes(Path(folder))).encode()
    return files


def read_model(data: bytes, folder: Path, damaged: str) -> None:
    """A model folder, one file of which is the input; only where it is the manifest there is one."""
    model = folder / "model"
    model.mkdir()
    for name, content in _model_files().items():
        if name == damaged:
            (model / name).write_bytes(data)
        elif name != MANIFEST or damaged == MANIFEST:
            (model / name).write_bytes(content)
    Generator.load(model)


def read_weights(data: bytes, folder: Path) -> None:
    """Weights of which the input is what stands before the numbers: their header and its length."""
    sound = _model_files()["model.safetensors"]
    read_model(data + sound[_header_end(sound) :], folder, "model.safetensors")


def _header_end(weights: bytes) -> int:
    return 8 + int.from_bytes(weights[:8], "little")


def _header() -> list[bytes]:
    sound = _model_files()["model.safetensors"]
    return [sound[: _header_end(sound)]]


def _damage_header(data: bytes, rng: Random) -> bytes:
    text = data[8:]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return damage(data, rng)
    text = damage_json(value, rng, ("dtype", "shape", "data_offsets", "__metadata__"))
    length = rng.choice((len(text),) * 8 + (0, 2**40, 2**64 - 1, len(text) + 1))
    return length.to_bytes(8, "little") + text


def _model_target(name: str, weight: int, names: tuple[str, ...]) -> Target:
    seeds = lambda: [_model_files()[name]]  # noqa: E731
    return Target(name, partial(read_model, damaged=name), seeds, json_mutator(names), ("model",), weight)


# Serving ----------------------------------------------------------------------------------------------------


@cache
def _served() -> tuple[Any, set[str], set[str]]:
    """The version as MLflow's server holds it, without a registry, and the names its door lets in."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    from ikddit.registry import pyfunc_model
    from ikddit.registry.package import PREDICT_DEFAULTS, signature

    output = reading().predict_frame(pd.DataFrame({"barcode": ["W"]}))
    meta = Model(signature=signature(output))
    meta.add_flavor("python_function", loader_module="mlflow.pyfunc.model")

    class Served:
        """MLflow's wrapper around a `PythonModel`."""

        def __init__(self) -> None:
            self.model: Any = pyfunc_model.OverlayModel()
            self.model.generator = reading()
            self.model.worker = ThreadPoolExecutor(1)

        def predict(self, frame: Any, params: Any = None) -> Any:
            return self.model.predict(None, frame, params)

    served = mlflow.pyfunc.PyFuncModel(meta, Served())
    return served, set(meta.signature.inputs.input_names()), set(PREDICT_DEFAULTS)


def read_request(data: bytes, folder: Path) -> None:
    """A request's body, through the door, MLflow's parser and its schema, to the encoded wafers."""
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc import scoring_server

    from ikddit.registry.door import refusal

    model, columns, params = _served()
    refused = refusal("application/json", data, columns, params)
    if refused is not None:
        require(400 <= refused[0] < 500 and bool(refused[1]), "a refusal is a status with a reason")
        return
    server: Any = scoring_server  # without types
    try:
        answer = server.invocations(data, "application/json", model, model.metadata.get_input_schema())
    except MlflowException as caught:
        error: Any = caught
        told = json.loads(error.serialize_as_json())
        status = error.get_http_status_code()
        require(
            "stack_trace" not in told,
            f"no stack trace leaves the server: {told.get('stack_trace', '')[-600:]}",
        )
        require(status == 400, f"a bad request is answered with 400, not {status}: {told['message'][:300]}")
    else:
        require(answer.status == 200 and "predictions" in json.loads(answer.response), "an answer is JSON")


def _requests() -> list[bytes]:
    wafer = {"barcode": "W1", "scanner_id": "A", "log_lines": ["dose 30.1 mJ"], "log_features": [1.0, None]}
    maps = {"prev_map": [0.5] * 8192, "prev_valid": [1] * 4096}
    split = {"columns": ["barcode", "log_features"], "data": [["W1", [1.0, 2.0]], ["W2", [None, 1.0]]]}
    return [
        json.dumps(body).encode()
        for body in (
            {"dataframe_records": [wafer], "params": {"n": 2, "steps": 2}},
            {"dataframe_split": split},
            {"inputs": {"barcode": ["W1", "W2"]}},
            {"instances": [{"barcode": "W1"}]},
            {"dataframe_records": [wafer | maps]},
        )
    ]


# Batch ------------------------------------------------------------------------------------------------------


def read_batch(data: bytes, folder: Path, name: str) -> None:
    """A folder of one file of wafers; the normaliser and vocabularies beside a prepared split are the model's."""
    source = folder / "records"
    source.mkdir()
    (source / name).write_bytes(data)
    if name.endswith(".arrow"):
        for extra in ("normaliser.json", "vocabularies.json", "tokenizer.json"):
            (source / extra).write_bytes(_model_files()[extra])
    written = write_forecast(reading(), source, folder / "out" / "forecast.parquet", n=1, steps=2)
    require(written.wafers > 0, "wafers are forecast or refused")


@cache
def _records() -> pa.Table:
    """Two wafers as ingest writes them."""
    import tempfile

    from ikddit.mpom.ingest import ingest

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        ingest(
            data_set(Path(folder) / "raw", 2),
            out / "records",
            out / "quarantine",
            out / "report.json",
            SETTINGS,
        )
        return pq.read_table(out / "records" / "part-00000.parquet")


def _arrow_mutate(data: bytes, rng: Random) -> bytes:
    if rng.randrange(2):
        return damage(data, rng)
    try:
        with pa.ipc.open_file(pa.py_buffer(data)) as reader:
            table = damage_table(reader.read_all(), rng, RECORD_NAMES)
        return arrow_bytes(table)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError):
        return damage(data, rng)


MODEL_TARGETS = [
    _model_target("config.json", 1, CONFIG_NAMES),
    _model_target("normaliser.json", 1, ("log_names", "log_mean", "log_std", "sigma_nm", "mean_map")),
    _model_target("vocabularies.json", 1, ("ids", "templates", "values", *ID_FIELDS)),
    _model_target("tokenizer.json", 1, ("model", "vocab", "normalizer", "pre_tokenizer", "type")),
    _model_target(MANIFEST, 1, ("config.json", "model.safetensors")),
    Target("model.safetensors", read_weights, _header, _damage_header, ("model",), 1),
    Target(
        "request",
        read_request,
        _requests,
        json_mutator((*REQUEST_NAMES, *BODY_NAMES, *PARAM_NAMES)),
        ("request", "wafer"),
        10,
    ),
    Target(
        "batch parquet",
        partial(read_batch, name="part-0.parquet"),
        lambda: [parquet_bytes(_records())],
        parquet_mutator(RECORD_NAMES),
        ("part-0.parquet", "records"),
        1,
    ),
    Target(
        "batch arrow",
        partial(read_batch, name="test.arrow"),
        lambda: [arrow_bytes(reading()._encode(_records()).table)],
        _arrow_mutate,
        ("test.arrow", "records"),
        1,
    ),
]
