"""The README's figures are those of the reports committed with it: a stale table fails here.

Both are read from the last commit: a run of one's own, on another machine or with other settings, is no fault.
"""

import csv
import io
import json
import re
import statistics

import pytest

from committed import committed

README = committed("README.md")
METRICS = json.loads(committed("reports/evaluation/metrics.json"))


def cells(label: str) -> list[str]:
    """The cells of the table row that starts with `label`, bold or not."""
    for line in README.splitlines():
        found = [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        if found[0] == label:
            return found[1:]
    raise AssertionError(f"no row {label!r} in the README")


def test_first_two_commands_set_up_run_and_test():
    block = re.search(r"```bash\n(.*?)```", README, re.DOTALL)
    assert block
    assert [line.split("#")[0].strip() for line in block[1].splitlines()] == ["make repro", "make test"]


@pytest.mark.parametrize(
    ("label", "rmse", "ome"),
    [
        ("zero map", "baselines.zero.rmse_nm", "baselines.zero.ome_1p5"),
        ("previous layer's map, copied", "baselines.persistence.rmse_nm", "baselines.persistence.ome_1p5"),
        ("mean of scanner and chuck", "baselines.chuck_mean.rmse_nm", "baselines.chuck_mean.ome_1p5"),
        ("ridge on ids, logs and previous map", "baselines.ridge_all.rmse_nm", "baselines.ridge_all.ome_1p5"),
        ("boosted trees on top of it", "baselines.gbm.rmse_nm", "baselines.gbm.ome_1p5"),
        ("student, point forecast", "rmse_nm", "ome_1p5"),
        ("student, plain mean of 15 samples", "ensemble_rmse_nm", None),
        ("exact floor", "floor_rmse_nm", "floor_ome_1p5"),
    ],
)
def test_results_are_those_of_metrics_json(label, rmse, ome):
    shown = cells(label)
    assert shown[0] == f"{value(rmse):.3f}"
    if ome:
        assert shown[1] == f"{100 * value(ome):.1f} %"


def value(name: str) -> float:
    found = METRICS
    for part in name.split("."):
        found = found[part]
    return float(found)


def test_figures_of_the_distribution_are_those_of_metrics_json():
    assert cells("CRPS nm")[:2] == [
        f"{value('crps_nm'):.3f}",
        f"{value('baselines.oracle.crps_nm'):.3f}, that of samples of the exact posterior",
    ]
    assert cells("90 % interval of a mark covers")[0] == f"{100 * value('coverage_90'):.1f} %"
    m3s = cells("90 % interval of a wafer's mean + 3 sigma covers")[0]
    assert m3s == f"{100 * value('m3s_coverage_90'):.1f} %"
    unseen = cells("RMSE nm on scanner x reticle pairs never seen together")[0]
    assert unseen == f"{value('test_unseen.rmse_nm'):.3f}"
    withheld = [value(f"without_{name}_rmse_nm") for name in ("prev_map", "logs", "ids")]
    shown = cells("RMSE nm without previous map / logs / ids")
    assert shown == [" / ".join(f"{v:.3f}" for v in withheld), f"above {value('rmse_nm'):.3f}"]
    covered = [value(f"without_{name}_m3s_coverage_90") for name in ("prev_map", "logs", "ids")]
    assert cells("90 % interval of mean + 3 sigma covers, without them (100 wafers)") == [
        " / ".join(f"{100 * v:.1f} %" for v in covered),
        "90 %",
    ]
    assert (
        cells("RMSE with another wafer's inputs, as a multiple")[0] == f"{value('shuffled_rmse_ratio'):.2f}"
    )


@pytest.mark.parametrize(
    ("label", "name", "digits"),
    [
        ("FID, dims 768", "inception_768", 4),
        ("FID, dims 192", "inception_192", 4),
        ("FID, dims 64", "inception_64", 5),
        ("Frechet distance, project's embedding", "embedding", 4),
    ],
)
def test_distances_are_those_of_the_last_run_with_weights(label, name, digits):
    found = json.loads(committed("reports/evaluation/fid.json"))
    assert found["fid15k"]["n"] == 15_000
    seeds = [float(row[f"fid15k.{name}"]) for row in table("seeds")]
    assert cells(label) == [
        f"{found['fid15k'][name]:.{digits}f}",
        f"{statistics.fmean(seeds):.{digits}f} +- {statistics.stdev(seeds):.{digits}f}",
        f"{found['reference']['test'][name]:.{digits}f}",
    ]


def table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(committed(f"reports/ablations/{name}.csv"))))


@pytest.mark.parametrize(
    ("label", "dense", "metric", "digits"),
    [
        ("RMSE nm, with the dense path", "True", "rmse_nm", 2),
        ("RMSE nm, without it", "False", "rmse_nm", 2),
    ],
)
def test_mask_ratios_are_those_of_the_committed_table(label: str, dense: str, metric: str, digits: int):
    shown = []
    for ratio in (0.0, 0.25, 0.5, 0.7):
        values = [
            float(row[metric])
            for row in table("mask")
            if row["train.dense_path"] == dense and float(row["mask_ratio"]) == ratio
        ]
        shown.append(f"{statistics.fmean(values):.{digits}f} +- {statistics.stdev(values):.{digits}f}")
    assert cells(label) == shown


def test_seeds_of_the_mask_ratios_are_counted():
    seeds = {row["seed"] for row in table("mask")}
    assert f"{ {2: 'two', 3: 'three'}[len(seeds)] } seeds, mean +- sd; paper-like base" in " ".join(
        README.split()
    )


def test_sizes_are_those_of_the_committed_table():
    found = {row["model"]: float(row["rmse_nm"]) for row in table("size")}
    text = f"T/8 {found['T/8']:.2f}, T/4 {found['T/4']:.2f}, S/8 {found['S/8']:.2f}"
    assert text in " ".join(README.split())


@pytest.mark.parametrize(
    ("text", "name", "rows"),
    [
        ("none / linear / learned {} / {} / {}", "mean", ["none", "linear", "learned"]),
        ("`lambda2` 0 / 0.01 / 0.1 gives {} / {} / {}", "lambda", ["0.1-0.0-", "0.1-0.01-", "0.1-0.1-"]),
        (
            "implicit {}, cosine {}, prototype {}, none {}",
            "discriminator",
            ["implicit", "cosine", "prototype", "none"],
        ),
        ("contrastive pre-training {}, without {}", "condition", ["true-true", "true-false"]),
        ("gated cross-attention on {}, off {}", "condition", ["true-true", "false-true"]),
    ],
)
def test_other_sweeps_are_those_of_the_committed_tables(text: str, name: str, rows: list[str]):
    found = {row["run"]: float(row["rmse_nm"]) for row in table(name)}
    shown = [next(v for run, v in found.items() if run.startswith(f"{name}-{row}")) for row in rows]
    assert text.format(*(f"{value:.2f}" for value in shown)) in " ".join(README.split())


def test_seeds_are_those_of_the_committed_table():
    rows = table("seeds")
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    words = " ".join(README.split())
    for text, name, digits in (
        ("point forecast", "rmse_nm", 3),
        ("mean of samples", "ensemble_rmse_nm", 3),
        ("CRPS", "crps_nm", 4),
    ):
        numbers = [float(row[name]) for row in rows]
        shown = f"{statistics.fmean(numbers):.{digits}f} +- {statistics.stdev(numbers):.{digits}f}"
        assert f"{text} {shown} nm" in words
    for text, name in (("of marks", "coverage_90"), ("of M3S", "m3s_coverage_90")):
        numbers = [100 * float(row[name]) for row in rows]
        assert f"{statistics.fmean(numbers):.1f} +- {statistics.stdev(numbers):.1f} % {text}" in words


def test_acceptance_bounds_of_the_default_profile_hold_for_the_committed_run():
    """What the default profile promises; a committed run that breaks it must be noticed, not described away."""
    ridge, floor = value("baselines.ridge_all.rmse_nm"), value("floor_rmse_nm")
    assert 1.20 <= ridge / floor <= 1.35
    assert value("ensemble_rmse_nm") <= 0.95 * ridge
    assert 0.87 <= value("coverage_90") <= 0.93
    assert 0.87 <= value("m3s_coverage_90") <= 0.93
    assert value("shuffled_rmse_ratio") >= 1.5
    for name in ("prev_map", "logs", "ids"):
        assert value(f"without_{name}_rmse_nm") > value("rmse_nm")
        assert value(f"without_{name}_m3s_coverage_90") >= 0.8
