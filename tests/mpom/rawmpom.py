"""A small writer of raw MPOM data and mark tables, independent of the library that reads them."""

import io
import json
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SCALE_NM = 16.0
PITCH_MM = 4.6875
NAMES = ["dose_mj_cm2", "lens_temp_c", "align_tx_nm"]
AXIS_MM = (np.arange(64) + 0.5) * PITCH_MM - 150.0
USABLE = np.hypot(*np.meshgrid(AXIS_MM, AXIS_MM[::-1])) <= 147.0


def make_map(seed: int) -> np.ndarray:
    """(2, 64, 64) nm: a tilt and a little noise."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(AXIS_MM, AXIS_MM[::-1])
    a, b = rng.normal(0, 0.01, (2, 2, 1, 1))
    return a * x + b * y + rng.normal(0, 0.3, (2, 64, 64))


def png(map_nm: np.ndarray, valid: np.ndarray = USABLE, scale_nm: float = SCALE_NM) -> bytes:
    """8-bit RGB PNG as the format says it."""
    known = map_nm[:, valid > 0].astype(float)
    codes = np.clip(np.rint(127.5 + known * 127.5 / scale_nm), 0, 255)
    pixels = np.zeros((*valid.shape, 3), np.uint8)
    pixels[valid > 0, :2], pixels[valid > 0, 2] = codes.T, 255
    return png_bytes(Image.fromarray(pixels))


@cache
def png_of(seed: int) -> bytes:
    """The PNG of `make_map(seed)`."""
    return png(make_map(seed))


def png_bytes(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def description(**changes: Any) -> dict[str, Any]:
    """dataset.json; a change to None removes the key."""
    value = {
        "format": "mpom",
        "format_version": 1,
        "units": "nm",
        "scale_nm": SCALE_NM,
        "encoding": "rg-linear",
        "sign": "current_minus_previous",
        "reference": "wafer",
        "pitch_mm": PITCH_MM,
        "field_mm": [26, 33],
        "feature_names": NAMES,
        "wafers": 1,
    } | changes
    return {key: entry for key, entry in value.items() if entry is not None}


def item(key: str, seed: int = 0, lot: str = "L1", **changes: Any) -> dict[str, bytes]:
    """The files of one wafer by name; `changes` go into the logs JSON (None removes a key)."""
    rng = np.random.default_rng(seed)
    slot = seed % 25 + 1
    ids = {
        "barcode": f"{lot}-{key}",
        "lot_id": lot,
        "wafer_id": f"{lot}.{slot:02d}",
        "slot": slot,
        "layer": "M2",
        "scanner_id": "SC1",
        "chuck_id": "1",
        "reticle_id": "RT7",
        "chamber_id": "CH3",
        "prev_layer": "M1",
        "prev_scanner_id": "SC2",
        "prev_chuck_id": "2",
        "prev_reticle_id": "RT4",
        "prev_chamber_id": "CH1",
        "exposed_at": f"2026-01-{slot:02d}T12:00:00Z",
    }
    logs = {
        "features": [round(float(v), 4) for v in rng.normal(size=len(NAMES))],
        "feature_names": NAMES,
        "missing": [],
        "lines": [f"T {rng.normal(22, 0.01):.3f} degC", "WARN levelling hot spot x=-10.7 y=-52.6 mm"],
        "ids": ids,
    } | changes
    logs = {name: value for name, value in logs.items() if value is not None}
    return {
        f"overlay_prev_{key}.png": png_of(2 * seed),
        f"overlay_{key}.png": png_of(2 * seed + 1),
        f"logs_{key}.json": json.dumps(logs).encode(),
        f"id_{key}.txt": f"{seed % 1000}\n".encode(),
    }


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def data_set(folder: Path, wafers: int = 4, layout: str = "flat", **changes: Any) -> Path:
    """A sound data set: `flat`, `nested` (lots/L1/...) or `zip` (lots/L1.zip), two lots."""
    write(folder, {"dataset.json": json.dumps(description(**changes)).encode()})
    for lot, seeds in (("L1", range(wafers // 2)), ("L2", range(wafers // 2, wafers))):
        files: dict[str, bytes] = {}
        for seed in seeds:
            files |= item(f"{seed:06d}", seed, lot)
        if layout == "flat":
            write(folder, files)
        elif layout == "nested":
            write(folder / "lots" / lot, files)
        else:
            write(folder / "lots", {f"{lot}.zip": zip_of(files)})
    return folder
