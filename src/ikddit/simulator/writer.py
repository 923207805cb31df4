"""Simulated data on disk: MPOM items (PNG, JSON, TXT; one zip or folder per lot), or mark tables with logs."""

import io
import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ikddit.atomic import atomic_dir, write_json
from ikddit.console import log, progress
from ikddit.mpom.encoding import encode_png, rgb_from_nm
from ikddit.overlay.grid import FIELD_HEIGHT_MM, FIELD_WIDTH_MM, PITCH_MM
from ikddit.params import SimulateParams
from ikddit.simulator.constants import (
    CHAMBER_IDS,
    CHUCK_IDS,
    CHUCKS,
    LAYERS,
    RETICLE_IDS,
    RETICLES,
    SCANNER_IDS,
    SIMULATOR_VERSION,
    Fab,
)
from ikddit.simulator.floors import LotFloor, floor_report, lot_floor, subset_stride
from ikddit.simulator.logs import FEATURE_NAMES, features, log_lines
from ikddit.simulator.parallel import map_lots
from ikddit.simulator.tables import mark_table
from ikddit.simulator.wafers import Wafers, draw_lots, line_stream, lot_name, lot_numbers

FAB_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
"""Day 0 of every fab's life."""


def ids_of(wafers: Wafers, i: int) -> dict[str, str | int]:
    """Ids of wafer `i` by their names in records, with the time of exposure (ISO, UTC)."""
    w = wafers
    lot_id, _, slot = w.barcode[i].rpartition("W")
    return {
        "barcode": w.barcode[i],
        "lot_id": lot_id,
        "wafer_id": f"{lot_id}.{slot}",
        "slot": int(w.slot[i]),
        "layer": LAYERS[w.layer[i]],
        "scanner_id": SCANNER_IDS[w.scanner[i]],
        "chuck_id": CHUCK_IDS[w.chuck[i]],
        "reticle_id": RETICLE_IDS[w.reticle[i]],
        "chamber_id": CHAMBER_IDS[w.chamber[i]],
        "prev_layer": LAYERS[w.prev_layer[i]],
        "prev_scanner_id": SCANNER_IDS[w.prev_scanner[i]],
        "prev_chuck_id": CHUCK_IDS[w.prev_chuck[i]],
        "prev_reticle_id": RETICLE_IDS[w.prev_reticle[i]],
        "prev_chamber_id": CHAMBER_IDS[w.prev_chamber[i]],
        "exposed_at": exposed_at(w, i).isoformat().replace("+00:00", "Z"),
    }


def exposed_at(wafers: Wafers, i: int) -> datetime:
    """Time of exposure, to the second."""
    seconds = round((int(wafers.lot[i]) + float(wafers.lot_minutes[i])) * 60.0)
    return FAB_EPOCH + timedelta(seconds=seconds)


def public_id(wafers: Wafers, i: int) -> int:
    """Integer below 1000 as in the public IKDDiT layout: scanner, chuck and reticle in one number."""
    return int((wafers.scanner[i] * CHUCKS + wafers.chuck[i]) * RETICLES + wafers.reticle[i])


def wafer_files(
    wafers: Wafers, params: SimulateParams, rng: np.random.Generator
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of one lot as (name, content); `rng` draws its nuisance log lines."""
    images = rgb_from_nm(wafers.map, wafers.valid, params.scale_nm)
    prev_images = rgb_from_nm(wafers.prev_map, wafers.prev_valid, params.scale_nm)
    for i, (key, logs) in enumerate(_logs_files(wafers, rng)):
        yield f"overlay_prev_{key}.png", encode_png(prev_images[i])
        yield f"overlay_{key}.png", encode_png(images[i])
        yield f"logs_{key}.json", logs
        yield f"id_{key}.txt", f"{public_id(wafers, i)}\n".encode()
        if params.npz:
            arrays = {"map": wafers.map[i], "prev_map": wafers.prev_map[i]}
            masks = {"valid": wafers.valid[i], "prev_valid": wafers.prev_valid[i]}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays, **masks)
            yield f"maps_{key}.npz", buffer.getvalue()


def _logs_files(wafers: Wafers, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Barcode and content of logs_<barcode>.json of each wafer."""
    values, missing = features(wafers)
    names = np.array(FEATURE_NAMES)
    for i, key in enumerate(wafers.barcode):
        record = {
            "features": values[i].tolist(),
            "feature_names": FEATURE_NAMES,
            "missing": names[missing[i]].tolist(),
            "lines": log_lines(wafers, i, rng),
            "ids": ids_of(wafers, i),
        }
        yield key, json.dumps(record, allow_nan=False).encode()


def _write_tables(params: SimulateParams, folder: Path, name: str, wafers: Wafers) -> None:
    """One mark table of the lot, and the logs of its wafers beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    table = mark_table(wafers, [ids_of(wafers, i) for i in range(len(wafers))])
    if params.layout == "csv":
        pacsv.write_csv(table, folder / f"marks_{name}.csv")
    else:
        pq.write_table(table, folder / f"marks_{name}.parquet", compression="zstd")
    for key, logs in _logs_files(wafers, line_stream(params, int(wafers.lot[0]))):
        (folder / f"logs_{key}.json").write_bytes(logs)


def write_lot(params: SimulateParams, folder: Path, wafers: Wafers) -> None:
    """Write one lot below `folder`/lots as `params.layout` says; the same wafers give the same bytes."""
    name = lot_name(params, int(wafers.lot[0]))
    if params.layout in ("csv", "parquet"):
        _write_tables(params, folder / "lots", name, wafers)
        return
    files = wafer_files(wafers, params, line_stream(params, int(wafers.lot[0])))
    lots = folder / "lots"
    if params.layout == "folders":
        (lots / name).mkdir(parents=True)
        for member, content in files:
            (lots / name / member).write_bytes(content)
        return
    lots.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(lots / f"{name}.zip", "w", zipfile.ZIP_STORED) as archive:
        for member, content in files:
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), content)


def _draw_and_write(fab: Fab, params: SimulateParams, item: tuple[int, bool], *, folder: Path) -> LotFloor:
    lot, withheld = item
    wafers = draw_lots(fab, params, [lot])
    write_lot(params, folder, wafers)
    return lot_floor(fab, wafers, withheld)


def write_dataset(params: SimulateParams, out_dir: Path | str, workers: int = 0) -> dict[str, Any]:
    """Simulate and write a data set in the MPOM layout; it replaces `out_dir` as a whole when complete.

    Args:
        params: what to simulate; the same params give the same bytes, whatever the number of workers.
        out_dir: folder to write.
        workers: processes; 0 takes all cores.

    Returns:
        The content of dataset.json, noise floor included.

    Raises:
        ParamsError: more lots than the window has minutes.
    """
    stride = subset_stride(params)
    lots = [(int(lot), i % stride == 0) for i, lot in enumerate(lot_numbers(params))]
    with atomic_dir(out_dir) as scratch:
        task = partial(_draw_and_write, folder=scratch)
        done = map_lots(task, params, lots, workers)
        floors = list(progress(done, "simulate", total=len(lots), unit="lots"))
        description = describe(params, floors)
        write_json(scratch / "dataset.json", description)
    floor = description["floor"]
    log.info(
        "simulated %d wafers in %d lots, floor %.3f nm", description["wafers"], len(lots), floor["rmse_nm"]
    )
    return description


def describe(params: SimulateParams, floors: list[LotFloor]) -> dict[str, Any]:
    """Build dataset.json: layout, units, seeds and the noise floor."""
    return {
        "format": "mpom",
        "format_version": 1,
        "units": "nm",
        "scale_nm": params.scale_nm,
        "encoding": "rg-linear",
        "sign": "current_minus_previous",
        "reference": "wafer",
        "pitch_mm": PITCH_MM,
        "field_mm": [FIELD_WIDTH_MM, FIELD_HEIGHT_MM],
        "feature_names": list(FEATURE_NAMES),
        "ids": {
            "layer": list(LAYERS[1:]),
            "scanner_id": list(SCANNER_IDS),
            "chuck_id": list(CHUCK_IDS),
            "reticle_id": list(RETICLE_IDS),
            "chamber_id": list(CHAMBER_IDS),
            "prev_layer": list(LAYERS[:-1]),
            "prev_scanner_id": list(SCANNER_IDS),
            "prev_chuck_id": list(CHUCK_IDS),
            "prev_reticle_id": list(RETICLE_IDS),
            "prev_chamber_id": list(CHAMBER_IDS),
        },
        "simulator_version": SIMULATOR_VERSION,
        # Without a forced shift nothing is said of one: the same bytes as before there was the option.
        "seeds": params.model_dump(mode="json", exclude_none=True),
        "wafers": sum(f.wafers for f in floors),
        "lots": len(floors),
        "floor": floor_report(params, floors),
    }
