"""Which checkout a process belongs to: stores and resumable state are anchored on its root."""

import os
from collections.abc import Mapping
from pathlib import Path

from ikddit.errors import RegistryError

SQLITE = "sqlite:///"


def checkout_root(env: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Path:
    """Find the main checkout: `DVC_ROOT` (set by DVC in every kind of run), else the git top level, else cwd.

    Temporary and queued experiments run in a clone that is thrown away; `DVC_ROOT` still names the checkout
    that started them.
    """
    if env.get("DVC_ROOT"):
        return Path(env["DVC_ROOT"]).resolve()
    here = (cwd or Path.cwd()).resolve()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def tracking_uri(env: Mapping[str, str] = os.environ, cwd: Path | None = None) -> str:
    """MLflow tracking URI: `MLFLOW_TRACKING_URI`, else SQLite in the checkout's root.

    A relative SQLite path means the checkout's root, not the clone that a temporary experiment runs in.

    >>> tracking_uri({"DVC_ROOT": "/fab", "MLFLOW_TRACKING_URI": "sqlite:///team.db"})
    'sqlite:////fab/team.db'

    Raises:
        RegistryError: a server's address holds a login; MLflow would print it with the address of every run.
    """
    uri = env.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    if uri.lower().startswith(("http://", "https://")) and "@" in uri:
        raise RegistryError(
            "MLFLOW_TRACKING_URI: a login in the address would be printed with every run; "
            "put it into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if not uri.startswith(SQLITE) or ":memory:" in uri:
        return uri
    return SQLITE + str(checkout_root(env, cwd) / uri.removeprefix(SQLITE))  # an absolute path stays
