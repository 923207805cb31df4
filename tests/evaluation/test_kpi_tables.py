"""KPI tables against figures counted by hand on maps that are simple enough to count."""

import numpy as np
import pyarrow as pa
import pytest

from ikddit.evaluation.kpi_tables import (
    TAUS_NM,
    KpiTable,
    correction_models,
    fitters_of,
    samples_m3s_by_zones,
)
from ikddit.overlay import kpi
from ikddit.overlay.grid import EDGE_ZONE_MM, wafer_grid
from ikddit.overlay.terms import Basis, fit_terms, linear_basis
from made_maps import term_maps

GRID = wafer_grid()
EDGE = GRID.usable & (GRID.radius_mm > EDGE_ZONE_MM)
WAFERS = pa.table(
    {
        "chuck_id": ["CHK1", "CHK2", "CHK1", "CHK2"],
        "scanner_id": ["A", "A", "B", None],
    }
)


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random measured maps (NaN under invalid marks), masks, and a forecast that is off by known amounts."""
    rng = np.random.default_rng(0)
    valid = ((rng.random((4, 64, 64)) < 0.9) & GRID.usable).astype(np.uint8)
    measured = rng.normal(0.5, 2.0, (4, 2, 64, 64)).astype(np.float32)
    off = np.zeros_like(measured)
    off[:, 0] = 1.0  # dx
    off[:, 1] = np.where(EDGE, 3.0, 0.5)  # dy, worse at the edge
    off[3] *= 2.0
    forecast = measured + off
    measured[np.broadcast_to(valid[:, None] == 0, measured.shape)] = np.nan
    return measured, valid, forecast


def p997_nm(maps: np.ndarray, valid: np.ndarray) -> float:
    """Mean over wafers and axes of the 99.7 percentile of |overlay| over the valid marks."""
    size = np.abs(np.where(valid[:, None] != 0, maps, np.nan)).reshape(len(maps), 2, -1)
    return float(np.nanpercentile(size, 99.7, axis=-1).mean())


def not_correctable(maps: np.ndarray, valid: np.ndarray, basis: Basis) -> np.ndarray:
    """What is left of each wafer's map without the fitted terms; NaN under invalid marks."""
    fitted = term_maps(basis, fit_terms(basis, maps, valid))
    return np.where(valid[:, None] != 0, maps - fitted, np.nan)


def by_cell(rows) -> dict[tuple[str, str], dict]:
    return {(row["group"], row["level"]): row for row in rows}


@pytest.fixture(scope="module")
def table() -> KpiTable:
    measured, valid, _ = scene()
    return KpiTable(measured, valid, WAFERS, tau_nm=1.5)


@pytest.fixture(scope="module")
def lines(table: KpiTable) -> dict[tuple[str, str], dict]:
    return by_cell(table.rows("made", scene()[2]))


def test_groups_are_all_axes_zones_chucks_and_named_scanners(lines) -> None:
    assert list(lines) == [
        ("all", "all"),
        ("axis", "x"),
        ("axis", "y"),
        ("zone", "centre"),
        ("zone", "edge"),
        ("chuck", "CHK1"),
        ("chuck", "CHK2"),
        ("scanner", "A"),
        ("scanner", "B"),
    ]


def test_rmse_and_ome_of_known_errors(lines) -> None:
    _, valid, _ = scene()
    edge, centre = (valid[:, EDGE] != 0).sum(1), (valid[:, ~EDGE] != 0).sum(1)
    scale = np.array([1.0, 1.0, 1.0, 2.0])
    both = edge + centre
    assert lines["axis", "x"]["rmse_nm"] == pytest.approx(np.sqrt((scale**2 * both).sum() / both.sum()))
    assert lines["axis", "x"]["ome"] == pytest.approx(both[3] / both.sum())  # only 2 nm is beyond 1.5
    assert lines["axis", "y"]["ome"] == pytest.approx(
        edge.sum() / both.sum()
    )  # 3 and 6 nm; 0.5 and 1 are not
    squares = scale**2 * (edge * (1 + 9))
    assert lines["zone", "edge"]["rmse_nm"] == pytest.approx(np.sqrt(squares.sum() / (2 * edge.sum())))
    assert lines["chuck", "CHK1"]["n_marks"] == 2 * both[[0, 2]].sum()
    assert lines["scanner", "B"]["n_wafers"] == 1
    assert lines["scanner", "B"]["rmse_nm"] == pytest.approx(
        np.sqrt((both[2] + 9 * edge[2] + 0.25 * centre[2]) / (2 * both[2]))
    )


@pytest.mark.parametrize(("level", "zone"), [("centre", ~EDGE), ("edge", EDGE)])
def test_figures_of_a_zone_are_those_of_its_marks_alone(lines, level, zone) -> None:
    measured, valid, forecast = scene()
    part = valid * zone
    line = lines["zone", level]
    assert line["m3s_measured_nm"] == pytest.approx(kpi.m3s_nm(measured, part).mean(), rel=1e-5)
    assert line["m3s_forecast_nm"] == pytest.approx(kpi.m3s_nm(forecast, part).mean(), rel=1e-5)
    assert line["p997_nm"] == pytest.approx(p997_nm(forecast, part), rel=1e-5)
    assert line["p997_error_nm"] == pytest.approx(p997_nm(forecast - measured, part), rel=1e-5)
    assert line["m3s_error_nm"] is None  # a mean map's M3S lacks the noise: no fair error


def test_correctable_shares_are_those_of_the_fit(lines) -> None:
    _, valid, forecast = scene()
    for name, basis in correction_models().items():
        residual = not_correctable(forecast, valid, basis)
        inside = np.broadcast_to(valid[:, None] != 0, forecast.shape)
        left = np.nansum(residual**2)
        share = 1 - left / (forecast[inside].astype(np.float64) ** 2).sum()
        assert lines["all", "all"][f"correctable_{name}"] == pytest.approx(share, abs=1e-6)
        assert lines["all", "all"][f"nce_m3s_{name}_nm"] == pytest.approx(
            kpi.m3s_nm(residual, valid).mean(), rel=1e-5
        )
        edge = kpi.m3s_nm(residual, valid * EDGE).mean()
        assert lines["zone", "edge"][f"nce_m3s_{name}_nm"] == pytest.approx(edge, rel=1e-5)


def test_ten_planted_parameters_are_found_and_corrected_completely() -> None:
    basis = linear_basis(10)
    terms = np.random.default_rng(1).normal(size=(4, 2, 5)) * [1.0, 0.02, 0.02, 0.1, 0.1]
    maps = term_maps(basis, terms)
    _, valid, _ = scene()
    table = KpiTable(maps, valid, WAFERS, 1.5)
    np.testing.assert_allclose(fitters_of(valid)["10"].terms(maps), terms, atol=1e-6)
    line = by_cell(table.measured_rows())["all", "all"]
    assert line["correctable_10"] == pytest.approx(1.0, abs=1e-9)
    assert line["correctable_k"] == pytest.approx(1.0, abs=1e-9)
    assert line["correctable_6"] < 0.99
    assert line["nce_m3s_10_nm"] < 1e-4
    assert "rmse_nm" not in line


def test_m3s_of_samples_is_compared_with_the_measured_one(table) -> None:
    measured, valid, _ = scene()
    samples = np.random.default_rng(2).normal(0.5, 2.0, (4, 3, 2, 64, 64)).astype(np.float32)
    lines = by_cell(table.rows("sampler", samples.mean(1), samples_m3s_by_zones(samples, scene()[1])))
    for cell, mask, axes in (
        (("all", "all"), valid, slice(None)),
        (("zone", "edge"), valid * EDGE, slice(None)),
        (("axis", "y"), valid, slice(1, 2)),
    ):
        forecast = kpi.samples_m3s_nm(samples, mask).mean(1)[:, axes]
        truth = kpi.m3s_nm(measured, mask)[:, axes]
        assert lines[cell]["m3s_forecast_nm"] == pytest.approx(forecast.mean(), rel=1e-5)
        assert lines[cell]["m3s_error_nm"] == pytest.approx(kpi.m3s_error_nm(forecast, truth), rel=1e-4)


def test_ome_curve_is_ome_at_every_tau(table) -> None:
    measured, valid, forecast = scene()
    curve = dict(zip(TAUS_NM, table.ome_curve(forecast), strict=True))
    for tau in (0.25, 0.75, 1.5, 4.0, 5.0):
        assert curve[tau] == pytest.approx(kpi.ome(forecast, measured, valid, tau), abs=1e-12)
    assert curve[0.25] == 1.0


def test_a_zero_map_has_no_correctable_share(table) -> None:
    line = next(table.rows("zero", np.zeros((4, 2, 64, 64), np.float16)))
    assert line["correctable_6"] is None
    assert line["m3s_forecast_nm"] == 0.0
