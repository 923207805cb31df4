"""Drift statistics against scipy and closed forms; chance is no drift, and no consequence is no drift."""

import numpy as np
import pytest
from made_wafers import made_split
from scipy import stats

from ikddit.monitoring.drift import (
    PSI_FLOOR,
    corrected,
    group_means,
    log_drift,
    map_drift,
    map_terms,
    measure_drift,
    pooled_shift,
    psi,
    unknown_ids,
)
from ikddit.params import DriftParams

LIMITS = DriftParams()
WAFERS, LOTS = 10, 40


def fab(seed: int, shift: np.ndarray | float = 0.0, lots: int = LOTS, step_nm: float = 0.0):
    """Lots with an offset of their own in every log channel and in the translation; scanner B may step."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(size=(lots, 1, 3)) + 0.3 * rng.normal(size=(lots, WAFERS, 3)) + shift
    scanner = np.repeat(["A", "B"], lots // 2)
    offset = 0.4 * rng.normal(size=(lots, 1)) + 0.2 * rng.normal(size=(lots, WAFERS))
    offset = offset + step_nm * (scanner == "B")[:, None]
    maps = np.zeros((lots * WAFERS, 2, 64, 64))
    maps[:, 0] = offset.reshape(-1, 1, 1)
    names = [f"L{seed}-{i}" for i in range(lots)]
    return made_split(np.repeat(scanner, WAFERS), np.repeat(names, WAFERS), logs.reshape(-1, 3), maps)


def test_psi_of_two_bins_is_the_closed_form() -> None:
    reference, new = np.repeat([0.0, 1.0], [50, 50]), np.repeat([0.0, 1.0], [20, 80])
    expected = (0.2 - 0.5) * np.log(0.2 / 0.5) + (0.8 - 0.5) * np.log(0.8 / 0.5)
    assert psi(reference, new, bins=2) == pytest.approx(expected)


def test_psi_of_what_training_never_saw_is_finite() -> None:
    far = psi(np.arange(100.0), np.full(10, 1e6))
    assert far == pytest.approx((1 - 0.1) * np.log(1 / 0.1) + 9 * (PSI_FLOOR - 0.1) * np.log(PSI_FLOOR / 0.1))


def test_log_figures_are_scipys() -> None:
    train, new = fab(1), fab(2, shift=np.array([0.0, 0.7, 0.0]))
    found = log_drift(train, new, LIMITS)[1]
    a, b = (split.log_features[:, 1].astype(float) for split in (train, new))
    assert found.wasserstein_sd == pytest.approx(stats.wasserstein_distance(a, b) / a.std())
    assert found.ks == pytest.approx(stats.ks_2samp(a, b).statistic)
    means = [
        group_means(split.log_features.astype(float), np.arange(400) // WAFERS) for split in (train, new)
    ]
    raw = [stats.ks_2samp(means[0][:, k], means[1][:, k]).pvalue for k in range(3)]
    assert found.p_value == pytest.approx(stats.false_discovery_control(raw, method="by")[1])


def test_shift_of_a_channel_is_found_and_no_other() -> None:
    drift = log_drift(fab(1), fab(2, shift=np.array([0.0, 2.0, 0.0])), LIMITS)
    assert [log.channel for log in drift if log.drifted] == ["heat"]
    assert drift[1].wasserstein_sd == pytest.approx(2.0, abs=3 * np.sqrt(2 / LOTS))


def test_lots_that_differ_as_lots_do_are_no_drift() -> None:
    # Wafer by wafer these few lots look like another population: their offsets are shared.
    train = fab(0)
    alarms = [log_drift(train, fab(seed, lots=6), LIMITS) for seed in range(1, 31)]
    wafer_level = [log.ks > 0.3 for drift in alarms for log in drift]
    assert np.mean(wafer_level) > 0.2
    assert sum(log.drifted for drift in alarms for log in drift) == 0


def test_small_shift_is_no_drift_however_many_lots_prove_it() -> None:
    drift = log_drift(fab(1, lots=400), fab(2, shift=0.5, lots=400), LIMITS)
    assert all(log.p_value < 0.01 for log in drift)
    assert not any(log.drifted for log in drift)


def test_channel_that_is_no_longer_received_has_drifted() -> None:
    logs, lots = np.zeros((20, 3)), [f"L{i}" for i in range(20)]
    silent = np.zeros((20, 3), bool)
    silent[:, 2] = True
    drift = log_drift(
        made_split(["A"] * 20, lots, logs), made_split(["A"] * 20, lots, logs, missing=silent), LIMITS
    )
    assert [log.drifted for log in drift] == [False, False, True]
    assert drift[2].missing_change == 1.0


def test_unknown_ids_are_counted_by_field() -> None:
    split = made_split(["A"] * 4, list("wxyz"), np.zeros((4, 3)), unknown_reticle=np.array([1, 2]))
    shares = unknown_ids(split)
    assert shares["reticle_id"] == 0.5
    assert shares["scanner_id"] == 0.0
    assert shares["prev_layer"] == 0.0  # not given at all: nothing unknown about it
    reasons = measure_drift(split, split, LIMITS).reasons
    assert reasons == ["reticle_id: 50.0% of the wafers have an id unknown to training"]


def test_coefficients_are_nm_rms_of_their_pattern() -> None:
    maps = np.zeros((1, 2, 64, 64))
    maps[0, 0], maps[0, 1] = 3.0, -2.0
    terms, names = map_terms(made_split(["A"], ["L"], np.zeros((1, 3)), maps))
    found = dict(zip(names, terms[0].tolist(), strict=True))
    assert found["Tx"] == pytest.approx(3.0)
    assert found["Ty"] == pytest.approx(-2.0)
    assert all(abs(found[name]) < 1e-6 for name in ("Mx", "Rx", "mx", "My", "Ry"))


def test_pooled_test_of_one_cell_is_students_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 2)), rng.normal(0.5, 1.0, size=(7, 2))
    shift, p, units = pooled_shift((a, np.zeros(9, int)), (b, np.zeros(7, int)), 1)
    expected = stats.ttest_ind(b, a)
    assert np.allclose(p[0], expected.pvalue)
    assert np.allclose(shift[0], b.mean(0) - a.mean(0))
    assert units.ravel().tolist() == [9, 7]


def test_pooled_test_of_cells_is_the_contrast_of_a_linear_model() -> None:
    rng = np.random.default_rng(1)
    cells = [np.repeat([0, 1, 2], 4), np.repeat([0, 1, 2], [3, 2, 5])]
    values = [rng.normal(size=(len(c), 1)) for c in cells]
    _, p, _ = pooled_shift((values[0], cells[0]), (values[1], cells[1]), 3)
    y = np.concatenate(values)[:, 0]
    groups = np.concatenate([cells[0], 3 + cells[1]])
    design = np.eye(6)[groups]
    beta, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    contrast = np.array([0, -1, 0, 0, 1, 0.0])
    error = np.sqrt(residual[0] / (len(y) - 6) * contrast @ np.linalg.inv(design.T @ design) @ contrast)
    assert p[1, 0] == pytest.approx(2 * stats.t.sf(abs(contrast @ beta) / error, len(y) - 6))


def test_step_of_one_scanner_is_found_on_that_scanner_alone() -> None:
    found = [m for m in map_drift(fab(1), fab(2, step_nm=2.0), LIMITS) if m.drifted]
    assert [(m.scanner_id, m.term, m.lots) for m in found] == [("B", "Tx", LOTS // 2)]
    assert found[0].shift_nm == pytest.approx(2.0, abs=0.4)


def test_maps_of_the_same_fab_have_not_drifted() -> None:
    train = fab(0)
    found = [m.drifted for seed in range(1, 21) for m in map_drift(train, fab(seed, lots=8), LIMITS)]
    assert len(found) == 20 * 2 * 10
    assert not any(found)


def test_machine_with_too_few_lots_is_not_judged() -> None:
    one = made_split(["C"], ["L"], np.zeros((1, 3)), np.full((1, 2, 64, 64), 9.0))
    assert map_drift(fab(1), one, LIMITS) == []


def test_correction_keeps_the_share_of_false_alarms() -> None:
    rng = np.random.default_rng(0)
    assert np.mean([(corrected(rng.uniform(size=100)) < 0.05).any() for _ in range(400)]) < 0.05
