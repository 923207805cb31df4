"""What one pipeline run left behind, gathered for the registry: params, metrics, curves, hashes, lineage."""

import csv
import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikddit.atomic import read_json
from ikddit.errors import RegistryError
from ikddit.manifest import file_hashes
from ikddit.params import Params
from ikddit.registry.gate import Evidence

MODEL = Path("models/student")
METRICS = Path("reports/evaluation/metrics.json")
CURVES = Path("reports/train/curves.csv")
DATASET = Path("data/prepared/dataset.json")
OTHER_METRICS = {
    "fid": Path("reports/evaluation/fid.json"),
    "timing": Path("reports/timing.json"),
    "train": Path("reports/train/summary.json"),
    "embedding": Path("reports/embedding.json"),
    "validation": Path("reports/validation.json"),
    "ingest": Path("reports/ingest.json"),
}
"""Prefix in MLflow -> file; those that exist are logged."""
ARTIFACTS = ("params.yaml", "dvc.lock", "docs/model-card.md", "reports/*.json", "reports/*.html")
PLOT_FOLDERS = ("reports/train", "reports/evaluation", "reports/ablations", "reports/figures")
LARGEST_ARTIFACT = 32 * 2**20
SOURCES = ("src", "stages", "params.yaml", "dvc.yaml", "pyproject.toml", "constraints.txt")
TIMES = ("masked.speedup",)
"""Metrics that are measured times."""
NOT_OF_THE_MODEL = ("register", "timing", "fid", "retrain", "control", "schedule")
"""Sections of params.yaml that change neither the model nor its metrics."""
HOW_INGEST_RUNS = ("engine", "scheduler", "workers")
"""Keys of section `ingest` that change no byte of the records."""


@dataclass(frozen=True)
class Result:
    """One model with everything that explains it."""

    folder: Path
    """The workspace it was made in; a temporary clone under `dvc exp run --temp`."""
    model: Path
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    """Lineage: git commit, data hashes, DVC experiment, dataset seeds, how the model is served."""
    fingerprint: str
    """sha256 over the model folder's files, the metrics and the params."""
    evidence: Evidence
    """What the promotion gate looks at."""

    @property
    def exp_name(self) -> str | None:
        """Name of the DVC experiment, if this is one."""
        return self.tags.get("dvc_exp_name")

    @property
    def run_name(self) -> str:
        """The experiment's name, else a short fingerprint."""
        return self.exp_name or self.fingerprint[:8]

    def curves(self) -> Iterator[tuple[str, int, float]]:
        """Yield (`train/<column>`, step, value) of every finite number in the loss curves."""
        path = self.folder / CURVES
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                step = int(float(row.pop("step")))
                for name, text in row.items():
                    value = _number(text)
                    if value is not None:
                        yield f"train/{_key(name)}", step, value

    def artifacts(self) -> list[Path]:
        """Reports and plots worth keeping beside the run, relative to the workspace."""
        found = {path for pattern in ARTIFACTS for path in self.folder.glob(pattern)}
        found |= {path for name in PLOT_FOLDERS for path in (self.folder / name).rglob("*")}
        return sorted(
            path.relative_to(self.folder)
            for path in found
            if path.is_file() and path.name != "registration.json" and path.stat().st_size <= LARGEST_ARTIFACT
        )


def collect(params: Params, folder: Path = Path(), env: Mapping[str, str] = os.environ) -> Result:
    """Gather a result from a workspace in which the pipeline ran up to `report`.

    Raises:
        RegistryError: the model or its metrics are missing.
    """
    model = folder / MODEL
    for path in (model / "model.safetensors", folder / METRICS):
        if not path.is_file():
            raise RegistryError(f"{path}: not found; run `dvc repro` up to the evaluate stage first")
    evaluation = read_json(folder / METRICS)
    settings = params.model_dump(mode="json", by_alias=True)
    metrics = numbers(evaluation)
    for prefix, path in OTHER_METRICS.items():
        if (folder / path).is_file():
            metrics |= numbers(read_json(folder / path), prefix)
    validated = folder / OTHER_METRICS["validation"]
    validation = read_json(validated) if validated.is_file() else None
    tags = {
        **git_state(folder),
        **data_hashes(folder, params.data.raw),
        **dataset_tags(folder),
        "served": str(evaluation.get("served", params.evaluate.inference)),
    }
    if env.get("DVC_EXP_NAME"):
        tags["dvc_exp_name"] = env["DVC_EXP_NAME"]
    if env.get("DVC_EXP_BASELINE_REV"):
        tags["dvc_exp_baseline_rev"] = env["DVC_EXP_BASELINE_REV"]
    return Result(
        folder=folder,
        model=model,
        params=texts(settings),
        metrics=metrics,
        tags=tags,
        fingerprint=fingerprint(model, evaluation, settings),
        evidence=Evidence.of_reports(evaluation, validation, tags.get("data_md5")),
    )


def fingerprint(model: Path, metrics: Any, settings: Mapping[str, Any]) -> str:
    """Name a result by its content: same files, metrics and params, same fingerprint, on any machine."""
    kept = {name: value for name, value in settings.items() if name not in NOT_OF_THE_MODEL}
    if isinstance(ingest := kept.get("ingest"), Mapping):
        kept["ingest"] = {name: value for name, value in ingest.items() if name not in HOW_INGEST_RUNS}
    # a measured speed differs from run to run; what follows from it (`served`) is part of the result
    timeless = {name: value for name, value in flatten(metrics) if name not in TIMES}
    content = json.dumps({"files": file_hashes(model), "metrics": timeless, "params": kept}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, leaf) of nested mappings.

    >>> dict(flatten({"a": 1, "b": {"c": [2, 3]}}))
    {'a': 1, 'b.c': [2, 3]}
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def numbers(value: Any, prefix: str = "") -> dict[str, float]:
    """Keep the finite numbers of nested mappings, by dotted name.

    >>> numbers({"rmse_nm": 1.5, "served": "full", "ok": True, "masked": {"speedup": 2}})
    {'rmse_nm': 1.5, 'masked.speedup': 2.0}
    """
    found = ((_key(name), _number(leaf)) for name, leaf in flatten(value, prefix))
    return {name: number for name, number in found if number is not None}


def texts(settings: Any) -> dict[str, str]:
    """Flatten settings to the strings MLflow keeps as params."""
    return {
        _key(name): leaf if isinstance(leaf, str) else json.dumps(leaf) for name, leaf in flatten(settings)
    }


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _key(name: str) -> str:
    """Replace what MLflow allows in no name."""
    return re.sub(r"[^\w\-. /]", "_", name)


def data_hashes(folder: Path, raw: str) -> dict[str, str]:
    """Read the hashes of the raw and derived data from dvc.lock, without DVC.

    Returns:
        `data_md5` of the prepared data and `md5.<path>` of everything under data/ and of `raw`; empty where
        there is no dvc.lock.
    """
    lock = folder / "dvc.lock"
    if not lock.is_file():
        return {}
    from ruamel.yaml import YAML

    stages = (YAML(typ="safe").load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})
    # What a stage wrote wins: stages that run after this one still list the inputs of their last run.
    entries = [
        entry for kind in ("deps", "outs") for stage in stages.values() for entry in stage.get(kind, [])
    ]
    hashes = {
        entry["path"]: entry["md5"]
        for entry in entries
        if "md5" in entry and (entry["path"].startswith("data/") or entry["path"] == raw)
    }
    prepared = hashes.get("data/prepared")
    named = {f"md5.{path if path.startswith('data/') else 'raw'}": md5 for path, md5 in hashes.items()}
    return named | ({"data_md5": prepared} if prepared else {})


def dataset_tags(folder: Path) -> dict[str, str]:
    """Read seeds and name of the data set, if its dataset.json has them."""
    if not (folder / DATASET).is_file():
        return {}
    seeds = read_json(folder / DATASET).get("seeds") or {}
    return {f"dataset.{name}": str(leaf) for name, leaf in flatten(seeds) if "seed" in name or "day" in name}


def git_state(folder: Path) -> dict[str, str]:
    """Return `git_commit` and `git_dirty` (sources, params or pins differ from it); empty without git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    # What the pipeline itself rewrites (dvc.lock, reports) says nothing about the sources.
    sources = [name for name in SOURCES if (folder / name).exists()]
    changed = _git(folder, "status", "--porcelain", "--", *sources) if sources else ""
    return {"git_commit": commit, "git_dirty": str(bool(changed)).lower()}


def _git(folder: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
