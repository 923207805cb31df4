"""New raw data: deliveries in a drop folder, the gate, and data set versions made of what passed it.

data/incoming/2024-03/   a delivery: MPOM folder or zip, mark table or folder of them; its name sorts by time
data/months/2024-03/     passed the gate
data/refused/2024-03/    did not; reports/retrain/ says why
data/raw/                the data set a challenger is trained on: `base` and months, one version under DVC
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from ikddit.atomic import atomic_dir, atomic_path, read_json, write_json
from ikddit.errors import IkdditError, InputError
from ikddit.mpom.ingest import ingest
from ikddit.mpom.source import DESCRIPTION
from ikddit.mpom.survey import read_description
from ikddit.mpom.validate import validate
from ikddit.params import Params

RAW = "data/raw"
MONTHS = "data/months"
REFUSED = "data/refused"
BASE = "base"
"""The data set before any delivery: what `data.raw` of params.yaml names."""
UNFINISHED = (".part", ".tmp", ".filepart")
"""Deliveries still being copied; a name that begins with a dot is one, too."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SAME = (
    "format", "format_version", "units", "scale_nm", "encoding", "sign", "reference", "pitch_mm", "field_mm",
    "feature_names",
)  # fmt: skip
"""Keys of dataset.json that all deliveries of a data set must share."""


@dataclass(frozen=True)
class Judged:
    """One delivery at the gate."""

    name: str
    passed: bool
    reason: str
    found: int = 0
    records: int = 0
    quarantined: int = 0


def pending(incoming: Path) -> list[Path]:
    """Complete deliveries, in the order of their names."""
    if not incoming.is_dir():
        return []
    return sorted(
        path
        for path in incoming.iterdir()
        if not path.name.startswith(".") and not path.name.endswith(UNFINISHED) and path.suffix != ".dvc"
    )


def name_of(path: Path) -> str:
    """Name of a delivery: without the suffix of a file.

    >>> name_of(Path("data/incoming/2024-03.zip"))
    '2024-03'
    """
    return path.stem if path.suffix.lower() in (".zip", ".csv", ".parquet") else path.name


def judge(path: Path, root: Path, params: Params, scratch: Path, beside: Sequence[Path] = ()) -> Judged:
    """Ingest and validate one delivery by itself, described as it would be inside the data set.

    Args:
        path: the delivery; it is only read.
        root: the checkout.
        params: sections `data`, `ingest` and `validate`.
        scratch: folder for records, quarantine and reports; replaced.
        beside: all deliveries of this run; of two of one name the second is stopped under its whole name.
    """
    name = name_of(path)
    if (first := next((other for other in beside if name_of(other) == name), path)) != path:
        twice = InputError(path.name, "name", f"{first.name} has the same", "give one of them another")
        return Judged(path.name, False, f"{type(twice).__name__}: {twice}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        if not _NAME.fullmatch(name) or name == BASE:
            raise InputError(
                str(path.name), "name", "not a name for a delivery", "use letters, digits, . _ -"
            )
        if any(name == name_of(taken) for taken in pending(root / MONTHS)):
            raise InputError(name, "name", "a delivery of this name was taken in before", "give it another")
        description = merge(described(base_folder(root, params), params), described(path, params))
        raw = scratch / "raw"
        copy_in(path, raw / path.name, link=True)
        write_json(raw / DESCRIPTION, description)
        found = ingest(
            raw,
            scratch / "records",
            scratch / "quarantine" / "ingest",
            scratch / "ingest.json",
            params.ingest,
        )
        judged = validate(
            scratch / "records",
            scratch / "validated",
            scratch / "quarantine" / "validate",
            scratch / "report",
            params.validate_,
            ingest_quarantine=scratch / "quarantine" / "ingest",
        )
    except IkdditError as error:
        counts = {"found": 0, "records": 0, "quarantined": 0}
        for file in ("ingest.json", "report/validation.json"):
            if (scratch / file).is_file():
                counts |= {key: value for key, value in read_json(scratch / file).items() if key in counts}
        counts["quarantined"] = counts["found"] - counts["records"]
        return Judged(name, False, f"{type(error).__name__}: {error}".replace(f"{root}/", ""), **counts)
    finally:
        shutil.rmtree(scratch / "raw", ignore_errors=True)
    records, all_found = int(judged["records"]), int(found["found"])
    text = f"{records} of {all_found} wafers passed"
    return Judged(name, True, text, all_found, records, all_found - records)


def base_folder(root: Path, params: Params) -> Path:
    """Where the data set before any delivery lies."""
    return root / RAW / BASE if params.data.raw == RAW else root / params.data.raw


def described(path: Path, params: Params) -> dict[str, Any]:
    """dataset.json of a delivery or data set; {} for one without, or for a mark table."""
    if path == path.parent / BASE and (path.parent / DESCRIPTION).is_file():
        path = path.parent
    if path.is_dir() or path.suffix.lower() == ".zip":
        return read_description(path, int(params.ingest.max_member_mb * 2**20))
    return {}


def merge(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """dataset.json of both together.

    Ids are united. The seeds of a simulated fab stay if one fab and sample made both (a forced shift known
    to one of them counts for both: it has its day); else there is no oracle. Figures of the parts, such as
    the floor, are left out.

    Raises:
        InputError: the two do not describe maps or channels alike.

    >>> merge({"scale_nm": 16.0}, {"scale_nm": 8.0})
    Traceback (most recent call last):
        ...
    ikddit.errors.InputError: dataset.json: scale_nm: 8.0, but the data set has 16.0; ...
    """
    if not base or not new:
        return dict(base or new)
    for key in _SAME:
        if key in new and key in base and new[key] != base[key]:
            found, known = (repr(v) if len(repr(v)) < 40 else "another list" for v in (new[key], base[key]))
            raise InputError(
                DESCRIPTION,
                key,
                f"{found}, but the data set has {known}",
                "export it like the deliveries before",
            )
    out = {key: value for key, value in (*new.items(), *base.items()) if key in _SAME}
    ids = [part["ids"] for part in (base, new) if "ids" in part]
    if len(ids) == 2:
        fields = dict.fromkeys([*ids[0], *ids[1]])
        out["ids"] = {f: list(dict.fromkeys([*ids[0].get(f, []), *ids[1].get(f, [])])) for f in fields}
    if base.get("simulator_version") == new.get("simulator_version") and "seeds" in base and "seeds" in new:
        one, two = dict(base["seeds"]), dict(new["seeds"])
        shifts = [seeds.pop("shift") for seeds in (one, two) if "shift" in seeds]
        keys = ("fab_seed", "sample_seed", "unflagged_flyers")
        if all(one[key] == two[key] for key in keys) and all(shift == shifts[0] for shift in shifts):
            out |= {
                "simulator_version": base["simulator_version"],
                "seeds": one | ({"shift": shifts[0]} if shifts else {}),
            }
    return out


def chosen(names: Iterable[str], months: int) -> list[str]:
    """Parts of the next data set version: the newest `months` of base and deliveries; 0 takes all.

    >>> chosen(["2024-03", "2024-02"], 0), chosen(["2024-03", "2024-02"], 2)
    (['base', '2024-02', '2024-03'], ['2024-02', '2024-03'])
    """
    return [BASE, *sorted(names)][-months:]


def compose(root: Path, params: Params, parts: list[str], deliveries: Mapping[str, Path]) -> None:
    """Make `data/raw` hold exactly these parts; those it has already are not copied again.

    Args:
        root: the checkout.
        params: `data.raw` names the base, or `data/raw` itself where a version was checked out.
        parts: names, `base` among them or not.
        deliveries: where the others lie.
    """
    raw, base = root / RAW, base_folder(root, params)
    description = reduce(
        merge, (described(path, params) for path in (base, *(deliveries[p] for p in parts if p != BASE)))
    )
    raw.mkdir(parents=True, exist_ok=True)
    wanted = {deliveries[p].name if p != BASE else BASE for p in parts}
    for path in raw.iterdir():
        if path.name in wanted or path.name == DESCRIPTION:
            continue
        spare = path.name == BASE or path.name.startswith(".") or (root / MONTHS / path.name).exists()
        if params.data.raw == RAW and not spare:
            (root / MONTHS).mkdir(parents=True, exist_ok=True)
            _move(path, root / MONTHS / path.name)
        else:
            _delete(path)
    for part in parts:
        source = base if part == BASE else deliveries[part]
        target = raw / (BASE if part == BASE else source.name)
        if not target.exists():
            copy_in(source, target)
    write_json(raw / DESCRIPTION, description)


def copy_in(source: Path, target: Path, link: bool = False) -> None:
    """Copy a delivery, its own dataset.json left out: the data set has one for all; whole or not at all.

    With `link`, for those who only read, its files are hard links where the file system takes them.
    """

    def own(path: str, names: list[str]) -> list[str]:
        return [DESCRIPTION] if Path(path) == source and DESCRIPTION in names else []

    if not link:
        _copy(source, target, own)
    elif source.is_dir():
        _copy(source, target, own, _link_or_copy)
    elif not _linked(source, target):
        _copy(source, target)


def _copy(
    source: Path,
    target: Path,
    ignore: Callable[[str, list[str]], list[str]] | None = None,
    copy_file: Callable[[str, str], object] = shutil.copy2,
) -> None:
    """Copy a file or folder, whole or not at all."""
    if source.is_dir():
        with atomic_dir(target) as folder:
            shutil.copytree(source, folder, copy_function=copy_file, ignore=ignore, dirs_exist_ok=True)
    else:
        with atomic_path(target) as scratch:
            shutil.copy2(source, scratch)


def _link_or_copy(source: str, target: str) -> None:
    if not _linked(Path(source), Path(target)):
        shutil.copy2(source, target)


def _linked(source: Path, target: Path) -> bool:
    """Whether `target` is a hard link to `source` now; another file system takes none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def put_away(path: Path, folder: Path, judged: Judged) -> None:
    """Move a judged delivery out of the drop folder; a refused one of the same name is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / path.name
    if not judged.passed:
        _delete(target)
        write_json(folder / f"{judged.name}.json", asdict(judged))
    _move(path, target)


def _move(source: Path, target: Path) -> None:
    """Rename; to another file system: copy, whole or not at all, then delete."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    else:
        return
    _copy(source, target)
    gone = source.with_name(f".{source.name}.put-away")  # half of it deleted must not pass for a delivery
    _delete(gone)
    os.replace(source, gone)
    _delete(gone)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
