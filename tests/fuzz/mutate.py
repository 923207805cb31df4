"""Hostile inputs made from sound ones: bytes, JSON, PNG, zip, npy, CSV, Parquet, folders, YAML.

Every function draws from a `random.Random`: a seeded one makes a run that can be repeated, Hypothesis's own
(`st.randoms`) makes cases that shrink, and libFuzzer seeds one for each case it wants changed.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

Mutate = Callable[[bytes, Random], bytes]
LARGE = 1 << 17
"""Bytes of text beyond which a case is cut: the readers' own bounds are met by what is declared or packed."""
INTEGERS = [
    0,
    1,
    2,
    7,
    8,
    255,
    256,
    1000,
    2**15 - 1,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
]
TEXTS = [
    "", " ", "\0", "\n", "a\nb", "a\tb", "\ud800", "\u202e", "\ufeff", "\ufffd", "e\u0301", "é" * 300, "x" * 5_000,
    "..", "../../etc/passwd", "/etc/passwd", "a\\b", "C:\\x", "<script>", "${HOME}", "%s%n", "'; --", "nan",
    "1e999",
    "-0", "9" * 400, "true", "null", "https://fab:word@host/x", "2026-01-31T12:00:00Z", "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00", "2026-13-45", "1", "=cmd()", "\x1b[2J", "𝟙", "²", "<num>", "1.5e-3",
]  # fmt: skip


def damage(data: bytes, rng: Random) -> bytes:
    """Change bytes without knowing what they mean."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_DAMAGES)(data, rng)
    return data


def _flip(data: bytes, rng: Random) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(data: bytes, rng: Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[min(end, start + 64) :]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    end = min(end, start + 256)
    return data[:start] + data[start:end] * rng.choice((2, 3, 100)) + data[end:]


def _noise(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 8, 64))) + data[at:]


def _number(data: bytes, rng: Random) -> bytes:
    """Overwrite a few bytes with a number that breaks sizes: 0, -1, the largest."""
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(data)))
    value = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1))
    packed = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))
    return data[:at] + packed + data[at + size :]


def _text(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(TEXTS)[:300].encode("utf-8", "surrogatepass") + data[at:]


def _digits(data: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return (
        data[:at]
        + rng.choice((b"9" * 400, b"9" * 5000, b"-", b"1e999", b".", b"NaN", b"Infinity"))
        + data[at:]
    )


_DAMAGES: tuple[Mutate, ...] = (_flip, _flip, _cut, _drop, _repeat, _noise, _number, _text, _digits)


def sometimes_damaged(data: bytes, rng: Random, one_in: int = 6) -> bytes:
    """The data as they are, or damaged as well."""
    return damage(data, rng) if rng.randrange(one_in) == 0 else data


# JSON -----------------------------------------------------------------------------------------------------

_RAW = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e400", "9" * 400, "9" * 4299, "9" * 5000, "-0", "01",
    "+1", "0x10",
    "[" * 300 + "]" * 300, "[" * 1010 + "]" * 1010, "[" * 100_000, '{"a":' * 600 + "1" + "}" * 600, "'a'",
    '"\\ud800"',
    '"\\u0000"', "\u2028", "tru", '{"a":1,"a":2}', "[1,]", "1.0000000000000000000001", "1e-400", "4.9e-324",
]  # fmt: skip


_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    -1,
    0.5,
    -0.0,
    1e308,
    1e39,
    10**30,
    -(2**63),
    2**64,
)


def odd_json(rng: Random) -> Any:
    """A value that is JSON and hardly ever what was expected."""
    return deepcopy(rng.choice((*_ODD, *INTEGERS, *TEXTS)))  # a case must not change the next one's


def _places(value: Any, into: list[tuple[Any, Any]], depth: int = 10) -> list[tuple[Any, Any]]:
    """All (container, key) pairs of a JSON value; of a long list the first and last entries."""
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = sorted({*range(min(len(value), 4)), *range(max(0, len(value) - 1), len(value))})
    for key in keys:
        into.append((value, key))
        if depth:
            _places(value[key], into, depth - 1)
    return into


def damage_json(value: Any, rng: Random, names: tuple[str, ...] = ()) -> bytes:
    """Change some fields of a JSON value and write it; `names` are keys worth inventing."""
    value = json.loads(json.dumps(value))  # its own, and each part once
    raw: dict[str, str] = {}
    grown = False
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = _places(value, [])
        if not places:
            value = odd_json(rng)
            continue
        holder, key = rng.choice(places)
        kind = rng.randrange(9)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            new = rng.choice(names) if names and rng.randrange(3) else rng.choice(TEXTS)[:100]
            holder[new] = holder.pop(key)
        elif kind == 2:
            mark = f"@raw{len(raw)}@"
            raw[mark] = rng.choice(_RAW)
            holder[key] = mark
        elif kind == 3:
            other, there = rng.choice(places)
            if there in other if isinstance(other, dict) else there < len(other):
                holder[key] = json.loads(json.dumps(other[there]))
        elif kind == 4:
            holder[key] = [holder[key]]
        elif kind == 5 and isinstance(holder, list):
            text = json.dumps(holder[key])
            times = (
                rng.choice((1, 2, 1000)) if len(text) < 100 and not grown else 1
            )  # or cases grow without end
            grown = grown or times > 2
            holder.extend(json.loads(text) for _ in range(times))
        elif kind == 6 and names and isinstance(holder, dict):
            holder[rng.choice(names)] = odd_json(rng)
        else:
            holder[key] = odd_json(rng)
    text = json.dumps(value, ensure_ascii=bool(rng.randrange(2)))
    for mark, piece in raw.items():
        text = text.replace(f'"{mark}"', piece)
    return sometimes_damaged(
        rng.choice(("", "", "", "\ufeff")).encode() + text.encode("utf-8", "surrogatepass"), rng
    )


def json_mutator(names: tuple[str, ...] = ()) -> Mutate:
    """Mutator of JSON files: by field where they parse, else by byte."""

    def mutate(data: bytes, rng: Random) -> bytes:
        try:
            value = json.loads(data) if len(data) < LARGE else None
        except (ValueError, RecursionError):
            value = None
        if value is None:
            return damage(data[:LARGE], rng)
        return damage_json(value, rng, names)

    return mutate


# PNG ------------------------------------------------------------------------------------------------------

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNKS = [
    b"tRNS",
    b"IHDR",
    b"IDAT",
    b"IEND",
    b"acTL",
    b"fcTL",
    b"iCCP",
    b"zTXt",
    b"PLTE",
    b"gAMA",
    b"aaaa",
    b"\0\0\0\0",
]


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def damage_png(data: bytes, rng: Random) -> bytes:
    """Change chunks, header fields or filtered lines, and make checksums good again."""
    chunks = _chunks(data)
    if len(chunks) < 3 or rng.randrange(5) == 0:
        return damage(data, rng)
    where = rng.randrange(len(chunks))
    kind, body = chunks[where]
    what = rng.randrange(8)
    if what == 0:
        chunks[where] = (rng.choice(_CHUNKS), body)
    elif what == 1:
        chunks.insert(where, (rng.choice(_CHUNKS), rng.randbytes(rng.choice((0, 1, 13, 100)))))
    elif what == 2:
        del chunks[where]
    elif what == 3:
        other = rng.randrange(len(chunks))
        chunks[where], chunks[other] = chunks[other], chunks[where]
    elif what == 4:
        header = bytearray(chunks[0][1].ljust(13, b"\0")[:13])
        if rng.randrange(2):
            at = rng.choice((0, 4))
            header[at : at + 4] = rng.choice((0, 1, 63, 64, 65, 2**31 - 1, 2**32 - 1)).to_bytes(4)
        else:
            header[rng.randrange(8, 13)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
        chunks[0] = (chunks[0][0], bytes(header))
    elif what == 5:
        chunks[where] = (kind, damage(body, rng))
    else:
        chunks = _other_pixels(chunks, rng)
    out = [_SIGNATURE]
    for kind, body in chunks:
        length = rng.choice((0, 2**31, 2**32 - 1, len(body) + 1)) if rng.randrange(40) == 0 else len(body)
        crc = zlib.crc32(kind + body) ^ (rng.randrange(40) == 0)
        out += [length.to_bytes(4), kind, body, crc.to_bytes(4)]
    return b"".join(out)


def _other_pixels(chunks: list[tuple[bytes, bytes]], rng: Random) -> list[tuple[bytes, bytes]]:
    """Other filtered lines, packed anew: what a checksum does not give away."""
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    try:
        lines = bytearray(zlib.decompress(packed))
    except zlib.error:
        lines = bytearray(rng.randbytes(64 * 193))
    what = rng.randrange(5)
    if what == 0 and lines:
        lines[(rng.randrange(64) * 193) % len(lines)] = rng.randrange(256)  # a line's filter
    elif what == 1 and lines:
        lines[rng.randrange(len(lines))] = rng.randrange(256)
    elif what == 2:
        lines = lines[: rng.randrange(len(lines) + 1)]
    elif what == 3:
        lines += bytes(rng.choice((1, 193, 1 << 20)))
    else:
        lines = bytearray(rng.randbytes(len(lines)))
    packed = zlib.compress(bytes(lines), rng.choice((0, 1, 9)))
    if rng.randrange(4) == 0:
        packed = damage(packed, rng)
    cut = rng.randrange(len(packed) + 1)
    data = [(b"IDAT", packed[:cut]), (b"IDAT", packed[cut:])] if rng.randrange(2) else [(b"IDAT", packed)]
    return [chunks[0], *data, *(c for c in chunks[1:] if c[0] != b"IDAT")]


# Zip ------------------------------------------------------------------------------------------------------

_NAMES = [
    "../x.png", "/x.png", "a/../../x", "a\\b.png", "C:x", "", "/", ".", "..", "a//b", "overlay_prev_\n.png",
    "logs_\u202e.json",
    "dataset.json", "a/dataset.json", "a/b/dataset.json", "x" * 60_000, "id_.txt", "maps_1.npz", "b.zip",
    "marks.csv",
    "overlay_prev_1.png/", "OVERLAY_1.PNG", "logs_\x01.json", "é/id_1.txt", "..zip", ".zip", "id_1.txt",
    "logs.json",
]  # fmt: skip
_FIELDS = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22}


@cache
def _bomb(mib: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("overlay_prev_9.png", bytes(mib << 20))
    return buffer.getvalue()


def unzip(data: bytes) -> dict[str, bytes] | None:
    """Members of a sound zip; None of anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(info.file_size for info in archive.filelist) > 4 << 20:
                return None
            return {info.filename: archive.read(info) for info in archive.filelist}
    except Exception:  # whatever zipfile raises on what it cannot read
        return None


def zip_bytes(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of these files, names as they are and as often as they come."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.compress_type = method
            if name not in archive.NameToInfo:
                archive.writestr(info, data)
            else:  # zipfile warns of a second one
                del archive.NameToInfo[name]
                archive.writestr(info, data)
    return buffer.getvalue()


def damage_zip(data: bytes, rng: Random, inner: Callable[[str, bytes, Random], bytes]) -> bytes:
    """Change members (by `inner`), names, the directory's fields, or bytes."""
    members = unzip(data)
    what = rng.randrange(8)
    if members is None or what == 0:
        return damage(data, rng)
    files = list(members.items())
    if what == 1 and files:
        at = rng.randrange(len(files))
        files[at] = (rng.choice(_NAMES), files[at][1])
    elif what == 2 and files:
        files.insert(rng.randrange(len(files) + 1), rng.choice(files))
    elif what == 3 and files:
        del files[rng.randrange(len(files))]
    elif what == 4:
        content = _bomb(rng.choice((1, 70))) if rng.randrange(20) == 0 else zip_bytes(files[:3])
        files.append((rng.choice(("b.zip", "c/b.zip", *_NAMES)), content))
    elif files:
        at = rng.randrange(len(files))
        name, content = files[at]
        files[at] = (name, inner(name, content, rng))
    try:
        made = zip_bytes(files, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)))
    except UnicodeEncodeError:
        return damage(data, rng)
    return _other_fields(made, rng) if rng.randrange(4) == 0 else sometimes_damaged(made, rng, 10)


def _other_fields(data: bytes, rng: Random) -> bytes:
    """Overwrite one field of one header or of the directory."""
    signature, size = rng.choice(list(_FIELDS.items()))
    starts = [at for at in range(len(data)) if data.startswith(signature, at)] if len(data) < 1 << 17 else []
    if not starts:
        return damage(data, rng)
    at = rng.choice(starts) + rng.randrange(4, size, 2)
    width = rng.choice((2, 4))
    value = rng.choice(INTEGERS) % (1 << 8 * width)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


# npy ------------------------------------------------------------------------------------------------------

_HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 64, 64), }",
    "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 64, 64000000), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 64, 64), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 64L, 64L), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999, 64), }",
    "{'descr': ('<f4', (9999999999,)), 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': '>i8', 'fortran_order': False, 'shape': (64, 64), }",
    "{'descr': '|b1', 'fortran_order': False, 'shape': (64, 64), }",
    "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': '<f16', 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': '<c16', 'fortran_order': False, 'shape': (2, 64, 64), }",
    "{'descr': '<f4'", "((((((", "'''", "-" * 9000 + "1", "(" * 5000, "[" * 150 + "]" * 150, "{'a': [}", "\0",
    "  x = 1\n y", "",
    "__import__('os').getcwd()", "{" * 90, "{'descr': 1, 'fortran_order': 2, 'shape': 3}",
    "9" * 5000, "{[]: 1}", "{1, []}",
]  # fmt: skip


def damage_npy(data: bytes, rng: Random) -> bytes:
    """Another header, another version, other values."""
    if len(data) < 12 or rng.randrange(6) == 0:
        return damage(data, rng)
    size = int.from_bytes(data[8:10], "little")
    header, body = data[10 : 10 + size], data[10 + size :]
    what = rng.randrange(4)
    if what == 0:
        header = rng.choice(_HEADERS).encode()
    elif what == 1:
        header = damage(header, rng)
    elif what == 2:
        at = rng.randrange(max(1, len(body) - 4))
        odd = rng.choice((np.nan, np.inf, -np.inf, 1e38, -0.0, 255.0))
        body = body[:at] + struct.pack("<f", odd) + body[at + 4 :]
    else:
        body = damage(body, rng)
    version = rng.choice(((1, 0), (1, 0), (1, 0), (2, 0), (3, 0), (4, 0), (0, 0)))
    length = struct.pack("<H", len(header) % 65536) if version[0] == 1 else struct.pack("<I", len(header))
    if rng.randrange(20) == 0:
        length = rng.choice((b"\xff\xff", b"\0\0", b"\xff\xff\xff\xff"))
    return b"\x93NUMPY" + bytes(version) + length + header + body


# Tables ---------------------------------------------------------------------------------------------------


def damage_csv(data: bytes, rng: Random, names: tuple[str, ...]) -> bytes:
    """Other cells, headers, quotes, line ends and encodings."""
    try:
        rows = [line.split(",") for line in data[:LARGE].decode().split("\n")]
    except UnicodeDecodeError:
        return damage(data, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        at = rng.randrange(len(row))
        what = rng.randrange(8)
        if what < 3:
            row[at] = rng.choice(
                (*TEXTS, *map(str, INTEGERS), "-1e400", "0x1p3", "1,5", '"', '"a\nb"', '""', "NaN", "inf")
            )
        elif what == 3:
            del row[at:]
            row.append("")
        elif what == 4:
            row.insert(at, rng.choice(names))
        elif what == 5:
            rows[0][rng.randrange(len(rows[0]))] = rng.choice((*names, *TEXTS))
        elif what == 6:
            rows.append(list(row))
        else:
            rows.insert(rng.randrange(len(rows) + 1), [rng.choice(TEXTS)])
    end = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\n\n", "\0"))
    text = end.join(rng.choice((",", ",", ",", ",", ",", ";")).join(row) for row in rows)
    coding = rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16", "latin-1"))
    return sometimes_damaged(
        text.encode(coding, "surrogatepass" if coding.startswith("utf") else "replace"), rng
    )


def _odd_columns(rows: int, rng: Random) -> Any:
    """A column of a type that nobody asked for, or of values at the end of its range."""
    made: list[Callable[[], Any]] = [
        lambda: pa.array([rng.choice(TEXTS).replace("\ud800", "?") for _ in range(rows)]),
        lambda: pa.array(["x"] * rows, pa.large_string()),
        lambda: pa.array(["1.5"] * rows).dictionary_encode(),
        lambda: pa.array([b"\xff\xfe"] * rows, pa.binary()),
        lambda: pa.array([None] * rows, pa.null()),
        lambda: pa.array([True, None] * rows, pa.bool_())[:rows],
        lambda: pa.array([rng.choice((2**63 - 1, -(2**63), 0, None)) for _ in range(rows)], pa.int64()),
        lambda: pa.array([2**64 - 1] * rows, pa.uint64()),
        lambda: pa.array(
            [rng.choice((float("nan"), float("inf"), 1e308, -0.0, None)) for _ in range(rows)], pa.float64()
        ),
        lambda: pa.array([1.5] * rows, pa.float32()),
        lambda: pa.array(np.full(rows, 1, np.float16)),
        lambda: pa.array([[1.0]] * rows),
        lambda: pa.array([{"a": 1}] * rows),
        lambda: pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        lambda: pa.array(
            [rng.choice((0, 2**62, -(2**62)))] * rows, pa.timestamp(rng.choice(("s", "ms", "us", "ns")))
        ),
        lambda: pa.array([0] * rows, pa.timestamp("us", tz=rng.choice(("UTC", "Mars/Base", "+14:00", "")))),
        lambda: pa.array([2**31 - 1] * rows, pa.date32()),
        lambda: pa.array([1] * rows, pa.time64("us")),
        lambda: pa.array([2**62] * rows, pa.duration("s")),
        lambda: pa.array([None] * rows, pa.decimal128(38, 3)),
        lambda: pa.array([1] * rows, pa.decimal128(20, 0)),
        lambda: pa.array([b"0123"] * rows, pa.binary(4)),
    ]
    return rng.choice(made)()


def damage_table(table: pa.Table, rng: Random, names: tuple[str, ...]) -> pa.Table:
    """Other columns: missing, twice, of another type, with other values, none, and other metadata."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        what, width = rng.randrange(9), table.num_columns
        at = rng.randrange(max(1, width))
        if what < 4 and width:
            table = table.set_column(at, table.column_names[at], _odd_columns(table.num_rows, rng))
        elif what == 4 and width:
            table = table.remove_column(at)
        elif what == 5:
            name = rng.choice((*names, *TEXTS)).replace("\ud800", "?")
            table = table.append_column(name, _odd_columns(table.num_rows, rng))
        elif what == 6:
            table = table.slice(0, rng.choice((0, 1)))
        elif what == 7 and width:
            table = pa.concat_tables([table] * rng.choice((2, 3)))
        else:
            kept = dict(table.schema.metadata or {})
            for key in list(kept)[:1] if rng.randrange(2) else list(kept):
                kept[key] = rng.choice((b"", b"\xff", b"9", b"a\nb\nc"))
            table = table.replace_schema_metadata(kept if rng.randrange(3) else None)
    return table


def parquet_bytes(table: pa.Table, rng: Random | None = None) -> bytes:
    """The table as Parquet, in one of the forms that are about."""
    options: dict[str, Any] = {}
    if rng is not None:
        options = {
            "compression": rng.choice(("none", "snappy", "zstd", "gzip", "lz4", "brotli")),
            "use_dictionary": bool(rng.randrange(2)),
            "version": rng.choice(("1.0", "2.4", "2.6")),
            "data_page_version": rng.choice(("1.0", "2.0")),
            "row_group_size": rng.choice((1, 2, 1000)),
            "store_schema": bool(rng.randrange(2)),
        }
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def arrow_bytes(table: pa.Table) -> bytes:
    """The table as an Arrow IPC file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_mutator(names: tuple[str, ...]) -> Mutate:
    """Mutator of Parquet files: by column where they can be read, else by byte."""

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.randrange(3) == 0:
            return damage(data, rng)
        try:
            table = pq.read_table(io.BytesIO(data))
            return sometimes_damaged(parquet_bytes(damage_table(table, rng, names), rng), rng, 8)
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError):
            return damage(data, rng)

    return mutate


def csv_bytes(table: pa.Table) -> bytes:
    """The table as CSV without quotes."""
    buffer = io.BytesIO()
    pacsv.write_csv(table, buffer, pacsv.WriteOptions(quoting_style="none"))
    return buffer.getvalue()


# Folders --------------------------------------------------------------------------------------------------

Tree = list[tuple[bytes, bytes]]
"""Names (as the system takes them) and contents of the files of a folder."""
_PATHS = [
    b"\xff.csv", b"\xff.zip", b"\xff/dataset.json", b"\xfe\xff_overlay.png", b"overlay_\xff.png",
    b"logs_\n.json", b"a/b/c/d/e/id_1.txt",
    b"x" * 200, b"marks.csv", b"marks.parquet", b".hidden", b"dataset.json", b"a/dataset.json", b"logs_a.json",
    b"lots/L2.zip",
    "ü.zip".encode(), b"overlay_prev_000000.png/x", b"id_.txt", b"maps_000000.npz", b"logs_W1.json",
    b"a\\b.csv", b"#.csv", b" .csv",
]  # fmt: skip


def pack_tree(tree: Tree) -> bytes:
    """A folder as bytes, for those who only know bytes."""
    return b"".join(struct.pack(">HI", len(name), len(data)) + name + data for name, data in tree)


def unpack_tree(data: bytes) -> Tree:
    """Files of a packed folder; what is cut short or declared too long ends early."""
    tree: Tree = []
    at = 0
    while at + 6 <= len(data) and len(tree) < 50:
        name, size = struct.unpack(">HI", data[at : at + 6])
        at += 6
        tree.append((data[at : at + name], data[at + name : at + name + size]))
        at += name + size
    return tree


def damage_tree(data: bytes, rng: Random, inner: Callable[[str, bytes, Random], bytes]) -> bytes:
    """Other files, other names, other contents (by `inner`)."""
    tree = unpack_tree(data)
    for _ in range(rng.choice((1, 1, 2))):
        if not tree:
            break
        at, what = rng.randrange(len(tree)), rng.randrange(6)
        name, content = tree[at]
        if what == 0:
            tree[at] = (rng.choice(_PATHS), content)
        elif what == 1:
            tree.append((rng.choice(_PATHS), rng.choice(tree)[1]))
        elif what == 2:
            del tree[at]
        elif what == 3:
            tree[at] = (damage(name, rng)[:200], content)
        else:
            tree[at] = (name, inner(name.decode("utf-8", "replace"), content, rng))
    return pack_tree(tree)


# YAML -----------------------------------------------------------------------------------------------------

_SETTINGS = ("lambda1", "lambda2", "seed", "model", "mask_ratio", "data", "fid", "train", "embed", "timing")
"""Each a list of the one before, eight times: a few lines that stand for a billion entries."""
_YAML = [
    "a: &a [*a]\n", "lambda1: &a [*a]\n", "seed: !!python/object/apply:os.getcwd []\n", "seed: !!binary x\n",
    "? [1]\n: 2\n",
    "{1: 2}\n", "seed: 2026-99-99\n", "seed: 0001-01-01T00:00:00+99:99\n", "seed: 0o9\n", "<<: {seed: 1}\n",
    "<<: 1\n", "%YAML 9.9\n---\n",
    "---\n---\n", "seed: 1\nseed: 2\n", "\t", "seed: 0x" + "f" * 4000 + "\n", "seed: " + "9" * 5000 + "\n",
    "seed: " + "[" * 600 + "\n",
    "seed: " + "[" * 3000 + "]" * 3000 + "\n", "null: 1\n", "~: 1\n", "1.5: 1\n", "seed: .nan\n",
    "lambda1: .inf\n", "lambda1: 1e999\n",
    "simulate: {shift: {scaner: LITH01}}\n", "simulate: {shift: 3}\n", "fid: {dims: {a: 1}}\n",
    "train: {mean: {x: 1}}\n",
    "!!set {a, b}\n", "!!omap [a: 1]\n", "!!timestamp x\n", "seed: !!int ''\n", "seed: !!float x\n",
    "\ufeffseed: 1\n", "seed: \u0085\n",
    "seed: 1:60:60\n", "seed: !!bool 3\n", "seed: !!null x\n", "? {a: b}\n: 1\n", "validate_: {}\n",
    "seed: \x07\n", "model: |2\n x\n",
    "\n".join(f"{name}: &a{i} [{f'*a{i - 1}, ' * 8 if i else 'x, '} x]" for i, name in enumerate(_SETTINGS)),
]  # fmt: skip


def damage_yaml(data: bytes, rng: Random) -> bytes:
    """Fields by way of JSON, which is YAML; or what only YAML has; or bytes."""
    what = rng.randrange(4)
    if what == 0:
        return rng.choice(_YAML).encode("utf-8", "surrogatepass")
    if what == 1:
        at = data.rfind(b"\n", 0, rng.randrange(len(data) + 1)) + 1
        return data[:at] + rng.choice(_YAML).encode() + data[at:]
    if what == 2:
        return json_mutator(("seed", "shift", "scanner", "mean", "dims", "columns", "validate"))(data, rng)
    return damage(data, rng)
