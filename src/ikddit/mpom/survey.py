"""What a raw data set is, found out before anything is read in full: format, units, log channels, targets.

Units are never guessed: maps are in nm only if dataset.json says so with a scale and a known encoding, or if
`ingest.scale_nm` declares it.
"""

import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ikddit.errors import InputError
from ikddit.mpom.archive import Container, Member, Reader, open_zip, read_member
from ikddit.mpom.logs import Logs, is_channel_name, parse_logs, strict_json
from ikddit.mpom.source import DESCRIPTION, TABLE_SUFFIXES, Census, RawItem, classify, outside_link, walk
from ikddit.mpom.wafer import Layout
from ikddit.overlay.grid import WAFER_RADIUS_MM
from ikddit.params import IngestParams

SIGNS = ("current_minus_previous", "previous_minus_current")
MAX_SCALE_NM = 1e6
"""A millimetre: beyond it no scale is of overlay, and far beyond it maps would not be finite in float32."""
_SAMPLE = 50
"""Items whose log channels are compared to find the data set's own."""


@dataclass(frozen=True)
class Survey:
    """A raw data set at a glance.

    Args:
        root: the folder, zip file or mark table.
        format: MPOM items or mark tables.
        description: content of dataset.json ({} if there is none).
        layout: how its items are read.
        notes: sentences on what can and cannot be done with it.
    """

    root: Path
    format: Literal["mpom", "marks"]
    description: dict[str, Any]
    layout: Layout
    notes: list[str]

    @property
    def base(self) -> Path:
        """What the names of its files are relative to: the root, or the folder of a table that is one."""
        return self.root.parent if self.format == "marks" and self.root.is_file() else self.root


def survey(root: Path, settings: IngestParams) -> Survey:
    """Look at a raw data set.

    Raises:
        InputError: there is nothing to ingest, or dataset.json cannot be used.
    """
    if not root.exists():
        raise InputError(
            str(root), "path", "no such file or folder", "check the path (params.yaml: data.raw)"
        )
    limit = int(settings.max_member_mb * 2**20)
    if root.is_file() and root.suffix.lower() in TABLE_SUFFIXES:
        return _survey_tables(root, root.parent, settings, _logs_beside(root), [root.name], {})
    if root.is_file() and root.suffix.lower() != ".zip":
        reason = f"{root.suffix or 'no'} suffix: neither a zip of MPOM items (.zip) nor a mark table (.csv, .parquet)"
        raise InputError(str(root), "format", reason, "export it as one of them, or rename it if it is one")
    description = read_description(root, limit)
    census = Census()
    items = walk(root, limit, census)
    first = list(itertools.islice(items, _SAMPLE))
    is_mpom = any("overlay_prev" in item.members for item in first)
    has_target = any("overlay" in item.members for item in first)
    # Usually a few items tell; only a set without any target, or without a description, is walked to its end.
    if not (is_mpom and has_target and description):
        for item in items:
            is_mpom = is_mpom or "overlay_prev" in item.members
            has_target = has_target or "overlay" in item.members
    if not first and not census.tables:
        reason = (
            "nothing to ingest: no overlay_prev*.png, no .zip, no mark table (.csv, .parquet); "
            f"{census.ignored} other files"
        )
        raise InputError(str(root), "path", reason, "give the data set's folder; see docs/data-format.md")
    if settings.format == "marks" or (settings.format == "auto" and census.tables and not is_mpom):
        return _survey_tables(root, root, settings, first, census.tables, description)
    if not first:
        raise InputError(str(root), "format", "no MPOM item, only mark tables", "set ingest.format to marks")
    if not description and census.descriptions:
        reason = f"none at the top, but there is {census.descriptions[0]}"
        raise InputError(
            f"{root}/{DESCRIPTION}", "file", reason, "ingest that folder, one data set at a time"
        )
    scale_nm, flip_sign, names = check_description(description, settings)
    logs = _sample_logs(root, first, limit)
    layout = Layout(names or _common_names(logs), scale_nm, flip_sign, settings.image_size, has_target)
    notes = _notes(layout, description, census)
    if logs and all(log.ids is None for log in logs):
        notes.append(
            "No ids in the logs: the integer of id*.txt is kept as public_id, which no model reads; barcodes "
            "are file names."
        )
    if logs and names is None and all(log.names is None for log in logs):
        notes.append(
            "No channel names: they are called feature_000 and so on. A model finds channels by name; "
            "dataset.json can give them as feature_names."
        )
    return Survey(root, "mpom", description, layout, notes)


def _logs_beside(table: Path) -> list[RawItem]:
    """Some items of the folder that a table lies in, as far as they may be read."""
    folder = Container("", is_zip=False)
    try:
        names = sorted(os.listdir(table.parent))
    except OSError as error:
        raise InputError(
            str(table.parent), "file", f"folder not readable: {error.strerror}", "check its permissions"
        ) from None
    logs = [name for name in names if (found := classify(name)) and found[0] == "logs"]
    inside = [name for name in logs if outside_link(table.parent, table.parent / name, name) is None]
    return [RawItem(folder, "", name, {"logs": Member(name)}) for name in inside[:_SAMPLE]]


def _survey_tables(
    root: Path,
    base: Path,
    settings: IngestParams,
    items: list[RawItem],
    tables: list[str],
    description: dict[str, Any],
) -> Survey:
    from ikddit.mpom.tables import check_aliases

    marks = settings.marks
    check_aliases(marks)
    for key, name, declared in (
        ("units", "unit", marks.unit),
        ("sign", "sign", marks.sign),
        ("reference", "reference", marks.reference),
    ):
        if description.get(key, declared) != declared:
            reason = f"{description[key]!r}, but ingest.marks.{name} is {declared!r}"
            raise InputError(
                DESCRIPTION, key, reason, f"set ingest.marks.{name} (--{name}), or mend the file"
            )
    names = _common_names(_sample_logs(base, items, int(settings.max_member_mb * 2**20)))
    layout = Layout(names, 1.0, marks.sign == SIGNS[1])
    notes = ["Maps were rasterised from mark tables: mean of the valid marks of each pixel, in nm."]
    if marks.interpolate:
        notes.append("Pixels without a mark were interpolated: there mark_count is 0 and valid is 1.")
    notes += _table_notes(base, tables, settings)
    if not names:
        notes.append("No logs beside the tables (logs_<barcode>.json): log features are empty.")
    return Survey(root, "marks", description, layout, notes)


def _table_notes(base: Path, tables: list[str], settings: IngestParams) -> list[str]:
    """What the first readable table does not give; the others are taken to be like it."""
    from ikddit.mpom.tables import columns_of

    for file in tables:
        try:
            has, unread = columns_of(base / file, file, settings.marks)
        except InputError:
            continue  # is met again, and quarantined, when the table is read
        notes = []
        if unread:
            shown = ", ".join(map(repr, unread[:30])) + (", ..." if len(unread) > 30 else "")
            notes.append(
                f"{file}: not read: {shown}. Ids among them: name them with --column (scanner_id=...)."
            )
        if "exposure" not in has:
            notes.append(
                f"{file}: no column exposure: every mark is of the current exposure, previous maps are empty."
            )
        return notes
    return []


def read_description(root: Path, max_bytes: int) -> dict[str, Any]:
    """Content of the data set's dataset.json: {} if there is none.

    Raises:
        InputError: it is there and is not a JSON object.
    """
    data: bytes | None = None
    if root.is_dir():
        path = root / DESCRIPTION
        if problem := outside_link(root, path, str(path)):
            raise problem
        if path.exists():
            try:
                data = path.read_bytes()
            except OSError as error:
                raise InputError(str(path), "file", f"not readable: {error.strerror}", "check it") from None
        name = str(path)
    else:
        name = f"{root}!{DESCRIPTION}"
        data = _description_in_zip(root, max_bytes)
    if data is None:
        return {}
    value = strict_json(data, name)
    if not isinstance(value, dict) or not value:
        raise InputError(name, "json", "not a JSON object", "write it again; see docs/data-format.md")
    try:
        # It is written beside the records: 1e999 or half of a surrogate pair must not stop ingest at its end.
        json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(name, "json", f"cannot be written again: {error}", "write it again") from None
    return value


def _description_in_zip(root: Path, max_bytes: int) -> bytes | None:
    """dataset.json at the top of a zip, or in the one folder at its top."""
    with root.open("rb") as handle, open_zip(handle, root.name) as archive:
        names = [n for n in archive.namelist() if n.rpartition("/")[2] == DESCRIPTION and n.count("/") <= 1]
        if len(names) > 1 and DESCRIPTION in names:
            names = [DESCRIPTION]
        if not names:
            return None
        if len(names) > 1:
            raise InputError(root.name, DESCRIPTION, f"several data sets: {names}", "make one zip of each")
        return read_member(handle, Member.of(archive.getinfo(names[0])), max_bytes, f"{root.name}!{names[0]}")


def check_description(
    description: dict[str, Any], settings: IngestParams
) -> tuple[float | None, bool, list[str] | None]:
    """Check dataset.json and say what it settles.

    Returns:
        The PNG scale in nm (None: unknown, images stay RGB), whether the sign must be turned, and the names
        of the log channels (None: not given).

    Raises:
        InputError: names the key that is missing, unknown or out of range.

    >>> settings = IngestParams.model_validate({})
    >>> check_description({"format": "mpom", "format_version": 1, "units": "furlong"}, settings)
    Traceback (most recent call last):
        ...
    ikddit.errors.InputError: dataset.json: units: 'furlong', expected 'nm'; convert the maps...
    """
    if not description:
        return settings.scale_nm, False, None
    for key, allowed, remedy in _KEYS:
        needed = key in ("format", "format_version")
        if (needed or key in description) and description.get(key) not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise InputError(DESCRIPTION, key, f"{description.get(key)!r}, expected {expected}", remedy)
    scale = _scale(description, settings)
    pitch, size = description.get("pitch_mm"), settings.image_size
    expected_pitch = 2 * WAFER_RADIUS_MM / size
    # Whole numbers beyond float64 are numbers in JSON too.
    if pitch is not None and not (
        _is_number(pitch) and 0.999 * expected_pitch <= pitch <= 1.001 * expected_pitch
    ):
        reason = f"{pitch!r:.60}, expected {expected_pitch} for {size} pixels over 300 mm"
        raise InputError(
            DESCRIPTION, "pitch_mm", reason, "set ingest.image_size, or export maps of whole wafers"
        )
    names = description.get("feature_names")
    if names is not None:
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not texts or len(set(names)) != len(names) or not all(map(is_channel_name, names)):
            reason = "expected a list of different texts, none empty or of several lines"
            raise InputError(DESCRIPTION, "feature_names", reason, "write it again")
    return scale, description.get("sign") == SIGNS[1], names


_KEYS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("format", ("mpom",), "see docs/data-format.md"),
    ("format_version", (1,), "see docs/data-format.md"),
    ("units", ("nm",), "convert the maps, or drop units and scale_nm"),
    ("encoding", ("rg-linear",), "convert the maps, or drop units and scale_nm"),
    ("sign", SIGNS, "say which way the overlay was subtracted"),
    ("reference", ("wafer",), "export maps on the wafer's grid"),
)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _scale(description: dict[str, Any], settings: IngestParams) -> float | None:
    if not {"units", "scale_nm"} & description.keys():
        return settings.scale_nm
    declared = description.get("scale_nm")
    if declared is None or not _is_number(declared) or not 0 < declared <= MAX_SCALE_NM:
        reason = f"{declared!r:.60}, expected a number above 0 and at most {MAX_SCALE_NM:g}"
        raise InputError(DESCRIPTION, "scale_nm", reason, "write the nm that the PNG's full range stands for")
    for key, value in (("units", "nm"), ("encoding", "rg-linear")):
        if key not in description:
            raise InputError(DESCRIPTION, key, "missing beside scale_nm", f"write {value!r} if that is so")
    if settings.scale_nm not in (None, declared):
        reason = f"{declared}, but ingest.scale_nm says {settings.scale_nm}"
        raise InputError(DESCRIPTION, "scale_nm", reason, "unset ingest.scale_nm, or mend dataset.json")
    return float(declared)


def _sample_logs(root: Path, items: list[RawItem], max_bytes: int) -> list[Logs]:
    """Logs of the given items, as far as they can be read."""
    reader = Reader(root, max_bytes)
    found = []
    for item in items:
        if item.rejection is None and "logs" in item.members:
            member = item.members["logs"]
            try:
                data = reader.read(item.container, member)
                found.append(parse_logs(data, item.container.name(member.name)))
            except InputError:
                continue  # is met again, and quarantined, when the item is read
    reader.close()
    return found


def _common_names(logs: list[Logs]) -> list[str]:
    """Channel names that most logs share; made up from the count where they have no names."""
    votes = Counter(
        tuple(log.names or (f"feature_{i:03d}" for i in range(len(log.features)))) for log in logs
    )
    return list(votes.most_common(1)[0][0]) if votes else []


def _notes(layout: Layout, description: dict[str, Any], census: Census) -> list[str]:
    notes = []
    if layout.scale_nm is None:
        notes.append(
            "No scale: maps stay RGB in [0, 1], and nothing in nm can be said about them. Generation from "
            "logs and ids works; conditioning on the previous map needs a declared scale (ingest.scale_nm)."
        )
    if not layout.has_target:
        notes.append("No target maps (overlay_<key>.png): supervised training and scoring are not possible.")
    if not description:
        notes.append("No dataset.json: no known floor, no known ids, no seeds to regenerate the wafers.")
    if layout.flip_sign:
        notes.append("Files held previous minus current; records hold current minus previous.")
    if layout.image_size != 64:
        notes.append(f"Images of {layout.image_size} pixels were averaged by area to 64.")
    if census.tables:
        notes.append(f"{len(census.tables)} mark tables beside the maps were not read.")
    return notes
