"""The canonical record (one wafer exposure) as a pyarrow schema: the one place that says what a record is."""

from typing import Any, Literal

import pyarrow as pa

MAP_SIZE = 64
"""Pixels per side of a map."""
PIXELS = MAP_SIZE * MAP_SIZE
RECORD_VERSION = "2"

ID_FIELDS = (
    "layer",
    "scanner_id",
    "chuck_id",
    "reticle_id",
    "chamber_id",
    "prev_layer",
    "prev_scanner_id",
    "prev_chuck_id",
    "prev_reticle_id",
    "prev_chamber_id",
)
"""Categorical ids of the exposure and of the previous layer's exposure; any may be null in foreign data."""

Units = Literal["nm", "rgb"]
CHANNELS: dict[str, int] = {"nm": 2, "rgb": 3}


def record_schema(log_names: list[str], units: Units = "nm") -> pa.Schema:
    """Build the schema of `data/records/*.parquet`.

    Maps are flat float32 lists in C order of shape (channels, 64, 64): channel 0 is dx, channel 1 is dy in
    nm (`units="nm"`), or R, G, B in [0, 1] (`units="rgb"`: foreign images without a known scale). Row 0 is
    the top of the wafer (largest y), column 0 the left (smallest x). Pixels whose mask is 0 hold NaN, and a
    map that does not exist (a wafer not yet measured) is all NaN with a mask of zeros: Parquet cannot read
    back a null inside a fixed-size list. `mark_count` and `mark_spread_nm` are null for images.
    `log_features` holds NaN where a channel was not received; its names are in the schema's metadata.

    Args:
        log_names: names of the log channels, in order.
        units: unit of the maps.

    >>> schema = record_schema(["dose_mj_cm2"])
    >>> schema.field("map").type.list_size
    8192
    >>> schema.metadata[b"units"]
    b'nm'
    """
    # Nothing in a map or mask is null, and saying so spares Parquet a level for each of their values.
    maps = pa.list_(pa.field("element", pa.float32(), nullable=False), CHANNELS[units] * PIXELS)
    mask = pa.list_(pa.field("element", pa.uint8(), nullable=False), PIXELS)
    # A fixed-size list of nothing cannot be read back either.
    features: pa.DataType = pa.list_(pa.float32(), len(log_names)) if log_names else pa.list_(pa.float32())
    fields: list[pa.Field[Any]] = [
        pa.field("barcode", pa.string(), nullable=False),
        pa.field("lot_id", pa.string()),
        pa.field("wafer_id", pa.string()),
        pa.field("slot", pa.int16()),
        *(pa.field(name, pa.string()) for name in ID_FIELDS),
        pa.field("public_id", pa.int32()),
        pa.field("exposed_at", pa.timestamp("us", tz="UTC")),
        pa.field("log_lines", pa.list_(pa.string())),
        pa.field("log_features", features),
        pa.field("prev_map", maps, nullable=False),
        pa.field("prev_valid", mask, nullable=False),
        pa.field("map", maps, nullable=False),
        pa.field("valid", mask, nullable=False),
        pa.field("mark_count", pa.list_(pa.uint16())),
        pa.field("mark_spread_nm", pa.list_(pa.float32())),
        pa.field("source", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
    metadata: dict[bytes | str, bytes | str] = {
        "record_version": RECORD_VERSION,
        "units": units,
        "map_shape": f"{CHANNELS[units]},{MAP_SIZE},{MAP_SIZE}",
        "log_names": "\n".join(log_names),
    }
    return pa.schema(fields, metadata=metadata)


def log_names_of(schema: pa.Schema) -> list[str]:
    """Names of the log channels, read back from a record schema's metadata."""
    text = (schema.metadata or {}).get(b"log_names", b"").decode()
    return text.split("\n") if text else []
