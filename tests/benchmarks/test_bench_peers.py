"""What the benchmark counts and leaves out; that it runs at all is seen on the smallest cell."""

import json

import pytest
import torch
from bench_peers import Cell, Cost, Settings, count_passes, kept_bytes, main, model_name, run_cells, table
from bench_peers import training_contest as contest_of
from common import clock_of

from ikddit.networks.sizes import SIZES

SETTINGS = Settings("T", 2, "fp32", torch.device("cpu"), "wafer")


def made_cell(batch: int, kept_bytes_per_wafer: float = 1.0) -> Cell:
    cost = Cost(1e9, {}, 0.0, kept_bytes_per_wafer)
    return Cell("sample", 64, batch, {"ours": cost, "dit": cost})


@pytest.mark.parametrize("tokens", [64, 256, 1024])
def test_sizes_have_the_tokens_that_they_are_named_by(tokens: int) -> None:
    assert SIZES[model_name(tokens, "S")].side ** 2 == tokens


def test_a_training_step_makes_the_passes_that_are_stated() -> None:
    contest = contest_of(64, 2, SETTINGS)
    found = {name: count_passes(run, contest.parts[name]) for name, run in contest.runs.items()}
    student = {60: 2, 30: 4}
    assert found == {
        # the teacher stops at its tap; real and fake tokens are judged for one side, fake ones for the other
        "ours": {"student": student, "teacher": {60: 4}, "discriminator": {30: 3}},
        "ours_alone": {"student": student},
        "dit": {"network": {60: 6}},
        "maskdit": {"network": {60: 2, 30: 6}},
    }


def test_watching_leaves_no_hook_behind() -> None:
    contest = contest_of(64, 1, SETTINGS)
    network = contest.parts["dit"]["network"]
    first = count_passes(contest.runs["dit"], {"network": network})
    assert count_passes(contest.runs["dit"], {"network": network}) == first


def test_kept_bytes_are_what_backward_needs_and_no_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(100, 100))
    x = torch.ones(50, 100)
    # the product keeps x (and the weight, which does not count), the square the product
    assert kept_bytes(lambda: (x @ weight).square().sum()) == 2 * 50 * 100 * 4
    assert kept_bytes(lambda: x @ x.T) == 0


def test_cells_beyond_budget_or_memory_are_listed_with_the_reason() -> None:
    cells = [made_cell(10**9), made_cell(1), made_cell(2, 2.0**40)]
    rows, left_out = run_cells(cells, SETTINGS, 1, 60.0, 2.0**30, clock_of("wall"))
    assert [row["batch"] for row in rows] == [1]
    assert {cell["batch"]: cell["reason"].split(":")[0] for cell in left_out} == {
        2: "memory",
        10**9: "memory",
    }
    rows, left_out = run_cells(cells[:2], SETTINGS, 1, 60.0, 2.0**50, clock_of("wall"))
    assert [(cell["batch"], cell["reason"].split(":")[0]) for cell in left_out] == [(10**9, "time")]
    shown = table(rows, left_out)
    assert "left out: sample, 64 tokens, batch 1000000000: time:" in shown


def test_smallest_cell_runs_and_prints_json_and_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--tokens", "64", "--batch", "1", "--repeats", "2", "--steps", "1", "--tasks", "train"]
    monkeypatch.setattr("sys.argv", ["bench_peers.py", *options])
    main()
    said = capsys.readouterr()
    result = json.loads(said.out)
    (cell,) = result["cells"]
    for peer in ("dit", "maskdit"):
        ratio = cell["ratios"][f"{peer}/ours"]
        assert 0 < ratio["q25"] <= ratio["median"] <= ratio["q75"]
        assert f"{ratio['median']:.3g} (" in said.err
    assert [r["value"] for r in result["ratios"]] == [
        cell["ratios"][f"{peer}/ours"]["median"] for peer in ("dit", "maskdit")
    ]
    counted = result["networks"]["train, 64 tokens"]
    assert counted["ours"]["gflops_per_wafer"] > counted["ours_alone"]["gflops_per_wafer"]
    assert counted["dit"]["gflops_per_wafer"] > counted["maskdit"]["gflops_per_wafer"]
    assert {"device", "threads", "torch", "dtype"} <= set(result)
