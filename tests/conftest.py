"""Fixtures that several rooms share."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ikddit.mpom.schema import ID_FIELDS, log_names_of, record_schema
from ikddit.overlay.grid import wafer_grid

MakeRecords = Callable[..., pa.Table]
PIPELINE_FOLDERS = [Path(__file__).parent / name for name in ("pipeline", "faults")]
DEAREST_FIRST = ("retrain", "end_to_end", "services", "kill", "disk", "determinism", "served", "team")
"""Groups of tests by what they take, for pytest-xdist: minutes of work that begin last would end alone."""
START = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def plain_log() -> None:
    """The package's logger as a program finds it: the command line and the fuzzed readers change it for the process."""
    log = logging.getLogger("ikddit")
    log.propagate = True
    log.handlers.clear()
    log.setLevel(logging.NOTSET)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that run DVC, MLflow or Prefect, group what shares a module's fixtures, dearest groups first.

    A group runs in one worker, so what it shares is made once. After the dearest groups come marked tests, then other
    groups; tests on their own come last and fill up the worker that is done sooner.
    """
    for item in items:
        if item.path.parent in PIPELINE_FOLDERS:
            item.add_marker(pytest.mark.pipeline)
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        if group and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group))

    def rank(item: pytest.Item) -> int:
        group = groups[item]
        if group in DEAREST_FIRST:
            return DEAREST_FIRST.index(group)
        dear = item.get_closest_marker("pipeline") is not None
        return len(DEAREST_FIRST) + (0 if dear else 1 if group else 2)

    items.sort(key=rank)


def _group(item: pytest.Item) -> str | None:
    """Name of a test's group: as marked, or its module's if it uses a fixture that is made once for the module."""
    if marker := item.get_closest_marker("xdist_group"):
        return str(marker.args[0])
    if not isinstance(item, pytest.Function):
        return None
    used = [found for name in item.fixturenames for found in item._fixtureinfo.name2fixturedefs.get(name, ())]
    return item.path.stem.removeprefix("test_") if any(found.scope == "module" for found in used) else None


def build_records(
    n: int,
    seed: int = 0,
    wafers_per_lot: int = 5,
    log_names: list[str] | None = None,
    units: str = "nm",
    target: bool = True,
    times: bool = True,
    lots: bool = True,
    scanners: int = 2,
    reticles: int = 3,
    **columns: list[Any],
) -> pa.Table:
    """A table of n plausible wafers in the record schema, by lot in order of time.

    Each lot has one scanner and one reticle; wafers alternate chucks. Maps are smooth plus noise (1 nm),
    valid inside the usable radius; a few log values are missing. `columns` replaces whole columns.
    """
    rng = np.random.default_rng(seed)
    names = ["dose_mj_cm2", "lens_temp_c", "align_tx_nm", "constant"] if log_names is None else log_names
    schema = record_schema(names, units)  # type: ignore[arg-type]
    grid = wafer_grid()
    lot = np.arange(n) // wafers_per_lot
    slot = np.arange(n) % wafers_per_lot + 1
    usable = grid.usable.reshape(-1)
    channels = 2 if units == "nm" else 3

    def maps() -> list[np.ndarray]:
        out = np.empty((n, channels, 64, 64), np.float32)
        for i in range(n):
            for c in range(channels):
                a, b = rng.normal(0, 0.01, 2)
                out[i, c] = a * grid.x_mm + b * grid.y_mm + rng.normal(0, 0.3, (64, 64))
        out = out if units == "nm" else 1 / (1 + np.exp(-out))
        return list(np.where(usable, out.reshape(n, channels, -1), np.nan).reshape(n, -1).astype(np.float32))

    features = rng.normal(np.resize([30.0, 22.0, 0.0, 5.0], max(len(names), 1)), 1.0, (n, max(len(names), 1)))
    features = features[:, : len(names)].astype(np.float32)
    if "constant" in names:
        features[:, names.index("constant")] = 5.0
    features[rng.random(features.shape) < 0.05] = np.nan
    scanner = [f"SC{k % scanners + 1}" for k in lot]
    reticle = [f"RTC{(k // scanners) % reticles + 1:03d}" for k in lot]
    ids: dict[str, list[str]] = {name: ["A1"] * n for name in ID_FIELDS}
    ids |= {"scanner_id": scanner, "reticle_id": reticle, "chuck_id": [f"{s % 2 + 1}" for s in slot]}
    lines = [
        [
            f"dose {rng.normal(30, 1):.2f} mJ/cm2",
            f"EVENT levelling x={rng.normal(0, 50):.1f} y={rng.normal(0, 50):.1f} mm on {scanner[i]}",
        ]
        for i in range(n)
    ]
    data: dict[str, Any] = {
        "barcode": [f"W{i:06d}" for i in range(n)],
        "lot_id": [f"L{k:04d}" for k in lot] if lots else [None] * n,
        "wafer_id": [f"L{k:04d}.{s:02d}" for k, s in zip(lot, slot, strict=True)],
        "slot": slot.tolist(),
        **ids,
        "public_id": [7] * n,
        "exposed_at": [
            START + timedelta(hours=int(k), minutes=int(s)) if times else None
            for k, s in zip(lot, slot, strict=True)
        ],
        "log_lines": lines,
        "log_features": list(features),
        "prev_map": maps(),
        "prev_valid": [usable.astype(np.uint8)] * n,
        "map": maps() if target else [np.full(channels * 4096, np.nan, np.float32)] * n,
        "valid": [(usable if target else usable & False).astype(np.uint8)] * n,
        "mark_count": [None] * n,
        "mark_spread_nm": [None] * n,
        "source": [f"lots/L{k:04d}.zip!logs_{i}.json" for i, k in enumerate(lot)],
        "sha256": [f"{i:064x}" for i in range(n)],
    } | columns
    assert log_names_of(schema) == names
    return pa.table({field.name: pa.array(data[field.name], field.type) for field in schema}, schema=schema)


@pytest.fixture(scope="session")
def make_records() -> MakeRecords:
    """`make_records(n, ...)`: see `build_records`."""
    return build_records
