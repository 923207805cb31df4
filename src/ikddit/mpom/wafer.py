"""One MPOM item (PNGs, JSON, TXT, optional npz) to one record."""

import hashlib
import io
import tokenize
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from ikddit.errors import InputError
from ikddit.mpom import encoding
from ikddit.mpom.archive import Member, Reader, open_zip, read_member
from ikddit.mpom.logs import Logs, parse_logs, parse_public_id
from ikddit.mpom.record import Record
from ikddit.mpom.schema import CHANNELS, MAP_SIZE, Units
from ikddit.mpom.source import ROLES, RawItem

Map = tuple[Float32[np.ndarray, "c h w"], UInt8[np.ndarray, "h w"]]
_NPZ_SHAPES = {
    "map": (2, MAP_SIZE, MAP_SIZE),
    "prev_map": (2, MAP_SIZE, MAP_SIZE),
    "valid": (MAP_SIZE, MAP_SIZE),
    "prev_valid": (MAP_SIZE, MAP_SIZE),
}


@dataclass(frozen=True)
class Layout:
    """What holds for every item of an MPOM data set.

    Args:
        log_names: names of the log channels, in order.
        scale_nm: PNG scale; None: images stay RGB.
        flip_sign: whether the files hold previous minus current.
        image_size: pixels per side of the PNGs.
        has_target: whether items have an `overlay_<key>.png`.
    """

    log_names: list[str]
    scale_nm: float | None
    flip_sign: bool = False
    image_size: int = MAP_SIZE
    has_target: bool = True

    @property
    def units(self) -> Units:
        """Unit of the maps."""
        return "rgb" if self.scale_nm is None else "nm"


@dataclass(slots=True)
class Clipping:
    """Values on valid marks, and how many of them sit at the end of the PNG's range."""

    values: int = 0
    clipped: int = 0


def read_wafer(item: RawItem, reader: Reader, layout: Layout, clipping: Clipping) -> Record:
    """Read one item.

    Args:
        item: from `ikddit.mpom.source.walk`, without a rejection.
        reader: for the item's data set.
        layout: of the item's data set.
        clipping: is added to.

    Raises:
        InputError: the item cannot be used; names file, field, reason and remedy.
    """
    _check_partners(item, layout)
    raw = {role: reader.read(item.container, item.members[role]) for role in ROLES if role in item.members}
    files = {role: item.container.name(member.name) for role, member in item.members.items()}
    logs = parse_logs(raw["logs"], files["logs"], layout.log_names)
    features = place_features(logs, layout.log_names, files["logs"])
    ids = logs.ids or {}
    if "id" not in raw and logs.ids is None:
        reason = "missing partner: no id file, and no ids in the logs"
        raise InputError(f"{item.name}: id*.txt", "id", reason, "add it (one whole number below 1000)")
    public_id = parse_public_id(raw["id"], files["id"]) if "id" in raw else None
    prev = _read_map(raw["overlay_prev"], files["overlay_prev"], layout, clipping)
    if "overlay" in raw:
        target = _read_map(raw["overlay"], files["overlay"], layout, clipping)
    else:
        target = _absent(layout.units)
    if "maps" in raw and layout.scale_nm is not None:
        floats = _read_npz(raw["maps"], files["maps"], reader.max_bytes, layout)
        _check_agreement(floats["prev_map"], prev, layout, files["maps"], "prev_map")
        if "overlay" in raw:
            _check_agreement(floats["map"], target, layout, files["maps"], "map")
        prev, target = floats["prev_map"], floats["map"] if "overlay" in raw else target
    barcode = ids.get("barcode")
    return Record(
        barcode=barcode if isinstance(barcode, str) else item.barcode,
        ids=ids,
        public_id=public_id,
        log_lines=logs.lines,
        log_features=features,
        prev_map=prev[0],
        prev_valid=prev[1],
        map=target[0],
        valid=target[1],
        source=item.name,
        sha256=hashlib.sha256(b"".join(raw.values())).hexdigest(),
    )


def _check_partners(item: RawItem, layout: Layout) -> None:
    partners = {"overlay_prev": "overlay_prev*.png", "logs": "logs*.json"}
    if layout.has_target:
        partners["overlay"] = "overlay*.png"
    for role, pattern in partners.items():
        if role not in item.members:
            remedy = "add the file beside the others of its key"
            if role == "overlay":
                remedy += ", or ingest wafers without a measured map as a data set of their own"
            raise InputError(f"{item.name}: {pattern}", role, "missing partner", remedy)


def place_features(logs: Logs, names: list[str], file: str) -> Float32[np.ndarray, " channels"]:
    """Check the channels against the data set's, and put NaN where one was not received."""
    if len(logs.features) != len(names):
        reason = f"{len(logs.features)} features, the data set has {len(names)}"
        raise InputError(file, "features", reason, "ingest data of other channels as a data set of their own")
    if logs.names is not None and logs.names != names:
        at = next(i for i, (a, b) in enumerate(zip(logs.names, names, strict=True)) if a != b)
        reason = f"entry {at} is {logs.names[at]!r}, the data set has {names[at]!r}"
        raise InputError(file, "feature_names", reason, "write the data set's names in the data set's order")
    if logs.missing:
        unknown = set(logs.missing).difference(names)
        if unknown:
            raise InputError(
                file, "missing", f"unknown channel {sorted(unknown)[0]!r}", "write the file again"
            )
        absent = set(logs.missing)
        logs.features[[i for i, name in enumerate(names) if name in absent]] = np.nan
    return logs.features


def _absent(units: Units) -> Map:
    """A map that does not exist: all NaN, mask 0."""
    shape = (CHANNELS[units], MAP_SIZE, MAP_SIZE)
    return np.full(shape, np.nan, np.float32), np.zeros(shape[1:], np.uint8)


def _read_map(data: bytes, file: str, layout: Layout, clipping: Clipping) -> Map:
    rgb = encoding.decode_png(data, layout.image_size, file)
    if layout.scale_nm is None:
        maps, valid = encoding.unit_from_rgb(rgb), np.ones(rgb.shape[:2], np.uint8)
    else:
        maps, valid = encoding.nm_from_rgb(rgb, layout.scale_nm, file)
        clipping.values += 2 * int(np.count_nonzero(valid))
        clipping.clipped += encoding.clipped_values(rgb)
    if layout.image_size != MAP_SIZE:
        maps, valid = encoding.resample(maps, valid, MAP_SIZE)
    return (np.negative(maps) if layout.flip_sign else maps), valid


def _read_npz(data: bytes, file: str, max_bytes: int, layout: Layout) -> dict[str, Map]:
    """Float maps; each member's header is checked before numpy allocates what it promises."""
    arrays: dict[str, np.ndarray] = {}
    handle = io.BytesIO(data)
    directory = open_zip(handle, file).NameToInfo
    for name, shape in _NPZ_SHAPES.items():
        info = directory.get(f"{name}.npy")
        if info is not None:
            member = io.BytesIO(read_member(handle, Member.of(info), max_bytes, file))
            arrays[name] = _read_npy(member, name, shape, file)
        elif layout.has_target or name.startswith("prev_"):
            raise InputError(file, f"maps.{name}", "missing", "write the npz again")
    maps: dict[str, Map] = {}
    for name, mask in (("prev_map", "prev_valid"), ("map", "valid")):
        if name not in arrays or mask not in arrays:
            continue
        valid = arrays[mask].astype(np.uint8)
        if not np.isin(arrays[mask], (0, 1)).all():
            raise InputError(file, f"maps.{mask}", "holds values other than 0 and 1", "write the npz again")
        values = arrays[name].astype(np.float32)
        if not np.isfinite(values[:, valid == 1]).all():
            raise InputError(file, f"maps.{name}", "NaN or infinity on a valid pixel", "set its mask to 0")
        values[:, valid == 0] = np.nan
        maps[name] = (np.negative(values) if layout.flip_sign else values), valid
    return maps


def _read_npy(member: io.BytesIO, name: str, shape: tuple[int, ...], file: str) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(member)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        found, _, dtype = read_header(member)
        if found != shape:
            raise InputError(file, f"maps.{name}", f"shape {found}, expected {shape}", "write the npz again")
        if dtype.kind not in "fiub":
            raise InputError(file, f"maps.{name}", f"dtype {dtype}, expected numbers", "write the npz again")
        member.seek(0)
        return np.lib.format.read_array(member, allow_pickle=False)
    # numpy parses the header as Python text, and lets out whatever the parser raises.
    except (
        ValueError,
        EOFError,
        OSError,
        SyntaxError,
        TypeError,
        OverflowError,
        RecursionError,
        MemoryError,
        tokenize.TokenError,
    ) as error:
        raise InputError(file, f"maps.{name}", f"damaged array: {error}", "write the npz again") from None


def _check_agreement(floats: Map, png: Map, layout: Layout, file: str, name: str) -> None:
    """The npz must be the same map as the PNG: same mask, values within half a grey level (or clipped)."""
    assert layout.scale_nm is not None
    if layout.image_size != MAP_SIZE:
        return
    if not np.array_equal(floats[1], png[1]):
        raise InputError(file, f"maps.{name}", "mask differs from the PNG's", "write PNG and npz together")
    exact = np.clip(floats[0], -layout.scale_nm, layout.scale_nm)
    worst = float(np.nanmax(np.abs(exact - png[0]), initial=0.0))
    if worst > 0.51 * encoding.step_nm(layout.scale_nm):
        reason = f"differs from the PNG by {worst:.3f} nm"
        raise InputError(file, f"maps.{name}", reason, "write PNG and npz together, and check scale_nm")
