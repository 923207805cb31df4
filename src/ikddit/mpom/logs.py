"""The text half of an item: logs_<key>.json (features, log lines, ids) and id_<key>.txt, strictly."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn

import numpy as np
import orjson
from jaxtyping import Float32

from ikddit.errors import InputError
from ikddit.mpom.schema import ID_FIELDS

PUBLIC_IDS = 1000
"""The public loader embeds one integer below this."""
_TEXT_IDS = ("barcode", "lot_id", "wafer_id", *ID_FIELDS)
_REWRITE = "write the file again"

Ids = dict[str, str | int | datetime | None]


@dataclass(slots=True)
class Logs:
    """Content of one logs_<key>.json; what the file does not have is None (`missing`: empty).

    Args:
        features: channel values in float32.
        names: names of the channels.
        missing: names of channels that were not received.
        lines: lines of the scanner's report.
        ids: barcode, lot_id, wafer_id, slot, the fields of `ID_FIELDS`, exposed_at; None where not given.
    """

    features: Float32[np.ndarray, " channels"]
    names: list[str] | None
    missing: list[str]
    lines: list[str] | None
    ids: Ids | None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def strict_json(data: bytes, file: str) -> Any:
    """Parse JSON in UTF-8; NaN and Infinity are refused.

    Raises:
        InputError: not UTF-8, cut short, damaged, or nested without end.

    >>> strict_json(b'{"features": [NaN]}', "logs_1.json")
    Traceback (most recent call last):
        ...
    ikddit.errors.InputError: logs_1.json: json: NaN is not a number in JSON; write the file again
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        pass  # the standard library takes a byte order mark, and knows where and why a file is damaged
    try:
        return _decode(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(file, "json", f"not UTF-8 at byte {error.start}", _REWRITE) from None
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at line {error.lineno}, column {error.colno}"
        if error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated"):
            reason += " (the file ends early)"
        raise InputError(file, "json", reason, _REWRITE) from None
    except (ValueError, RecursionError) as error:
        raise InputError(file, "json", str(error), _REWRITE) from None


def parse_logs(data: bytes, file: str, known: list[str] | None = None) -> Logs:
    """Read one logs_<key>.json.

    Args:
        data: the file's bytes.
        file: name for messages.
        known: names of channels that were checked before; a file with the same ones is not checked again.

    Raises:
        InputError: names the key that is missing or of the wrong type.

    >>> parse_logs(b'{"features": [1, 2.5]}', "logs_1.json").features.tolist()
    [1.0, 2.5]
    """
    value = strict_json(data, file)
    if not isinstance(value, dict):
        raise InputError(file, "json", f"{_kind(value)}, expected an object with `features`", _REWRITE)
    features = _features(value.get("features"), file)
    names = value.get("feature_names")
    # Names checked before are taken from there: what compares with them later sees the same object.
    names = known if names is not None and names == known else _strings(value, "feature_names", file)
    if names is not None:
        if len(names) != len(features):
            reason = f"{len(features)} features but {len(names)} feature_names"
            raise InputError(file, "features", reason, _REWRITE)
        if names != known and len(set(names)) != len(names):
            raise InputError(file, "feature_names", "a name occurs twice", _REWRITE)
        if names != known and not all(map(is_channel_name, names)):
            raise InputError(file, "feature_names", "a name is empty or holds a line break", _REWRITE)
    missing = _strings(value, "missing", file) or []
    # against the data set's own names they are checked where the channels are placed
    if missing and names is not None and names != known and (unknown := set(missing).difference(names)):
        reason = f"{sorted(unknown)[0]!r} is not in feature_names"
        raise InputError(file, "missing", reason, _REWRITE)
    ids = value.get("ids")
    parsed = None if ids is None else _ids(ids, file)
    return Logs(features, names, missing, _strings(value, "lines", file), parsed)


def is_channel_name(name: str) -> bool:
    """Whether a log channel may be called so: the records' schema keeps the names as lines of one text.

    >>> is_channel_name("dose mJ/cm2"), is_channel_name(""), is_channel_name("a\\nb")
    (True, False, False)
    """
    return bool(name) and "\n" not in name


def _kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "true or false", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def _features(value: Any, file: str) -> Float32[np.ndarray, " channels"]:
    if not isinstance(value, list):
        reason = "missing" if value is None else f"{_kind(value)}, expected a list of numbers"
        raise InputError(file, "features", reason, _REWRITE)
    odd = set(map(type, value)) - {int, float}
    if odd:
        at = next(i for i, v in enumerate(value) if type(v) in odd)
        reason = f"entry {at} is {_kind(value[at])}, expected a number"
        raise InputError(file, "features", reason, "write 0 and name the channel in `missing`")
    with np.errstate(over="ignore"):
        try:
            features = np.array(value, np.float32)
        except OverflowError:
            raise InputError(file, "features", "a number beyond float64", _REWRITE) from None
    finite = np.isfinite(features)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InputError(file, "features", f"entry {at} is {value[at]}, beyond float32", _REWRITE)
    return features


def _strings(value: dict[str, Any], name: str, file: str) -> list[str] | None:
    strings = value.get(name)
    if strings is None:
        return None
    if not isinstance(strings, list) or not set(map(type, strings)) <= {str}:
        raise InputError(file, name, f"{_kind(strings)}, expected a list of texts", _REWRITE)
    _check_text("".join(strings), name, file)
    return strings


def _check_text(text: str, name: str, file: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(file, name, "half of a surrogate pair (\\ud800-\\udfff)", _REWRITE) from None


def _ids(value: Any, file: str) -> Ids:
    if not isinstance(value, dict):
        raise InputError(file, "ids", f"{_kind(value)}, expected an object", _REWRITE)
    ids: Ids = {name: text_id(value.get(name), f"ids.{name}", file) for name in _TEXT_IDS}
    slot = value.get("slot")
    if slot is not None and (type(slot) is not int or not 0 <= slot < 2**15):
        raise InputError(file, "ids.slot", f"{slot!r}, expected a whole number from 0", _REWRITE)
    ids["slot"] = slot
    ids["exposed_at"] = utc_time(value.get("exposed_at"), "ids.exposed_at", file)
    return ids


def text_id(value: Any, name: str, file: str) -> str | None:
    """An id as text: whole numbers are written out, empty text is None.

    Raises:
        InputError: anything but text, whole number or null.

    >>> text_id(1, "ids.chuck_id", "logs_1.json")
    '1'
    """
    if isinstance(value, str):
        _check_text(value, name, file)
        return value.strip() or None
    if value is None:
        return None
    if type(value) is int:
        return str(value)
    raise InputError(file, name, f"{_kind(value)}, expected text", _REWRITE)


def utc_time(value: Any, name: str, file: str) -> datetime | None:
    """A point in time from ISO 8601 text with its offset.

    Raises:
        InputError: not ISO 8601, or without `Z` or an offset (local times are ambiguous).

    >>> utc_time("2026-01-31T12:00:00Z", "ids.exposed_at", "logs_1.json")
    datetime.datetime(2026, 1, 31, 12, 0, tzinfo=datetime.timezone.utc)
    """
    if value is None or value == "":
        return None
    try:
        moment = datetime.fromisoformat(value)
        aware = moment.utcoffset() is not None
        if aware:
            # in a zone to the west the last hours of 9999 lie beyond what a time can be
            moment.astimezone(UTC)
    except (OverflowError, TypeError, ValueError):
        raise InputError(
            file, name, f"{value!r} is not an ISO 8601 time", "write 2026-01-31T12:00:00Z"
        ) from None
    if not aware:
        raise InputError(file, name, f"{value!r} has no time zone", "append Z for UTC, or the offset")
    return moment


def parse_public_id(data: bytes, file: str) -> int:
    """The integer of id_<key>.txt, 0 to 999.

    Raises:
        InputError: not one whole number in that range.

    >>> parse_public_id(b"17\\n", "id_1.txt")
    17
    """
    text = data.strip()
    if not text.isdigit() or len(text) > 9 or int(text) >= PUBLIC_IDS:
        shown = text[:20].decode("utf-8", "backslashreplace")
        raise InputError(
            file, "id", f"{shown!r}, expected one whole number from 0 to {PUBLIC_IDS - 1}", _REWRITE
        )
    return int(text)
