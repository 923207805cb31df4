"""The simulator's likelihood of every (map, conditions) pair, against dense normal densities."""

import time

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ikddit.params import SimulateParams
from ikddit.simulator.constants import SIMULATOR_VERSION, WHITE_VAR, Fab
from ikddit.simulator.likelihood import MapLaw, exact_retrieval, map_laws, pair_log_density, retrieval_share
from ikddit.simulator.wafers import draw_lots, lot_numbers

PARAMS = SimulateParams(lots=6)


@pytest.fixture(scope="module")
def fab():
    return Fab.build(0)


@pytest.fixture(scope="module")
def wafers(fab):
    return draw_lots(fab, PARAMS, [int(lot) for lot in lot_numbers(PARAMS)])


def dense(values, known, matrix, mean, cov, shift, white_var):
    """Log density over the known marks alone, from the full covariance."""
    b = matrix[known]
    law = multivariate_normal(b @ mean + shift[known], b @ cov @ b.T + white_var * np.eye(len(b)))
    return law.logpdf(values[known])


def test_every_pair_is_the_dense_normal_density():
    rng = np.random.default_rng(0)
    maps, laws, marks, terms = 4, 3, 25, 5
    values, known = rng.normal(size=(maps, marks)), rng.random((maps, marks)) < 0.8
    matrix, shift = rng.normal(size=(marks, terms)), rng.normal(size=(laws, marks))
    root = rng.normal(size=(laws, terms, terms))
    mean, cov = rng.normal(size=(laws, terms)), root @ root.transpose(0, 2, 1) + 0.1 * np.eye(terms)
    found = pair_log_density(values, known, matrix, MapLaw(mean, cov, shift), 0.3)
    for i in range(maps):
        for j in range(laws):
            expected = dense(values[i], known[i], matrix, mean[j], cov[j], shift[j], 0.3)
            assert found[i, j] == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def four(fab, wafers):
    """Four wafers and their laws."""
    some = wafers.take(np.array([0, 1, 30, 77]))
    return some, map_laws(fab, some)


@pytest.fixture(scope="module")
def spread(fab, wafers):
    """Four wafers of each lot and their laws."""
    some = wafers.take(np.arange(0, len(wafers), 6))
    return some, map_laws(fab, some)


@pytest.mark.parametrize("pair", [("map", "log"), ("map", "id"), ("current", "log"), ("current", "id")])
def test_the_fabs_own_laws_on_fifty_marks(fab, four, pair):
    some, laws = four
    law = laws[pair]
    maps, valid = (some.map, some.valid) if pair[0] == "current" else (some.prev_map, some.prev_valid)
    rows = fab.basis.to_rows(maps.astype(float))
    marks = np.zeros(rows.shape[1], bool)
    marks[np.random.default_rng(0).permutation(len(marks))[:50]] = True
    known = marks & np.tile(valid[:, fab.basis.usable] > 0, (1, 2))
    shift = np.zeros_like(rows) if law.shift is None else law.shift
    found = pair_log_density(rows, known, fab.basis.matrix, law)
    for i, j in ((0, 0), (1, 3), (3, 2)):
        expected = dense(rows[i], known[i], fab.basis.matrix, law.mean[j], law.cov[j], shift[j], WHITE_VAR)
        assert found[i, j] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("pair", [("map", "log"), ("map", "id"), ("current", "log"), ("current", "id")])
def test_a_wafers_own_conditions_explain_its_map_better_than_strangers(fab, spread, pair):
    some, laws = spread
    law = laws[pair]
    maps, valid = (some.map, some.valid) if pair[0] == "current" else (some.prev_map, some.prev_valid)
    known = np.tile(valid[:, fab.basis.usable] > 0, (1, 2))
    score = pair_log_density(fab.basis.to_rows(maps.astype(float)), known, fab.basis.matrix, law)
    other_lot = some.lot[:, None] != some.lot[None]
    strangers = np.where(other_lot, score, -np.inf).max(1)
    assert (np.diag(score) > strangers).mean() > 0.9


def test_logs_tell_more_than_ids_and_chance_is_far_below(fab, wafers):
    dataset_json = {"seeds": PARAMS.model_dump(mode="json"), "simulator_version": SIMULATOR_VERSION}
    barcodes = wafers.barcode[::3]
    began = time.perf_counter()
    found = exact_retrieval(dataset_json, barcodes)
    assert time.perf_counter() - began < 20
    assert found["exact_retrieval_batch"] == len(barcodes)
    for pair in ("current_to_log", "log_to_current", "map_to_log", "log_to_map"):
        assert found[f"exact_retrieval_{pair}_at_1"] > 0.7
    for name, value in found.items():
        if name.endswith("_at_1"):
            assert value <= found[name[:-1] + "5"] <= 1


def test_retrieval_counts_any_match_among_the_k_best():
    score = np.array([[0.0, 3.0, 2.0], [1.0, 0.0, 5.0], [9.0, 1.0, 0.0]])
    own = np.eye(3, dtype=bool)
    assert retrieval_share(score, own, 1) == 0.0
    assert retrieval_share(score, own, 2) == 0.0
    assert retrieval_share(score, own, 3) == 1.0
    shared = own.copy()
    shared[0, 1] = True
    assert retrieval_share(score, shared, 1) == pytest.approx(1 / 3)
