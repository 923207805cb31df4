"""Whatever is done to random files, the other wafers survive, the counts add up, nothing lands elsewhere."""

import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st
from ingested import ingest_into
from rawmpom import description, item, write, zip_of

from ikddit.errors import GateError

WAFERS = 4
FILES = [item(f"{seed:06d}", seed) for seed in range(WAFERS)]
NAMES = [(seed, name) for seed in range(WAFERS) for name in sorted(FILES[seed])]


@st.composite
def damages(draw):
    """Wafer, file and what happens to it: cut, a flipped byte, noise, emptied or gone."""
    seed, name = draw(st.sampled_from(NAMES))
    data = FILES[seed][name]
    kind = draw(st.sampled_from(["cut", "flip", "noise", "empty", "gone"]))
    if kind == "cut":
        data = data[: draw(st.integers(0, len(data) - 1))]
    elif kind == "flip":
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
    elif kind == "noise":
        data = draw(st.binary(max_size=200))
    elif kind == "empty":
        data = b""
    return seed, name, None if kind == "gone" else data


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@settings(max_examples=25, deadline=None)
@given(st.lists(damages(), min_size=1, max_size=4), st.booleans(), st.integers(1, 3))
def test_damage_stays_where_it_is(found_damages, as_zip, per_part):
    files = [dict(wafer) for wafer in FILES]
    for seed, name, data in found_damages:
        if data is None:
            files[seed].pop(name, None)
        else:
            files[seed][name] = data
    hurt = {seed for seed, _, _ in found_damages}
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "raw", Path(folder) / "out"
        together = {name: data for wafer in files for name, data in wafer.items()}
        write(raw, {"dataset.json": json.dumps(description()).encode()})
        write(raw, {"lots/L1.zip": zip_of(together)} if as_zip else together)
        before = tree(raw)
        try:
            ingest_into(out, raw, wafers_per_part=per_part)
        except GateError:
            assert len(hurt) == WAFERS
        report = json.loads((out / "report.json").read_text())
        lines = (out / "quarantine" / "quarantine.jsonl").read_text().splitlines()
        assert report["found"] == report["records"] + report["quarantined"]
        assert report["quarantined"] == len(lines)
        # A wafer all of whose files are gone is not there to be found.
        assert report["found"] == sum(bool(wafer) for wafer in files)
        kept = set()
        for part in (out / "records").glob("part-*.parquet"):
            kept |= set(pq.read_table(part, columns=["source"])["source"].to_pylist())
        sound = {f"{seed:06d}" for seed in range(WAFERS)} - {f"{seed:06d}" for seed in hurt}
        assert sound <= {name.rpartition("!")[2] for name in kept}
        assert all(json.loads(line)["reason"] for line in lines)
        assert tree(raw) == before
        assert {p.name for p in Path(folder).iterdir()} == {"raw", "out"}


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_damaged_zip_costs_at_most_its_own_items(data):
    sound = zip_of(FILES[0] | FILES[1])
    at = data.draw(st.integers(0, len(sound) - 1))
    length = data.draw(st.integers(1, 30))
    noise = data.draw(st.binary(min_size=length, max_size=length))
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "raw", Path(folder) / "out"
        write(raw, {"dataset.json": json.dumps(description()).encode(), **FILES[2], **FILES[3]})
        write(raw, {"lots/L1.zip": sound[:at] + noise + sound[at + length :]})
        report = ingest_into(out, raw)
        assert report["found"] == report["records"] + report["quarantined"]
        assert report["records"] >= 2
        sources = [
            source
            for part in sorted((out / "records").glob("part-*.parquet"))
            for source in pq.read_table(part, columns=["source"])["source"].to_pylist()
        ]
        assert sources[:2] == ["000002", "000003"]
        assert {p.name for p in Path(folder).iterdir()} == {"raw", "out"}
