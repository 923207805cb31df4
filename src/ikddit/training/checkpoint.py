"""Resumable training state: outside DVC, keyed by what it was trained from, removed on success."""

import hashlib
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from ikddit.atomic import atomic_path
from ikddit.checkout import checkout_root

log = logging.getLogger("ikddit")


def state_root() -> Path:
    """Folder of resumable state: under the main checkout (DVC sets DVC_ROOT, in temporary clones too)."""
    return checkout_root() / ".ikddit" / "checkpoints"


def fingerprint(params: dict[str, Any], inputs: list[Path], code: list[Path]) -> str:
    """sha256 over settings, input files and source files: a checkpoint fits only what it was made from."""
    digest = hashlib.sha256(json.dumps(params, sort_keys=True).encode())
    for path in sorted(
        p for root in [*inputs, *code] for p in ([root] if root.is_file() else root.rglob("*"))
    ):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path).encode())
            with path.open("rb") as handle:
                digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


class CheckpointFile:
    """One checkpoint, replaced atomically; a half-written one is never seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint."""
        with atomic_path(self.path) as scratch:
            torch.save(state, scratch)

    def load(self) -> dict[str, Any] | None:
        """The last state; None where there is none, or none that can be read.

        Writing is atomic, so only a failing disk or a foreign hand damages a checkpoint. That costs time and nothing
        else: training starts over with a warning, and the next checkpoint replaces the file.
        """
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:  # torch writes checksums but does not look at them
                if (member := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"{member} has changed since it was written")
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged bytes make the two readers raise nearly anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            log.warning("checkpoint %s cannot be read (%s); training starts over", self.path, reason)
            return None
        return state

    def remove(self) -> None:
        """Training is done: the checkpoint is no longer needed, nor what a killed process left of one."""
        self.path.unlink(missing_ok=True)
        for scratch in self.path.parent.glob(f".{self.path.name}.*.part"):
            scratch.unlink(missing_ok=True)
