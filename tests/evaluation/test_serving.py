"""Masked against full inference of a small student: same noise, honest figures, the decision they lead to."""

import json

import numpy as np
import pytest
from evaluation_fakes import small_fab
from student_fakes import made_generator

from ikddit.embedding.conditions import gather_maps
from ikddit.evaluation import serving
from ikddit.evaluation.gate import serving_report
from ikddit.evaluation.scores import gaussian_of
from ikddit.overlay import kpi
from ikddit.params import EvaluateParams

PARAMS = EvaluateParams.model_validate(
    {"steps": 5, "serving": {"wafers": 4, "samples": 2, "seeds": 3}}, strict=False
)


@pytest.fixture(scope="module")
def fab():
    return small_fab(12, seed=0)


def test_nothing_masked_gives_the_same_figures_in_both_modes(fab):
    modes = serving.compare_modes(made_generator(mask_ratio=0.0), fab, PARAMS, seed=3)
    assert modes["masked"].frechet == modes["full"].frechet
    assert modes["masked"].rmse_nm == modes["full"].rmse_nm
    assert modes["masked"].ome == modes["full"].ome
    assert len(set(modes["full"].rmse_nm)) == 3  # the seeds differ
    assert all(s > 0 for mode in modes.values() for s in mode.seconds)


def test_figures_are_of_the_ensemble_mean_of_the_same_wafers(fab):
    generator = made_generator()
    modes = serving.compare_modes(generator, fab, PARAMS, seed=3)
    part = serving.take(fab, serving.evaluation_subset(fab, 4))
    for mode, figures in modes.items():
        mean = generator.sample(part, 2, 5, seed=4, inference=mode).mean(1)
        assert figures.rmse_nm[1] == pytest.approx(float(kpi.rmse_nm(mean, part.map, part.valid)), rel=1e-6)
    assert modes["masked"].rmse_nm != modes["full"].rmse_nm


def test_distances_are_to_all_measured_maps_of_the_split(fab):
    generator = made_generator()
    found = serving.compare_modes(generator, fab, PARAMS, seed=3)["full"].frechet[0]
    part = serving.take(fab, serving.evaluation_subset(fab, 4))
    samples = generator.sample(part, 2, 5, seed=3, inference="full")
    every = gaussian_of(
        generator.model.embedding.embed_map(*gather_maps(fab, slice(None), 1.0)).detach().numpy()
    )
    assert found == pytest.approx(serving.frechet_embedding(generator, part, samples, every), rel=1e-5)
    assert found != pytest.approx(serving.frechet_embedding(generator, part, samples), rel=1e-2)


def test_damaged_masked_samples_are_never_served(fab, monkeypatch):
    generator = made_generator()
    sample, order = generator.sample, []

    def damaged(split, n, steps, seed, inference):
        order.append(inference)
        return sample(split, n, steps, seed=seed, inference=inference) + 3.0 * (inference == "masked")

    monkeypatch.setattr(generator, "sample", damaged)
    decision, report = serving_report(serving.measure_serving(generator, fab, PARAMS, seed=0))
    assert decision.served == report["served"] == "full"
    failed = {check.name for check in decision.checks if not check.passed}
    assert {"rmse_nm", "ome"} <= failed
    # warm-up of both, then turns, the first one changing
    assert order == ["full", "masked", "full", "masked", "masked", "full", "full", "masked"]
    written = json.loads(json.dumps(report))
    assert written["seeds"] == [0, 1, 2]
    assert len(written["masked"]["frechet"]) == 3
    assert len(written["reasons"]) == 5


def test_equal_maps_in_half_the_time_are_served_masked(fab, monkeypatch):
    generator = made_generator(mask_ratio=0.0)
    clock = iter(np.cumsum([0.0, 2.0, 0.0, 1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 2.0, 0.0, 1.0]))
    monkeypatch.setattr(serving.time, "perf_counter", lambda: float(next(clock)))
    decision, report = serving_report(serving.measure_serving(generator, fab, PARAMS, seed=0))
    assert report["speedup"] == pytest.approx(2.0)
    assert decision.served == report["served"] == "masked"
