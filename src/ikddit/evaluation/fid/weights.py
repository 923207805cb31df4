"""Find, check and read the weights of the FID Inception network."""

import hashlib
import logging
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
from torch import Tensor

from ikddit.atomic import atomic_path
from ikddit.errors import ModelError, without_passwords

log = logging.getLogger("ikddit")
_BLOCK_BYTES = 1 << 20
WEIGHTS_VARIABLE = "IKDDIT_FID_WEIGHTS"
"""Environment variable that names, for this machine alone, what `auto` takes."""
AGAIN = (
    "set `fid.weights` to a file or URL, or look again with `dvc repro --force --single-item fid_measured`; "
    "then run `dvc repro`"
)


@dataclass(frozen=True)
class Weights:
    """The state of `pytorch_fid.inception.fid_inception_v3()`, and where it comes from."""

    state: dict[str, Tensor]
    source: str
    """Name of the file, without its folder."""
    sha256: str

    @property
    def facts(self) -> dict[str, str]:
        """What is written beside figures."""
        return {"source": self.source, "sha256": self.sha256}


@dataclass(frozen=True)
class NoWeights:
    """Why there are none; Inception figures are then absent, and this is said in their place."""

    reason: str

    @property
    def facts(self) -> dict[str, str]:
        """What is written in the place of figures."""
        return {"reason": self.reason}


def find_weights(setting: str, timeout_s: float) -> Weights | NoWeights:
    """Read the weights that `fid.weights` names.

    `auto` is what IKDDIT_FID_WEIGHTS names, else the official file, from torch's own cache or downloaded into it
    by the address that pytorch-fid has; `none` is none; anything else a path or a URL (http, https, file).

    Args:
        setting: `fid.weights`.
        timeout_s: longest silence of the network.

    Returns:
        `NoWeights` for `none`, and where a download is needed but there is no network.

    Raises:
        ModelError: a configured file does not exist, or a file is damaged or not of this network.
    """
    if setting == "none":
        return NoWeights("fid.weights is none")
    configured, where = setting, "fid.weights"
    if setting == "auto":
        configured, where = os.environ.get(WEIGHTS_VARIABLE, "auto"), WEIGHTS_VARIABLE
    url = _official_url() if configured == "auto" else configured
    scheme = urlparse(url).scheme
    if scheme in ("http", "https"):
        path = _cached(url)
        if not path.is_file() and (
            problem := _download(url, path, timeout_s, where if configured != "auto" else None)
        ):
            return NoWeights(
                f"{path.name} is not on this machine and no network gave it ({problem}); {AGAIN}"
            )
    else:
        path = Path(url2pathname(urlparse(url).path)) if scheme == "file" else Path(url)
        if not path.is_file():
            raise ModelError(f"{where}: {url}: no such file; correct the path, or use auto or none")
    return read_weights(path)


def read_weights(path: Path) -> Weights:
    """Read a state dict without unpickling anything but tensors.

    Raises:
        ModelError: damaged, or not a state dict.
    """
    try:
        with path.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds on damaged files
        raise ModelError(
            f"{path}: not readable as Inception weights ({error}); fetch the file again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: not a state dict; use a file in the layout of pytorch-fid")
    return Weights(state, path.name, sha256)


def _official_url() -> str:
    from ikddit.vision import make_torchvision_importable

    make_torchvision_importable()
    from pytorch_fid.inception import FID_WEIGHTS_URL

    return str(FID_WEIGHTS_URL)


def _cached(url: str) -> Path:
    """Where torch.hub, and with it pytorch-fid, keeps the file.

    A name without a hash may stand for different files at different addresses, so the address goes in.
    """
    name = Path(urlparse(url).path).name
    if not _hash_in(name):
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _hash_in(name: str) -> str:
    """First digits of the file's sha256 where its name ends with them (the habit of torch.hub), else ''."""
    found = re.search(r"-([0-9a-f]{8,64})\.[a-z]+$", name)
    return found.group(1) if found else ""


def _download(url: str, path: Path, timeout_s: float, configured: str | None) -> str:
    """Fetch a file into the cache, whole or not at all; returns why it could not be fetched, '' if it was.

    `configured` is where the address was named; None for the official one.

    Raises:
        ModelError: an address that cannot be one, a configured one that is answered with an error, or a file that is
            not what its name says.
    """
    log.info("downloading %s", without_passwords(url))
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer, atomic_path(path) as scratch:
            with scratch.open("wb") as handle:
                while block := answer.read(_BLOCK_BYTES):
                    digest.update(block)
                    handle.write(block)
            if not digest.hexdigest().startswith(_hash_in(path.name)):
                raise ModelError(f"{url}: sha256 {digest.hexdigest()} is not that of its name; try again")
    except urllib.error.HTTPError as error:
        if configured:
            raise ModelError(f"{configured}: {url}: {error}; correct the address") from None
        return str(error)
    except InvalidURL:  # its message holds the password
        raise ModelError(
            f"{configured or 'fid.weights'}: {url}: no address; it takes no login: give the path of a file"
        ) from None
    except (OSError, HTTPException) as error:
        return without_passwords(str(getattr(error, "reason", error)))
    return ""
