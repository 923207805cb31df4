import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ikddit.checkout import checkout_root
from ikddit.errors import RegistryError
from ikddit.registry.store import PROCESS_TAG, Store, if_there, locate_store, open_store, process_tags


def test_temporary_clone_uses_the_store_of_the_main_checkout(tmp_path: Path) -> None:
    clone = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmpx"
    (clone / ".git").mkdir(parents=True)
    store = locate_store({"DVC_ROOT": str(tmp_path)}, clone)
    assert store.database == tmp_path / "mlflow.db"
    assert store.artifact_location == (tmp_path / "mlruns").as_uri()


def test_a_subfolder_uses_the_store_of_its_git_top_level(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "src" / "deep").mkdir(parents=True)
    assert checkout_root({}, tmp_path / "src" / "deep") == tmp_path


def test_without_git_or_dvc_the_working_folder_is_the_root(tmp_path: Path) -> None:
    assert checkout_root({}, tmp_path) == tmp_path


def test_tracking_uri_of_a_server_is_respected(tmp_path: Path) -> None:
    store = locate_store({"MLFLOW_TRACKING_URI": "https://mlflow.fab:5000"}, tmp_path)
    assert store.uri == "https://mlflow.fab:5000"
    assert store.artifact_location is None
    assert store.public_uri == "https://mlflow.fab:5000"


def test_relative_sqlite_uri_means_the_main_checkout(tmp_path: Path) -> None:
    env = {"MLFLOW_TRACKING_URI": "sqlite:///stores/team.db", "DVC_ROOT": str(tmp_path)}
    store = locate_store(env, Path("/"))
    assert store.database == tmp_path / "stores" / "team.db"
    assert store.public_uri == "sqlite:///stores/team.db"


def test_public_uri_of_a_database_elsewhere_holds_no_folder(tmp_path: Path) -> None:
    store = locate_store({"MLFLOW_TRACKING_URI": "sqlite:////srv/team/mlflow.db"}, tmp_path)
    assert store.uri == "sqlite:////srv/team/mlflow.db"
    assert store.public_uri == "sqlite:///mlflow.db"


def test_new_experiment_has_an_absolute_artifact_location(store: Store) -> None:
    client, experiment_id = open_store(store, "overlay")
    assert client.get_experiment(experiment_id).artifact_location == (store.root / "mlruns").as_uri()
    assert open_store(store, "overlay")[1] == experiment_id


def test_two_first_uses_at_once_do_not_race(tmp_path: Path) -> None:
    code = (
        "import sys; from ikddit.registry.store import *; "
        "print(open_store(locate_store({'DVC_ROOT': sys.argv[1]}), 'overlay')[1])"
    )
    pair = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120)[0].strip() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert answers[0] == answers[1] != ""


def test_first_use_that_was_killed_in_the_migrations_leaves_no_half_database(tmp_path: Path) -> None:
    """SIGKILL after a column that SQLite has kept (no transaction is open) and before MLflow notes its migration."""
    script = """
import os, signal, sys
from alembic.operations import Operations
from ikddit.registry.store import locate_store, open_store
add_column = Operations.add_column

def killed(self, *args, **kwargs):
    add_column(self, *args, **kwargs)
    if not self.get_bind().connection.dbapi_connection.in_transaction:
        os.kill(os.getpid(), signal.SIGKILL)

Operations.add_column = killed
open_store(locate_store({"DVC_ROOT": sys.argv[1]}), "ikddit")
"""
    dead = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=tmp_path)
    assert dead.returncode == -9
    store = locate_store({"DVC_ROOT": str(tmp_path)})
    client, experiment_id = open_store(store, "ikddit")
    assert client.get_experiment(experiment_id).name == "ikddit"


def test_run_of_a_dead_process_is_reaped_and_a_living_one_is_not(store: Store) -> None:
    client, experiment_id = open_store(store, "overlay")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead_tags = process_tags() | {PROCESS_TAG: f"{gone.pid}:1.00"}
    dead = client.create_run(experiment_id, tags=dead_tags).info.run_id
    mine = client.create_run(experiment_id, tags=process_tags()).info.run_id
    other_host = client.create_run(experiment_id, tags=dead_tags | {"ikddit.host": "elsewhere"}).info.run_id
    open_store(store, "overlay")
    status = [client.get_run(run_id).info.status for run_id in (dead, mine, other_host)]
    assert status == ["KILLED", "RUNNING", "RUNNING"]


def test_what_is_not_there_is_none_and_a_store_that_fails_is_an_error(store: Store) -> None:
    client, _ = open_store(store, "overlay")
    assert if_there(client.get_registered_model, "ikddit") is None
    client.create_registered_model("ikddit")
    assert if_there(client.get_model_version, "ikddit", "1") is None
    assert if_there(client.get_model_version_by_alias, "ikddit", "champion") is None
    assert if_there(client.get_registered_model, name="ikddit").name == "ikddit"
    with pytest.raises(RegistryError, match=r"no answer from the MLflow store: .*version"):
        if_there(client.get_model_version, "ikddit", "one")  # as invalid as an alias that nobody has
    with closing(sqlite3.connect(store.root / "mlflow.db")) as database:
        database.execute("drop table registered_model_aliases")
    with pytest.raises(RegistryError, match=r"no answer from the MLflow store: .*no such table"):
        if_there(client.get_model_version_by_alias, "ikddit", "champion")


def test_deleted_experiment_is_refused_by_name(store: Store) -> None:
    client, experiment_id = open_store(store, "overlay")
    client.delete_experiment(experiment_id)
    with pytest.raises(RegistryError, match="experiment `overlay` was deleted; restore it"):
        open_store(store, "overlay")


def test_unusable_database_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, it is a text that is long enough to be read")
    with pytest.raises(RegistryError, match=r"MLflow store sqlite:///mlflow\.db: cannot be opened"):
        open_store(locate_store({"DVC_ROOT": str(tmp_path)}), "overlay")
