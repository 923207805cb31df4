"""The tables of reports/evaluation/ and the headlines they put into metrics.json.

Models are named `student` (point forecast), `student_ensemble` (mean of its samples), the baselines as in
reports/baselines.json, `oracle` (exact conditional mean), and in kpis.csv `measured`, the measurement itself.
What only a simulated fab can know (the oracle) is absent for real data.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.baseline_maps import ORACLE, BaselineMaps
from ikddit.evaluation.copies import codes, copies
from ikddit.evaluation.csv_tables import columns_as_rows, write_csv
from ikddit.evaluation.generated import Generated
from ikddit.evaluation.kpi_tables import (
    BOTH,
    TAUS_NM,
    KpiTable,
    SamplesM3S,
    fitters_of,
    samples_m3s_by_zones,
)
from ikddit.evaluation.marks import ZONES, Zone
from ikddit.evaluation.specification import Call, call_of_map, call_of_samples, rates, roc_rows
from ikddit.evaluation.spectrum import BANDS_MM, band_power, radial_spectrum, wavelengths_mm
from ikddit.evaluation.student import Measured, ensemble_mean
from ikddit.evaluation.uncertainty import (
    LEVELS,
    EnsembleScores,
    energy_score_nm,
    ensemble_scores,
    exact_sigma_nm,
    m3s_coverage,
)
from ikddit.overlay import kpi
from ikddit.overlay.terms import Fitter

SPECTRUM_SAMPLES = 4
"""Samples per wafer whose spectra are averaged."""


@dataclass(frozen=True)
class Evidence:
    """Everything the tables are made from, for the same wafers in the same order."""

    generated: Generated
    measured: Measured
    baselines: BaselineMaps
    m3s_by_zones: SamplesM3S
    """M3S of the student's samples over the measured marks, nm."""
    scores: EnsembleScores
    """Of the student's samples."""

    @classmethod
    def of(cls, generated: Generated, measured: Measured, baselines: BaselineMaps) -> "Evidence":
        """Walk the student's samples."""
        return cls(
            generated,
            measured,
            baselines,
            samples_m3s_by_zones(generated.samples, measured.valid),
            ensemble_scores(generated.samples, measured.maps, measured.valid),
        )

    @property
    def m3s_samples(self) -> Float[np.ndarray, "n m 2"]:
        """M3S of the student's samples over the whole wafer, nm."""
        return self.m3s_by_zones[BOTH]

    @cached_property
    def oracle_m3s_by_zones(self) -> SamplesM3S | None:
        """The same of the oracle's samples, where there is an oracle."""
        draws = self.baselines.oracle_samples
        return None if draws is None else samples_m3s_by_zones(draws, self.measured.valid)

    @cached_property
    def ensemble(self) -> Float[np.ndarray, "n 2 64 64"]:
        """Mean of the student's samples, nm."""
        return ensemble_mean(self.generated.samples)

    @cached_property
    def fitters(self) -> dict[str, Fitter]:
        """The correction models for the measured marks."""
        return fitters_of(self.measured.valid)

    def models(self) -> Iterator[tuple[str, np.ndarray, SamplesM3S | None]]:
        """Name, forecast map, and M3S of its samples where there are any, of every model."""
        yield "student", self.generated.points["given"], None
        yield "student_ensemble", self.ensemble, self.m3s_by_zones
        for name, maps in self.baselines.maps.items():
            yield name, maps, self.oracle_m3s_by_zones if name == ORACLE else None


def write_kpis(evidence: Evidence, tau_nm: float, folder: Path) -> None:
    """Write kpis.csv and ome_curve.csv."""
    measured = evidence.measured
    table = KpiTable(measured.maps, measured.valid, measured.split.table, tau_nm, evidence.fitters)
    rows, curves = list(table.measured_rows()), {"tau_nm": list(TAUS_NM)}
    for name, maps, samples in evidence.models():
        rows += table.rows(name, maps, samples)
        curves[name] = table.ome_curve(maps)
    write_csv(folder / "kpis.csv", _with_all_columns(rows))
    write_csv(folder / "ome_curve.csv", columns_as_rows(curves))


def _with_all_columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The forecasts' columns in their order, also in the lines that lack some."""
    columns = max(rows, key=len)
    return [{name: row.get(name) for name in columns} for row in rows]


def write_out_of_spec(evidence: Evidence, limit_nm: float, folder: Path) -> dict[str, Any]:
    """Write out_of_spec.csv and out_of_spec_rates.csv; a wafer is bad if either axis' M3S exceeds `limit_nm`."""
    measured = evidence.measured
    bad = measured.m3s.max(axis=-1) > limit_nm
    calls: dict[str, Call] = {}
    for name, maps, samples in evidence.models():
        if samples is None:
            calls[name] = call_of_map(kpi.m3s_nm(maps, measured.valid), limit_nm)
        else:
            calls[name] = call_of_samples(samples[BOTH], limit_nm)
    lines = {name: rates(name, call, bad) for name, call in calls.items()}
    roc = [row for name, call in calls.items() for row in roc_rows(name, call, bad)]
    if not roc:
        roc = [dict.fromkeys(("model", "threshold", "false_positive_rate", "true_positive_rate"))]
    write_csv(folder / "out_of_spec.csv", roc, digits=4)
    write_csv(folder / "out_of_spec_rates.csv", lines.values())
    ours = lines["student_ensemble"]
    figures = {
        "out_of_spec_auc": ours["auc"],
        "false_pass_rate": ours["false_pass"],
        "false_rework_rate": ours["false_rework"],
        "out_of_spec_share": float(bad.mean()),
        "limit_nm": limit_nm,
    }
    return {name: value for name, value in figures.items() if value is not None}


def write_uncertainty(evidence: Evidence, folder: Path) -> dict[str, float]:
    """Write coverage.csv, rank_histogram.csv and sigma_by_zone.csv."""
    measured, scores, fitter = evidence.measured, evidence.scores, evidence.fitters["k"]
    metrics = {"energy_score_nm": energy_score_nm(evidence.generated.samples, measured.maps, fitter)}
    m3s = measured.m3s
    coverage: dict[str, list[float]] = {
        "nominal": list(LEVELS),
        "marks": [scores.covered[level] for level in LEVELS],
        "m3s": [m3s_coverage(evidence.m3s_samples, m3s, level) for level in LEVELS],
    }
    zones: list[Zone | None] = [None, *ZONES]
    sigma: dict[str, list[Any]] = {
        "zone": ["all", *ZONES],
        "rmse_nm": [scores.rmse_nm(zone) for zone in zones],
        "sigma_nm": [scores.sigma_nm(zone) for zone in zones],
        "spread_skill": [scores.spread_skill(zone) for zone in zones],
    }
    draws, sd = evidence.baselines.oracle_samples, evidence.baselines.oracle_sd
    drawn = evidence.oracle_m3s_by_zones
    if draws is not None and sd is not None and drawn is not None:
        oracle, exact = (
            ensemble_scores(draws, measured.maps, measured.valid),
            exact_sigma_nm(sd, measured.valid),
        )
        coverage["oracle_marks"] = [oracle.covered[level] for level in LEVELS]
        coverage["oracle_m3s"] = [m3s_coverage(drawn[BOTH], m3s, level) for level in LEVELS]
        sigma["oracle_sd_nm"] = [exact[zone] for zone in zones]
        sigma["sharpness_ratio"] = [scores.sigma_nm(zone) / exact[zone] for zone in zones]
        sigma["oracle_sharpness_ratio"] = [oracle.sigma_nm(zone) / exact[zone] for zone in zones]
        sigma["oracle_rmse_nm"] = [oracle.rmse_nm(zone) for zone in zones]
        sigma["oracle_spread_skill"] = [oracle.spread_skill(zone) for zone in zones]
        metrics["oracle_energy_score_nm"] = energy_score_nm(draws, measured.maps, fitter)
        metrics["sharpness_ratio"] = sigma["sharpness_ratio"][0]
    write_csv(folder / "coverage.csv", columns_as_rows(coverage))
    write_csv(folder / "sigma_by_zone.csv", columns_as_rows(sigma))
    ranks = scores.ranks
    histogram = {
        "rank": list(range(len(ranks))),
        "share": (ranks / max(int(ranks.sum()), 1)).tolist(),
        "uniform": [1 / len(ranks)] * len(ranks),
    }
    write_csv(folder / "rank_histogram.csv", columns_as_rows(histogram))
    return {name: value for name, value in metrics.items() if np.isfinite(value)}


def write_spectrum(evidence: Evidence, folder: Path) -> dict[str, float]:
    """Write spectrum.csv; the headlines are power generated over power measured in three bands of wavelength."""
    measured, valid = evidence.measured.maps, evidence.measured.valid
    generated = evidence.generated
    power = {
        "measured": radial_spectrum(measured, valid),
        "generated": _mean_spectrum(generated.samples, valid),
        "point": radial_spectrum(generated.points["given"], valid),
    }
    if evidence.baselines.oracle_samples is not None:
        power["oracle"] = _mean_spectrum(evidence.baselines.oracle_samples, valid)
    bins = len(power["measured"])
    columns: dict[str, Any] = {"cycles": list(range(bins)), "wavelength_mm": wavelengths_mm(bins).tolist()}
    columns |= {name: values.tolist() for name, values in power.items()}
    write_csv(folder / "spectrum.csv", columns_as_rows(columns))
    ratios = {}
    for name, band in BANDS_MM.items():
        there = band_power(power["measured"], band)
        if there:
            ratios[f"spectrum_ratio_{name}"] = band_power(power["generated"], band) / there
    return ratios


def _mean_spectrum(samples: np.ndarray, valid: np.ndarray) -> np.ndarray:
    count = min(SPECTRUM_SAMPLES, samples.shape[1])
    return np.asarray(np.mean([radial_spectrum(samples[:, i], valid) for i in range(count)], axis=0))


def copy_metrics(evidence: Evidence, train: PreparedSplit) -> dict[str, float]:
    """Nearest training maps of the first sample of each wafer, against those of its measurement."""
    fitter = evidence.fitters["k"]
    known = codes(train.map, Fitter.of(fitter.basis, train.valid))
    found = copies(
        codes(evidence.generated.samples[:, 0], fitter), codes(evidence.measured.maps, fitter), known
    )
    return {"nearest_train_ratio": found.ratio, "copy_share": found.share}
