"""Hashes of a folder's files: to know a model by its content, and to notice a byte that changed."""

import hashlib
import json
from pathlib import Path

from ikddit.atomic import read_json, write_json
from ikddit.errors import ModelError

MANIFEST = "sha256.json"
"""Written into the folder of a registered version; the train stage's folder has none."""


def file_hash(path: Path) -> str:
    """sha256 of one file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder` but the manifest, by its path there."""
    return {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def fingerprint(hashes: dict[str, str]) -> str:
    """One sha256 over names and hashes: same files, same fingerprint, on any machine."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path) -> None:
    """Note the hashes of the folder's files in the folder."""
    write_json(folder / MANIFEST, file_hashes(folder))


def check_manifest(folder: Path, hashes: dict[str, str]) -> None:
    """Compare hashes with the folder's manifest; a folder without one is not judged.

    Raises:
        ModelError: names the first file that changed, is missing, or does not belong.
    """
    if not (folder / MANIFEST).is_file():
        return
    try:
        wanted = dict(read_json(folder / MANIFEST))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST}: damaged ({error}); {REMEDY}") from None
    for name in sorted(wanted.keys() | hashes.keys()):
        if wanted.get(name) != hashes.get(name):
            what = "is missing" if name not in hashes else "does not belong to the model"
            what = "has changed since it was registered" if name in wanted and name in hashes else what
            raise ModelError(f"{folder / name}: {what} (sha256); {REMEDY}")


REMEDY = "serve another version (`ikddit rollback`), or register the model again"
