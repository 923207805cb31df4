"""`make bench`: one table, whatever becomes of a single benchmark."""

from pathlib import Path

import pytest
from run import BENCHES, HERE, Bench, estimate, run_bench, table

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from ratios import Ratio, print_result
print("working", file=sys.stderr)
print_result({{"device": "cpu"}}, [Ratio("slow / fast", 1.5)])
sys.exit({code})
"""


def made_bench(folder: Path, name: str, code: int = 0) -> Bench:
    text = SCRIPT.format(folder=str(HERE), code=code)
    (folder / f"bench_{name}.py").write_text(text, encoding="utf-8")
    return Bench(name, 1)


def test_every_script_of_the_folder_is_run() -> None:
    assert {f"bench_{b.name}.py" for b in BENCHES} == {p.name for p in HERE.glob("bench_*.py")}


def test_table_has_the_ratios_and_what_became_of_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    benches = [
        made_bench(tmp_path, "good"),
        made_bench(tmp_path, "bad", code=3),
        Bench("absent", 5, lambda: "no model; train one"),
    ]
    assert estimate(benches).splitlines()[0] == "3 benchmarks, about 2 min on two quiet cores"
    outcomes = [run_bench(bench, tmp_path) for bench in benches]
    assert capfd.readouterr().err == "working\nworking\n"
    assert [o.failed for o in outcomes] == [False, True, False]
    assert outcomes[0].result["device"] == "cpu"
    _, good, bad, absent, took = table(outcomes).splitlines()
    assert good.split() == ["good", "1.5", "slow", "/", "fast"]
    assert "failed with exit code 3" in bad
    assert "left out: no model; train one" in absent
    assert "good" in took
    assert "absent" not in took
