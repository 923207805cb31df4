"""PostgreSQL and an S3 API on loopback, thrown away afterwards; used by test_team."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from checkouts import background, free_port, wait_until

S3_KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "ikddit"


def postgres_folder() -> Path:
    """Where initdb is; Debian keeps it out of PATH."""
    found = shutil.which("initdb")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if found is None else [Path(found)]
    if not places:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return places[-1].parent


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def postgres(env: dict[str, str]) -> Iterator[str]:
    """A cluster of its own; yields `user@host:port`, to which the databases of deploy/ have been added."""
    from deploy_files import statements

    binaries, port = postgres_folder(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    # PostgreSQL refuses to run as root, as which tests run in many containers.
    as_user: list[str] = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv to become somebody else")
        as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        shutil.chown(folder, "nobody", "nogroup")
    try:
        create = [
            *as_user,
            str(binaries / "initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            "ikddit",
            "-A",
            "trust",
        ]
        done = subprocess.run(create, env=env, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        server = [*as_user, str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port)]
        server += ["-k", str(folder), "-h", "127.0.0.1", "-c", "fsync=off"]
        log = folder / "server.log"
        with background(server, env, log, folder):
            wait_until(lambda: listens(port), 60, log)
            wait_until(lambda: "ready to accept connections" in log.read_text(), 60, log)
            import psycopg2

            connection = psycopg2.connect(host="127.0.0.1", port=port, user="ikddit", dbname="postgres")
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in ["CREATE DATABASE mlflow", *statements()]:
                    cursor.execute(statement)
            connection.close()
            yield f"ikddit@127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3(env: dict[str, str], folder: Path) -> Iterator[str]:
    """An S3 API with one empty bucket; yields its URL."""
    for package in ("moto", "boto3", "dvc_s3"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install -c constraints.txt -e '.[team,team-test]')")
    port, log = free_port(), folder / "s3.log"
    url = f"http://127.0.0.1:{port}"
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with background(server, env, log):
        wait_until(lambda: listens(port), 60, log)
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name=S3_KEYS["AWS_DEFAULT_REGION"],
        )
        client.create_bucket(Bucket=BUCKET)
        yield url
