"""The model that serves, and the data it and its challenger were made of, from the registry and DVC's cache."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ikddit.atomic import read_json
from ikddit.dataset.arrow import PreparedSplit
from ikddit.dataset.encode import encode_records
from ikddit.dataset.request import align_log_channels
from ikddit.errors import RegistryError
from ikddit.generator import Generator
from ikddit.mpom.parts import part_files, read_batches
from ikddit.params import RegisterParams
from ikddit.registry.store import Store, if_there, open_store

MONTHS_TAG = "retrain.months"
"""Deliveries a version was trained on, by name."""


@dataclass(frozen=True)
class Model:
    """A registered version with what it was trained on."""

    root: Path
    store: Store
    name: str
    version: int
    tags: dict[str, str]
    created_s: float
    """Unix time of its registration."""

    @property
    def rmse_nm(self) -> float | None:
        """Its error when it was registered."""
        return float(self.tags["rmse_nm"]) if "rmse_nm" in self.tags else None

    @property
    def age_days(self) -> float:
        """Days since it was registered."""
        return (time.time() - self.created_s) / 86400

    @property
    def months(self) -> list[str]:
        """Deliveries it was trained on."""
        return [name for name in self.tags.get(MONTHS_TAG, "").split(",") if name]

    @cached_property
    def generator(self) -> Generator:
        """The model itself."""
        from mlflow import artifacts

        uri = f"models:/{self.name}/{self.version}"
        folder = Path(artifacts.download_artifacts(uri, tracking_uri=self.store.uri))
        weights = sorted(folder.rglob("model.safetensors"))
        if not weights:
            raise RegistryError(f"{uri}: holds no model.safetensors; was it registered by this project?")
        return Generator.load(weights[0].parent)

    @cached_property
    def prepared(self) -> dict[str, Path]:
        """Files of the data/prepared it was trained on."""
        return cached_folder(self.root, self.tags.get("data_md5"), f"{self.name} version {self.version}")

    @property
    def train(self) -> PreparedSplit:
        """Its training wafers, memory-mapped in DVC's cache."""
        return PreparedSplit.open(self.prepared["train.arrow"])

    @property
    def lots(self) -> dict[str, str]:
        """Every lot of its data set, and the lot's split."""
        lots: dict[str, str] = read_json(self.prepared["splits.json"])["lots"]
        return lots

    def records(self, barcodes: Sequence[str]) -> pa.Table:
        """Records of wafers of its data set, in no particular order."""
        label = f"{self.name} version {self.version}"
        files = cached_folder(self.root, self.tags.get("md5.data/validated"), label)
        wanted = pa.array(barcodes)
        found = []
        for name in sorted(files):
            if name.endswith(".parquet"):
                table = pq.read_table(files[name])
                found.append(table.filter(pc.is_in(table.column("barcode"), wanted)))
        return pa.concat_tables(found)

    def encode(self, records: Iterator[pa.Table]) -> PreparedSplit:
        """Records as this model sees them."""
        generator = self.generator
        config = generator.model.config
        names = generator.normaliser.log_names
        encoded = [
            encode_records(
                align_log_channels(table, names),
                generator.normaliser,
                generator.vocabularies,
                config.max_lines,
                config.embedding.values_per_line,
            )
            for table in records
        ]
        return PreparedSplit.from_table(pa.concat_tables(encoded).combine_chunks())


def validated_records(folders: Sequence[Path]) -> Iterator[pa.Table]:
    """Batches of the records in these folders."""
    for folder in folders:
        yield from read_batches(part_files(folder), "new wafers")


def model_at(root: Path, store: Store, settings: RegisterParams, version: int | None = None) -> Model | None:
    """A version, or the champion; None where no version was registered or none is champion.

    Raises:
        RegistryError: the store cannot be opened, or does not answer.
    """
    from ikddit.registry.promotion import CHAMPION

    client, _ = open_store(store, settings.experiment)
    name = settings.model_name
    found = (
        if_there(client.get_model_version_by_alias, name, CHAMPION)
        if version is None
        else if_there(client.get_model_version, name, str(version))
    )
    if found is None:
        return None
    created = float(found.creation_timestamp or 0) / 1000
    return Model(root, store, name, int(found.version), dict(found.tags or {}), created)


def cached_folder(root: Path, md5: str | None, of: str) -> dict[str, Path]:
    """Files of a folder that DVC keeps by hash: relative path -> file in the cache.

    Raises:
        RegistryError: the version does not say what it was trained on, or this cache does not have it.
    """
    from dvc.repo import Repo

    if md5 is None:
        raise RegistryError(f"{of}: no hash of its data in its tags; register it through `dvc repro`")
    with Repo(str(root)) as repo:
        cache = repo.cache.local
        listing = Path(cache.oid_to_path(md5))
        if not listing.is_file():
            raise RegistryError(f"{of}: its data ({md5}) is not in the DVC cache; `dvc fetch --all-commits`")
        entries: list[dict[str, Any]] = json.loads(listing.read_text())
        return {entry["relpath"]: Path(cache.oid_to_path(entry["md5"])) for entry in entries}
