"""A model folder as an MLflow pyfunc: code instead of pickle, safetensors, a signature, an example."""

import importlib.metadata
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ikddit.atomic import read_json, write_json
from ikddit.errors import ModelError
from ikddit.manifest import write_manifest
from ikddit.mpom.schema import ID_FIELDS, PIXELS

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.models.model import ModelInfo

REQUIREMENTS = (
    "mlflow",
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "diffusers",
    "jaxtyping",
    "pydantic",
    "rich",
    "ruamel.yaml",
    "tokenizers",
)
"""What serving needs besides Python; the `ikddit` package itself travels with the model."""
PREDICT_DEFAULTS: dict[str, int | float] = {"n": 16, "steps": 20, "seed": 0, "limit_nm": 8.0}
"""Parameters of `predict` and their defaults."""
QUICK = {"n": 2, "steps": 2, "seed": 0}
"""Enough to see that a model answers; also the parameters of the input example, which MLflow tries out."""


def pip_requirements() -> list[str]:
    """Pin `REQUIREMENTS` to what is installed here (a local build tag such as `+cpu` is no requirement)."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def input_columns() -> list[tuple[str, str, bool]]:
    """Columns of one request row: (name, type, required).

    `barcode` names the wafer. The ids of this and the previous exposure are strings; a missing one counts as
    unknown. `log_lines` are the scanner's report lines, `log_features` its numeric channels in the model's
    order (NaN = not received), `prev_map` the previous layer's map in nm, flat in C order of (2, 64, 64)
    (dx, then dy; row 0 on top), `prev_valid` 1 where that map was measured, flat (64, 64).
    """
    return [
        ("barcode", "string", True),
        *((name, "string", False) for name in ID_FIELDS),
        ("log_lines", "string[]", False),
        ("log_features", "double[]", False),
        ("prev_map", "double[]", False),
        ("prev_valid", "long[]", False),
    ]


def signature(output: "pd.DataFrame") -> "ModelSignature":
    """Build the signature: the columns above, the columns of a real output, and `PREDICT_DEFAULTS` as parameters.

    Arrays of numbers are `double` and `long`, not `float` and `integer`: that is what JSON lists become, and
    MLflow widens but never narrows.
    """
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    def column(name: str, kind: str, required: bool) -> ColSpec:
        scalar = DataType[kind.removesuffix("[]")]
        return ColSpec(Array(scalar) if kind.endswith("[]") else scalar, name, required=required)

    return ModelSignature(
        inputs=Schema([column(*spec) for spec in input_columns()]),
        outputs=infer_signature(model_output=output).outputs,
        params=ParamSchema(
            [
                ParamSpec(name, DataType.double if isinstance(value, float) else DataType.long, value)
                for name, value in PREDICT_DEFAULTS.items()
            ]
        ),
    )


def example_frame(prepared: Path, model_folder: Path, wafers: int = 2) -> "pd.DataFrame":
    """Take the first wafers of the prepared test split, back in the units of a request.

    Args:
        prepared: folder with `test.arrow`.
        model_folder: folder with `normaliser.json`, to undo the z-scores of the log channels.
        wafers: rows wanted.

    Raises:
        ModelError: the split holds no wafer.
    """
    import pandas as pd

    from ikddit.dataset.arrow import PreparedSplit
    from ikddit.dataset.normaliser import Normaliser

    split = PreparedSplit.open(prepared / "test.arrow")
    count = min(wafers, len(split))
    if count == 0:
        raise ModelError(f"{prepared / 'test.arrow'}: no wafer to make an input example of")
    normaliser = Normaliser.load(model_folder / "normaliser.json")
    table = split.table.slice(0, count)
    valid = np.asarray(split.prev_valid[:count]).reshape(count, PIXELS).astype(np.int64)
    maps = np.asarray(split.prev_map[:count], dtype=np.float64).reshape(count, 2 * PIXELS)
    features = np.asarray(split.log_features[:count]) * normaliser.log_std + normaliser.log_mean
    features = np.where(np.asarray(split.log_missing[:count], dtype=bool), np.nan, features)
    columns: dict[str, Any] = {name: table[name].to_pylist() for name in ("barcode", *ID_FIELDS, "log_lines")}
    columns["log_lines"] = [lines or [] for lines in columns["log_lines"]]
    columns["log_features"] = [[round(float(v), 6) for v in row] for row in features]
    columns["prev_map"] = [[round(float(v), 3) for v in row] for row in maps]
    columns["prev_valid"] = [row.tolist() for row in valid]
    return pd.DataFrame(columns)


@contextmanager
def no_bytecode() -> Iterator[None]:
    """Import without writing `__pycache__`: MLflow imports the version's code where it is kept."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def log_package(model_folder: Path, example: "pd.DataFrame", metadata: dict[str, Any]) -> "ModelInfo":
    """Log the model folder to the active MLflow run as a pyfunc, and prove that it loads back and predicts.

    Args:
        model_folder: `model.safetensors` + json files, as `Generator.load` reads them.
        example: request rows, from `example_frame`.
        metadata: small facts kept in the `MLmodel` file.

    Raises:
        ModelError: the logged model does not answer every row.
        Exception: whatever MLflow or the model raises; the caller cleans up.
    """
    import mlflow

    import ikddit
    from ikddit.generator import Generator

    output = Generator.load(model_folder).predict_frame(
        example, n=QUICK["n"], steps=QUICK["steps"], seed=QUICK["seed"]
    )
    with no_bytecode():
        info: ModelInfo = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"model": str(model_folder.resolve())},
            code_paths=[str(Path(ikddit.__file__).parent)],
            pip_requirements=pip_requirements(),
            signature=signature(output),
            input_example=(example, QUICK),
            metadata=metadata,
        )
        again = mlflow.pyfunc.load_model(info.model_uri).predict(example, params=QUICK)
    if len(again) != len(example):
        raise ModelError(f"the logged model answered {len(example)} wafers with {len(again)} rows")
    return info


@contextmanager
def served_folder(model_folder: Path, served: str) -> Iterator[Path]:
    """A copy of the model folder as it is served: with the acceptance gate's decision and the files' hashes.

    The train stage writes the folder before anybody knows whether masked inference is good enough; the
    evaluate stage decides (`served` in metrics.json), and config.json carries it to the server.

    Args:
        model_folder: as the train stage wrote it; it is not changed.
        served: `full` or `masked`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / model_folder.name
        shutil.copytree(model_folder, copy)
        config = read_json(copy / "config.json") if (copy / "config.json").is_file() else {}
        write_json(copy / "config.json", config | {"served": served})
        write_manifest(copy)
        yield copy


def check_folder(model_folder: Path) -> None:
    """Refuse a model folder with anything but safetensors and json in it.

    Raises:
        ModelError: names the file.
    """
    if not (model_folder / "model.safetensors").is_file():
        raise ModelError(f"{model_folder}: no model.safetensors; run the train stage (`dvc repro train`)")
    for path in sorted(model_folder.rglob("*")):
        if path.is_file() and path.suffix not in {".safetensors", ".json"}:
            raise ModelError(f"{path}: only safetensors and json belong in a model folder")
