"""Processes and Dask, alone or on a running scheduler: the same bytes in order, and errors with the way out."""

import gc
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ingested import settings
from rawmpom import data_set, item, write, zip_of

from ikddit.errors import IkdditError, ParamsError
from ikddit.mpom import engines
from ikddit.mpom.ingest import ingest
from ikddit.mpom.source import Census
from ikddit.mpom.survey import survey
from ikddit.mpom.tasks import Job, Outcome
from ikddit.params import parse_params

# In a session of their own, which test_dask.py starts: the threads of Dask's client stay when its tests are over.
pytestmark = pytest.mark.skipif(os.environ.get("IKDDIT_TEST_DASK") != "1", reason="run by test_dask.py")


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """CPython 3.11 counts the depth of syntax trees for all threads together, so two that make one at a time (pytest,
    and Dask's threads for a traceback) end in "AST constructor recursion depth mismatch". They only meet where the
    collector runs Python code half way."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Ten wafers in zips: a cut PNG, a barcode that comes twice; tasks of two wafers are of several lots."""
    folder = data_set(tmp_path / "raw", 8, "zip")
    cut = item("000008", 8, "L3")
    cut["overlay_000008.png"] = cut["overlay_000008.png"][:-20]
    write(folder / "lots", {"L3.zip": zip_of(cut | item("000007", 7, "L2"))})
    return folder


def everything(raw: Path, out: Path, **values: Any) -> dict[str, bytes]:
    """Ingest, and return every file that was written by its name."""
    where = (out / "records", out / "quarantine", out / "report.json")
    ingest(raw, *where, settings(wafers_per_part=2, **values))
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[], None]]]:
    """A running scheduler with a worker, in another working folder; its address, and what kills the worker."""
    folder = tmp_path_factory.mktemp("elsewhere")
    where = folder / "scheduler.json"
    options = ["--scheduler-file", str(where), "--dashboard-address", "127.0.0.1:0", "--host", "127.0.0.1"]
    commands = {
        "scheduler": [*options, "--port", "0"],
        "worker": [*options, "--nthreads", "1", "--no-nanny", "--local-directory", str(folder)],
    }
    runs = {}
    for name, command in commands.items():
        with (folder / f"{name}.log").open("w") as log:
            module = f"distributed.cli.dask_{name}"
            runs[name] = subprocess.Popen(
                [sys.executable, "-m", module, *command], cwd=folder, stdout=log, stderr=log
            )
    try:
        end = time.monotonic() + 120
        while not where.exists() and time.monotonic() < end:
            assert runs["scheduler"].poll() is None, (folder / "scheduler.log").read_text()
            time.sleep(0.05)
        yield json.loads(where.read_text())["address"], runs["worker"].kill
    finally:
        for run in runs.values():
            run.kill()
            run.wait()


def test_processes_and_a_dask_cluster_of_this_machine_write_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    alone = everything(raw, tmp_path / "alone", workers=1)
    assert [name for name in alone if name.startswith("records")] == [
        "records/dataset.json", *(f"records/part-{i:05d}.parquet" for i in range(4))
    ]  # fmt: skip
    assert alone["quarantine/quarantine.jsonl"].count(b"\n") == 2
    assert everything(raw, tmp_path / "pool", workers=2) == alone
    assert everything(raw, tmp_path / "dask", workers=2, engine="dask") == alone


def test_a_running_scheduler_gives_the_same_bytes_for_items_and_tables_though_its_folder_is_another(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: tuple[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engines, "LOOK_S", 0.01)  # it looks for workers many times before a result is there
    for name in ("a", "b"):
        marks = "".join(f"{name}{i},{x},0,0.5,{0.1 * i}\n" for i in range(3) for x in range(-100, 101, 50))
        write(
            tmp_path / "tables",
            {f"{name}.csv": f"barcode,wafer_x_mm,wafer_y_mm,ovl_x_nm,ovl_y_nm\n{marks}".encode()},
        )
    for source in (Path("raw"), Path("tables")):
        alone = everything(source, Path(f"alone-{source}"), workers=1)
        assert everything(source, Path(f"named-{source}"), engine="dask", scheduler=scheduler[0]) == alone
        monkeypatch.setenv(engines.SCHEDULER_VARIABLE, scheduler[0])
        assert everything(source, Path(f"variable-{source}"), engine="dask") == alone
        monkeypatch.delenv(engines.SCHEDULER_VARIABLE)


def test_tasks_are_planned_only_when_there_is_room() -> None:
    planned, done = 0, []

    def tasks() -> Iterator[engines.Numbered]:
        nonlocal planned
        for number in range(20):
            planned += 1
            yield number, []

    def submit(numbered: engines.Numbered) -> Callable[[], Outcome]:
        return lambda: Outcome(with_target=numbered[0])

    for outcome in engines._in_order(tasks(), submit, lambda: 4):
        done.append(outcome.with_target)
        assert planned <= len(done) + 4
    assert done == list(range(20))


def die(*_: Any) -> Outcome:
    os._exit(1)


@pytest.mark.parametrize(("engine", "work"), [("processes", "_work"), ("dask", "run_apart")])
def test_a_dead_worker_is_named_with_the_remedy_and_the_old_records_stay(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, work: str
) -> None:
    write(tmp_path / "out" / "records", {"dataset.json": b"old"})
    monkeypatch.setattr(engines, work, die)
    with pytest.raises(IkdditError, match=r"raw: a worker process died; lower ingest\.workers"):
        everything(raw, tmp_path / "out", workers=2 if engine == "processes" else 1, engine=engine)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["records"]
    assert (tmp_path / "out" / "records" / "dataset.json").read_bytes() == b"old"


def test_a_worker_that_sees_other_files_or_runs_other_code_refuses_the_task(
    raw: Path, tmp_path: Path
) -> None:
    # Without the look it would quarantine good wafers, or write other bytes.
    values = settings()
    job = Job(survey(raw, values), values, tmp_path)
    good: tuple[Any, ...] = (job, engines._changed(raw), engines.software(), (0, []))
    assert engines.run_apart(*good) == Outcome()
    shared = r"Dask worker on \S+ \(process \d+\) .*file system that all of them mount at the same path"
    unseen = Job(job.survey, values, tmp_path / "none")
    for wrong, named in (
        ((unseen, *good[1:]), shared),
        ((job, 1, *good[2:]), shared),
        ((*good[:2], "0" * 64, good[3]), r"runs other code: .*install the same there, restart the worker"),
    ):
        with pytest.raises(IkdditError, match=named):
            engines.run_apart(*wrong)


def test_a_scheduler_that_nobody_hears_and_a_missing_package_are_named(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "CONNECT_S", 0.5)
    for address, why in (("tcp://127.0.0.1:1", "Timed out"), ("tpc://host:1", "unknown address scheme")):
        with pytest.raises(IkdditError, match=rf"{address} cannot be reached \({why}.*leave both out"):
            everything(raw, tmp_path / "out", engine="dask", scheduler=address)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        IkdditError, match=r"Dask is not installed .*'\.\[scale\]', or set ingest\.engine: pro"
    ):
        everything(raw, tmp_path / "out", engine="dask")


def test_nobody_else_reaches_a_cluster_of_this_machine() -> None:
    me = psutil.Process()
    others = set(me.children(recursive=True))  # the running scheduler of this file
    with engines._connected(None, 1) as cluster:
        listening = [
            c.laddr.ip
            for process in {me, *me.children(recursive=True)} - others
            for c in process.net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert set(listening) == {"127.0.0.1"}
        address = cluster._client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        # Who speaks TLS and believes any certificate, but has none of this run.
        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE
        host, _, port = address.removeprefix("tls://").partition(":")
        with (
            socket.create_connection((host, int(port)), timeout=30) as plain,
            pytest.raises(ssl.SSLError, match="certificate required"),
            stranger.wrap_socket(plain) as connection,
        ):
            connection.recv(1)


def test_a_scheduler_without_an_engine_for_it_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"ingest.*scheduler is given, but engine is not dask"):
        parse_params({"ingest": {"scheduler": "tcp://host:8786"}})


def test_dask_is_not_imported_unless_it_is_chosen(raw: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from ikddit.mpom.ingest import ingest\n"
        "ingest(*sys.argv[1:])\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'dask', 'distributed'}))"
    )
    where = [str(tmp_path / name) for name in ("records", "quarantine", "report.json")]
    done = subprocess.run([sys.executable, "-c", code, str(raw), *where], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_workers_that_went_are_said_to_be_gone(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: tuple[str, Callable[[], None]]
) -> None:
    # Last of this file: it takes the worker away.
    monkeypatch.setattr(engines, "LOOK_S", 0.5)
    monkeypatch.setattr(engines, "CONNECT_S", 0.5)
    address, kill = scheduler
    values = settings(wafers_per_part=1, engine="dask", scheduler=address)
    found = engines.outcomes(Job(survey(raw, values), values, tmp_path), Census())
    assert next(found).barcodes == [["L1-000000"]]
    kill()
    remedy = rf"{address} has no workers; start some where the data are mounted \(dask worker {address}\)"
    with pytest.raises(IkdditError, match=remedy):
        list(found)
    with pytest.raises(IkdditError, match=remedy):  # from the beginning, too
        everything(raw, tmp_path / "out", engine="dask", scheduler=address)
