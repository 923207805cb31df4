"""The readers of raw data and settings, each as something that bytes can be fed to."""

import json
import logging
import os
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from contract import Target, require
from mutate import (
    Tree,
    csv_bytes,
    damage,
    damage_csv,
    damage_npy,
    damage_png,
    damage_tree,
    damage_yaml,
    damage_zip,
    json_mutator,
    pack_tree,
    parquet_bytes,
    parquet_mutator,
    unpack_tree,
    zip_bytes,
)
from rawmpom import NAMES, USABLE, description, item, make_map, npz

from ikddit.errors import IkdditError, InputError
from ikddit.mpom.encoding import decode_png, nm_from_rgb
from ikddit.mpom.ingest import ingest
from ikddit.mpom.logs import parse_logs, parse_public_id
from ikddit.mpom.parts import lists_to_numpy
from ikddit.mpom.record import Record, RecordBuffer
from ikddit.mpom.schema import ID_FIELDS, log_names_of, record_schema
from ikddit.mpom.tables import wafers_of
from ikddit.mpom.wafer import place_features
from ikddit.params import IngestParams, load_params

ID_NAMES = ("barcode", "lot_id", "wafer_id", "slot", *ID_FIELDS, "exposed_at")
LOG_NAMES = ("features", "feature_names", "missing", "lines", "ids", *ID_NAMES)
MARK_NAMES = (
    *ID_NAMES,
    "wafer_x_mm",
    "wafer_y_mm",
    "ovl_x_nm",
    "ovl_y_nm",
    "exposure",
    "valid",
    "field_x_mm",
)
DESCRIPTION_NAMES = (
    "units",
    "scale_nm",
    "encoding",
    "sign",
    "reference",
    "pitch_mm",
    "feature_names",
    "format_version",
)
SETTINGS = IngestParams.model_validate({"workers": 1})


@cache
def wafer() -> dict[str, bytes]:
    """The files of one sound wafer, key 000000."""
    return item("000000")


@cache
def floats() -> bytes:
    """Its npz."""
    maps = {"prev_map": make_map(0).astype(np.float32), "map": make_map(1).astype(np.float32)}
    return npz(**maps, prev_valid=USABLE.astype(np.uint8), valid=USABLE.astype(np.uint8))


@cache
def other_wafer() -> dict[str, bytes]:
    """A sound wafer beside the one that is damaged: it must survive."""
    return item("000001", 1)


def inner(name: str, data: bytes, rng: Random) -> bytes:
    """Damage a file of a data set by what its name says it is."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix == ".png":
        return damage_png(data, rng)
    if suffix == ".json":
        names = DESCRIPTION_NAMES if name.endswith("dataset.json") else LOG_NAMES
        return json_mutator(names)(data, rng)
    if suffix == ".npz":
        return damage_zip(data, rng, lambda _, content, r: damage_npy(content, r))
    if suffix == ".zip" and rng.randrange(8):
        return damage_zip(data, rng, inner)
    if suffix == ".csv":
        return damage_csv(data, rng, MARK_NAMES)
    if suffix == ".parquet":
        return parquet_mutator(MARK_NAMES)(data, rng)
    return damage(data, rng)


# One file ---------------------------------------------------------------------------------------------------


def read_png(data: bytes, folder: Path) -> None:
    """A PNG of 64 pixels, and its maps in nm."""
    rgb = decode_png(data, 64, "a.png")
    require(rgb.shape == (64, 64, 3) and rgb.dtype.name == "uint8", "a PNG is 64x64 RGB or refused")
    maps, valid = nm_from_rgb(rgb, 16.0, "a.png")
    require(bool(np.isfinite(maps[:, valid == 1]).all()), "valid pixels are finite")


def read_logs(data: bytes, folder: Path) -> None:
    """Logs of a data set that knows its channels, up to the table that goes to disk."""
    logs = parse_logs(data, "logs_1.json")
    place_features(logs, NAMES, "logs_1.json")
    _write_logs(NAMES, [logs])


def _write_logs(names: list[str], found: list[Any]) -> None:
    """Put the text half of records through the writer."""
    schema = record_schema(names)
    require(log_names_of(schema) == names, "names of channels survive the schema")
    buffer = RecordBuffer(len(found), schema)
    nothing, mask = np.full((2, 64, 64), np.nan, np.float32), np.zeros((64, 64), np.uint8)
    for logs in found:
        ids = logs.ids or {}
        barcode = ids.get("barcode") or "k"
        maps: dict[str, Any] = {"prev_map": nothing, "prev_valid": mask, "map": nothing, "valid": mask}
        buffer.add(Record(barcode, ids, 1, logs.lines, logs.features, **maps, source="s", sha256=""))
    table = buffer.take()
    table.validate(full=True)
    table.select([*ID_NAMES, "log_lines", "log_features"]).to_pylist()


def read_id(data: bytes, folder: Path) -> None:
    require(0 <= parse_public_id(data, "id_1.txt") < 1000, "an id is 0 to 999")


# A data set -------------------------------------------------------------------------------------------------


def run_ingest(folder: Path, raw: Path) -> dict[str, Any]:
    """Ingest `raw`, and hold report, parts and quarantine to each other.

    Returns:
        The report, with `sources` of the records.
    """
    out = folder / "out"
    before = _listing(raw)
    failure: IkdditError | None = None
    try:
        ingest(raw, out / "records", out / "quarantine", out / "report.json", SETTINGS)
    except IkdditError as error:
        failure = error
    require(_listing(raw) == before, "raw data are left as they were")
    if failure is not None and not (out / "report.json").exists():
        require(not (out / "records").exists(), "no records without a report")
        raise failure
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    lines = [json.loads(line) for line in (out / "quarantine/quarantine.jsonl").read_text().splitlines()]
    require(report["found"] == report["records"] + report["quarantined"], "found = records + quarantined")
    require(len(lines) == report["quarantined"], "each quarantined item has its line")
    for line in lines:
        require(line["field"] != "reader", f"no error nobody thought of: {line['reason'][:300]}")
        require(
            all(line[key] for key in ("file", "field", "reason", "remedy")), "a line says file, field, reason"
        )
    if failure is not None:
        require(report["records"] == 0, "a gate error means no records")
        raise failure
    tables = [pq.read_table(part) for part in sorted((out / "records").glob("part-*.parquet"))]
    _check_records(pa.concat_tables(tables), report)
    report["sources"] = [source for table in tables for source in table["source"].to_pylist()]
    return report


def _check_records(records: pa.Table, report: dict[str, Any]) -> None:
    require(len(records) == report["records"], "the parts hold the records that are reported")
    barcodes = records["barcode"].to_pylist()
    require(all(barcodes) and len(set(barcodes)) == len(barcodes), "barcodes are there and different")
    names = log_names_of(records.schema)
    require(len(names) == report["log_channels"], "the schema names as many channels as are reported")
    for name, mask in (("map", "valid"), ("prev_map", "prev_valid")):
        values = lists_to_numpy(records[name], np.nan).reshape(len(records), -1, 4096)
        valid = lists_to_numpy(records[mask], 0).reshape(len(records), 1, 4096)
        require(bool((valid <= 1).all()), "a mask is 0 or 1")
        agree = np.isfinite(values) == (valid == 1)
        require(bool(agree.all()), "maps are finite where they are valid, and NaN elsewhere")


def _listing(raw: Path) -> list[tuple[str, int]]:
    paths = raw.rglob("*") if raw.is_dir() else [raw]
    return sorted((str(p), p.lstat().st_mtime_ns) for p in paths)


def _place(raw: Path, tree: Tree) -> bool:
    """Write a folder as far as its names are names; says whether anything was written."""
    raw.mkdir()
    for name, data in tree:
        path = os.path.normpath(os.path.join(os.fsencode(raw), name.replace(b"\0", b"")))
        if not path.startswith(os.fsencode(raw) + b"/"):
            continue
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as handle:
                handle.write(data)
        except OSError:  # a name that is too long, or a file where a folder should be
            continue
    return any(raw.iterdir())


def read_item(data: bytes, folder: Path, damaged: str) -> None:
    """A data set of two wafers, one file of the first of which is the input; the second must survive."""
    raw = folder / "raw"
    files = {"dataset.json": json.dumps(description()).encode(), **wafer(), **other_wafer(), damaged: data}
    _place(raw, [(name.encode(), content) for name, content in files.items()])
    report = run_ingest(folder, raw)
    require(report["found"] == 2 and "000001" in report["sources"], "a bad file costs its own wafer only")


def read_zip(data: bytes, folder: Path) -> None:
    """A data set of a sound wafer and a zip, which is the input."""
    raw = folder / "raw"
    files = {"dataset.json": json.dumps(description()).encode(), **other_wafer(), "lots/L1.zip": data}
    _place(raw, [(name.encode(), content) for name, content in files.items()])
    report = run_ingest(folder, raw)
    require("000001" in report["sources"], "a bad zip costs its own items only")


def read_top_zip(data: bytes, folder: Path) -> None:
    """A zip that is the whole data set."""
    raw = folder / "raw.zip"
    raw.write_bytes(data)
    run_ingest(folder, raw)


def read_tree(data: bytes, folder: Path) -> None:
    """A folder of any files."""
    if _place(folder / "raw", unpack_tree(data)):
        run_ingest(folder, folder / "raw")


def read_description(data: bytes, folder: Path) -> None:
    """The dataset.json of a sound wafer."""
    _place(folder / "raw", [(b"dataset.json", data), *((n.encode(), d) for n, d in other_wafer().items())])
    run_ingest(folder, folder / "raw")


def read_marks(data: bytes, folder: Path, suffix: str) -> None:
    """A folder of two mark tables, one of which is the input, with logs beside; the other must survive."""
    sound = csv_bytes(marks("SOUND"))
    tree = [
        (f"a{suffix}".encode(), data),
        (b"sound.csv", sound),
        (b"logs_W1.json", wafer()["logs_000000.json"]),
    ]
    _place(folder / "raw", tree)
    report = run_ingest(folder, folder / "raw")
    require(
        any(s.startswith("sound.csv#") for s in report["sources"]), "a bad table costs its own wafers only"
    )
    if suffix == ".csv" or data.startswith(b"PAR1"):
        _same_when_streamed(folder / "raw" / f"a{suffix}")


def _same_when_streamed(path: Path) -> None:
    """A table too large to be read at once is split into the same wafers, or refused."""

    def wafers(whole_bytes: int) -> list[tuple[str, int]] | None:
        found = wafers_of(path, path.name, SETTINGS.marks, whole_bytes)
        try:
            return sorted((code, -1 if isinstance(rows, InputError) else len(rows)) for code, rows in found)
        except InputError:
            return None

    streamed, whole = wafers(0), wafers(1 << 30)
    require(not streamed or not whole or streamed == whole, "a table that is streamed holds the same wafers")


def marks(*barcodes: str) -> pa.Table:
    """A mark table, twelve marks a wafer."""
    at = np.linspace(-100, 100, 12)
    rows: dict[str, Any] = {name: [] for name in MARK_NAMES[:-1]}
    for code in barcodes:
        values: dict[str, Any] = dict.fromkeys(ID_FIELDS, "A")
        values |= {"barcode": code, "lot_id": "L1", "wafer_id": "L1.03", "slot": "3", "valid": "1"}
        values |= {"exposed_at": "2026-01-03T12:00:00Z"}
        for i, x in enumerate(at.tolist()):
            exposure = "current" if i % 4 else "previous"
            numbers = {"wafer_x_mm": round(x, 3), "wafer_y_mm": round(-x / 2, 3)}
            numbers |= {"ovl_x_nm": round(x / 20 + 1, 4), "ovl_y_nm": round(2 - x / 30, 4)}
            for name, value in {**values, "exposure": exposure, **numbers}.items():
                rows[name].append(value)
    return pa.table(rows)


def read_params(data: bytes, folder: Path) -> None:
    """A params.yaml."""
    (folder / "params.yaml").write_bytes(data)
    load_params(folder / "params.yaml")


# Seeds ------------------------------------------------------------------------------------------------------


@cache
def _trees() -> list[bytes]:
    top = (b"dataset.json", json.dumps(description()).encode())
    mine = [(name.encode(), data) for name, data in wafer().items()]
    yours = [(b"lots/L1/" + name.encode(), data) for name, data in other_wafer().items()]
    table = csv_bytes(marks("W1", "W2"))
    packed = (b"lots/L2.zip", zip_bytes(list(item("000002", 2).items())))
    return [
        pack_tree([top, *mine, (b"maps_000000.npz", floats()), *yours]),
        pack_tree([top, packed, *mine]),
        pack_tree(
            [(b"a.csv", table), (b"b.parquet", parquet_bytes(marks("P1"))), (b"logs_W1.json", mine[2][1])]
        ),
        pack_tree(mine),
    ]


def _logs() -> list[bytes]:
    return [wafer()["logs_000000.json"], b'{"features": [1, 2.5, 3]}', other_wafer()["logs_000001.json"]]


def _zips() -> list[bytes]:
    mine = list(wafer().items())
    return [
        zip_bytes([*mine, ("maps_000000.npz", floats())]),
        zip_bytes([(f"L1/{name}", data) for name, data in mine]),
    ]


def _nested() -> list[bytes]:
    return [
        zip_bytes([("b.zip", zip_bytes(list(wafer().items())))]),
        zip_bytes([*wafer().items(), ("c/b.zip", _zips()[0])]),
    ]


def _top() -> list[bytes]:
    text = json.dumps(description()).encode()
    files = list(wafer().items())
    return [
        zip_bytes([("dataset.json", text), *files]),
        zip_bytes([("d/dataset.json", text), *((f"d/{n}", d) for n, d in files)]),
    ]


def _descriptions() -> list[bytes]:
    return [
        json.dumps(description(), ensure_ascii=False).encode(),
        json.dumps({"format": "mpom", "format_version": 1}).encode(),
    ]


def _params() -> list[bytes]:
    from ikddit.params import Params

    given = json.loads(Params().model_dump_json(by_alias=True))
    given["simulate"]["shift"] = {"scanner": "LITH03", "day": 45, "nm": 2.5}
    return [
        json.dumps(given).encode(),
        b"seed: 1\nmodel: T/8\ntrain: {steps: 10, learning_rate: 1e-4}\nsimulate: {lots: 3}\n",
    ]


def _zip_mutate(data: bytes, rng: Random) -> bytes:
    return damage_zip(data, rng, inner)


RAW_TARGETS = [
    Target(
        "png",
        read_png,
        lambda: [wafer()["overlay_000000.png"], wafer()["overlay_prev_000000.png"]],
        damage_png,
        ("a.png",),
        20,
    ),
    Target("logs", read_logs, _logs, json_mutator(LOG_NAMES), ("logs_1.json",), 22),
    Target("id", read_id, lambda: [b"17\n", b"0", b"999"], damage, ("id_1.txt",), 6),
    Target(
        "npz",
        partial(read_item, damaged="maps_000000.npz"),
        lambda: [floats()],
        lambda data, rng: inner("maps.npz", data, rng),
        ("raw",),
        5,
    ),
    Target("zip", read_zip, _zips, _zip_mutate, ("raw",), 6),
    Target("zip in zip", read_zip, _nested, _zip_mutate, ("raw",), 3),
    Target("data set as a zip", read_top_zip, _top, _zip_mutate, ("raw.zip", "dataset.json"), 4),
    Target("folder", read_tree, _trees, lambda d, r: damage_tree(d, r, inner), ("raw", "dataset.json"), 5),
    Target(
        "dataset.json", read_description, _descriptions, json_mutator(DESCRIPTION_NAMES), ("dataset.json",), 6
    ),
    Target(
        "marks csv",
        partial(read_marks, suffix=".csv"),
        lambda: [csv_bytes(marks("W1", "W2")), csv_bytes(marks("W1"))],
        lambda data, rng: damage_csv(data, rng, MARK_NAMES),
        ("raw",),
        5,
    ),
    Target(
        "marks parquet",
        partial(read_marks, suffix=".parquet"),
        lambda: [parquet_bytes(marks("W1", "W2"))],
        parquet_mutator(MARK_NAMES),
        ("raw",),
        5,
    ),
    Target("params.yaml", read_params, _params, damage_yaml, ("params.yaml",), 12),
]
logging.getLogger("ikddit").setLevel(logging.ERROR)  # a million lines of what was refused help nobody
