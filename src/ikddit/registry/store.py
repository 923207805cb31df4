"""The one MLflow store of a checkout, shared by `dvc exp run --temp` and queued runs, which use a clone."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import urlsplit, urlunsplit

from ikddit.atomic import atomic_path
from ikddit.checkout import SQLITE, checkout_root, tracking_uri
from ikddit.console import log
from ikddit.errors import RegistryError

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

HOST_TAG = "ikddit.host"
PROCESS_TAG = "ikddit.process"
LOCK_TIMEOUT_S = 600.0
_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Store:
    """Where runs, versions and artifacts live."""

    root: Path
    """The main checkout."""
    uri: str
    """Tracking URI; a SQLite path is absolute."""
    artifact_location: str | None
    """Absolute `file://` URI of artifacts of new experiments; None where a server or database URL decides."""

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None for any other store."""
        path = self.uri.removeprefix(SQLITE).partition("?")[0]
        return Path(path) if self.uri.startswith(SQLITE) and ":memory:" not in path else None

    @property
    def public_uri(self) -> str:
        """The URI without passwords or paths of this machine: fit for a file that is committed.

        >>> Store(Path("/c"), "sqlite:////c/mlflow.db", None).public_uri
        'sqlite:///mlflow.db'
        >>> Store(Path("/c"), "postgresql://u:secret@db:5432/mlflow", None).public_uri
        'postgresql://db:5432/mlflow'

        An address that can be read in two ways shows its scheme only:

        >>> Store(Path("/c"), "postgresql://u:se/cret@db:5432/mlflow", None).public_uri
        'postgresql://...'
        """
        if self.database is not None:
            inside = self.database.is_relative_to(self.root)
            return SQLITE + str(self.database.relative_to(self.root) if inside else self.database.name)
        hidden = f"{self.uri.partition('://')[0]}://..." if "://" in self.uri else "..."
        try:
            parts = urlsplit(self.uri)
        except ValueError:  # a bracket in a password
            return hidden
        # SQLAlchemy takes a password with a slash, ? or # in it, at which urlsplit ends the host.
        if "@" in parts.path + parts.query + parts.fragment:
            return hidden
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def lock(self) -> "BaseFileLock":
        """A lock between the processes that use this store from this machine (reentrant within one)."""
        from filelock import FileLock

        # Beside the database, so that two checkouts sharing one also share the lock.
        place = (
            self.database.with_name(self.database.name + ".lock")
            if self.database
            else self.root / ".ikddit" / "mlflow.lock"
        )
        place.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(place, timeout=LOCK_TIMEOUT_S, is_singleton=True)


def locate_store(env: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Store:
    """Find the store without opening it.

    `MLFLOW_TRACKING_URI` is respected; a relative SQLite path in it means the main checkout, not the clone a
    temporary experiment runs in. The default is `mlflow.db` and `mlruns/` in the main checkout.

    Raises:
        RegistryError: the address of a server holds a login.
    """
    root, uri = checkout_root(env, cwd), tracking_uri(env, cwd)
    database = Store(root, uri, None).database
    return Store(root, uri, (database.parent / "mlruns").as_uri() if database else None)


def open_store(store: Store, experiment: str) -> tuple["MlflowClient", str]:
    """Open the store, creating database and experiment on first use, and end what dead processes left.

    Args:
        store: from `locate_store`.
        experiment: experiment name; a new one gets an absolute artifact location.

    Returns:
        The client and the experiment id; MLflow's global tracking URI is set to the store as well.

    Raises:
        RegistryError: the store cannot be opened, or the experiment was deleted in it.
    """
    mlflow = quiet_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        # Two first uses at once would both create the tables, and one of them would die in the migration.
        with store.lock():
            if store.database is not None and not store.database.exists():
                _create_database(mlflow, store.database)
            mlflow.set_tracking_uri(store.uri)
            client = mlflow.MlflowClient()
            experiment_id = _experiment_id(client, experiment, store)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = str(error).replace(store.uri, store.public_uri).strip()
        reason = said.splitlines()[0] if said else type(error).__name__
        raise RegistryError(
            f"MLflow store {store.public_uri}: cannot be opened: {reason}; "
            "see MLFLOW_TRACKING_URI and `ikddit models`"
        ) from None  # some of MLflow's messages repeat the whole URI, and a stack trace would show them
    reap(client, experiment_id)
    return client, experiment_id


def _create_database(mlflow: ModuleType, database: Path) -> None:
    """Let MLflow make its tables elsewhere and put the file in its place whole.

    SQLite adds columns outside of any transaction: a process killed in MLflow's migrations would leave a database
    that no later one could open.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / database.name
        mlflow.MlflowClient(SQLITE + str(made)).search_experiments(max_results=1)
        database.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(database) as scratch:
            shutil.copyfile(made, scratch)


def quiet_mlflow() -> ModuleType:
    """Import MLflow with telemetry off, and without its migration chatter and progress bars."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


def _experiment_id(client: "MlflowClient", name: str, store: Store) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=store.artifact_location))
        except MlflowException:  # on a shared server someone else may have been first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise RegistryError(
            f"MLflow store {store.public_uri}: experiment `{name}` was deleted; restore it with "
            f"`mlflow experiments restore -x {found.experiment_id}` or set register.experiment"
        )
    if store.artifact_location and not str(found.artifact_location).startswith(store.artifact_location):
        log.warning(
            "experiment `%s` keeps its artifacts in %s, not in %s: was the checkout moved?",
            name,
            found.artifact_location,
            store.artifact_location,
        )
    return str(found.experiment_id)


def if_there(ask: Callable[_Asked, _Answer], *args: _Asked.args, **kwargs: _Asked.kwargs) -> _Answer | None:
    """Answer of a call to MLflow; None where it says that there is no such model, version, alias, run or file.

    Any other failure says nothing about what is there: a store that is down is not an empty one.

    Raises:
        RegistryError: MLflow gave another answer, or none.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return ask(*args, **kwargs)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        code = getattr(error, "error_code", None)
        no_alias = code == "INVALID_PARAMETER_VALUE" and "alias" in said and said.endswith("not found.")
        if code == "RESOURCE_DOES_NOT_EXIST" or no_alias:
            return None
        raise RegistryError(f"no answer from the MLflow store: {said}; see whether it is up") from error


def has_files(client: "MlflowClient", version: "ModelVersion") -> bool:
    """Whether a version's files are where the store says they are.

    Raises:
        RegistryError: the store does not answer.
    """
    from mlflow.artifacts import list_artifacts

    uri = if_there(client.get_model_version_download_uri, version.name, version.version)
    found = if_there(list_artifacts, artifact_uri=uri) if uri else None
    return any(Path(item.path).name == "MLmodel" for item in found or [])


def process_tags() -> dict[str, str]:
    """Tags by which a run is known to belong to this process, for `reap`."""
    import psutil

    me = psutil.Process()
    return {HOST_TAG: socket.gethostname(), PROCESS_TAG: f"{me.pid}:{me.create_time():.2f}"}


def reap(client: "MlflowClient", experiment_id: str) -> list[str]:
    """Mark runs as KILLED that are still RUNNING though their process on this host is gone.

    Returns:
        The ids of those runs.
    """
    dead = [
        run.info.run_id
        for run in client.search_runs(
            [experiment_id],
            f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{socket.gethostname()}'",
        )
        if not _alive(run.data.tags.get(PROCESS_TAG, ""))
    ]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
        log.warning("run %s was left RUNNING by a process that is gone: marked KILLED", run_id)
    return dead


def _alive(process: str) -> bool:
    import psutil

    pid, _, created = process.partition(":")
    try:
        # A recycled pid has another start time; the clock behind it may be corrected by a second meanwhile.
        return bool(abs(psutil.Process(int(pid)).create_time() - float(created)) < 2.0)
    except (psutil.NoSuchProcess, ValueError):
        return False
