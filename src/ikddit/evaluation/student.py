"""Score what a student generated: point forecast, ensemble, M3S, distribution, use of its inputs.

`rmse_nm`, `r2` and OME are of the point forecast (mu(c) plus the denoiser's conditional mean);
`ensemble_rmse_nm` is of the plain ensemble mean; M3S is forecast by the average over samples.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.generated import Generated, wafers_of
from ikddit.evaluation.inputs import MODALITIES
from ikddit.evaluation.marks import on_wafer
from ikddit.evaluation.scores import point_scores, r2
from ikddit.evaluation.uncertainty import EnsembleScores, ensemble_scores, m3s_coverage
from ikddit.overlay import kpi

SHOWN = 12
"""Wafers of the showcase that the report draws."""


@dataclass(frozen=True)
class Measured:
    """The scored wafers as they were measured."""

    split: PreparedSplit
    maps: Float[np.ndarray, "n 2 64 64"]
    """nm, float32."""
    valid: np.ndarray
    """On the usable wafer alone."""
    mean_map: Float[np.ndarray, "2 64 64"]
    """Of train, nm, the reference of R2."""

    @classmethod
    def of(cls, split: PreparedSplit, mean_map: np.ndarray) -> "Measured":
        """All wafers of a split."""
        return cls(split, split.map.astype(np.float32), on_wafer(split.valid), mean_map)

    @cached_property
    def m3s(self) -> Float[np.ndarray, "n 2"]:
        """Measured M3S per wafer and axis, nm."""
        return kpi.m3s_nm(self.maps, self.valid)


def student_metrics(
    generated: Generated,
    measured: Measured,
    m3s_samples: Float[np.ndarray, "n m 2"],
    scores: EnsembleScores,
    tau_nm: float,
    ensemble: Float[np.ndarray, "n 2 64 64"],
) -> dict[str, Any]:
    """The student's flat figures of metrics.json.

    Args:
        generated: the maps.
        measured: the same wafers.
        m3s_samples: M3S of each sampled map, nm.
        scores: of the samples.
        tau_nm: of OME.
        ensemble: mean of the samples, nm.
    """
    maps, valid = measured.maps, measured.valid
    point, m3s = generated.points["given"], m3s_samples.mean(1)
    metrics: dict[str, Any] = point_scores(point, maps, valid, measured.mean_map, tau_nm, m3s)
    metrics["ensemble_rmse_nm"] = kpi.rmse_nm(ensemble, maps, valid)
    metrics["ensemble_r2"] = r2(ensemble, maps, valid, measured.mean_map)
    metrics["mean_only_rmse_nm"] = kpi.rmse_nm(generated.points["mean_only"], maps, valid)
    metrics["crps_nm"] = scores.crps_nm
    metrics["coverage_90"] = scores.covered[0.9]
    metrics["m3s_coverage_90"] = m3s_coverage(m3s_samples, measured.m3s, 0.9)
    metrics["spread_skill"] = scores.spread_skill()
    shuffled = kpi.rmse_nm(generated.points["shuffled"], maps, valid)
    metrics["shuffled_rmse_ratio"] = shuffled / metrics["rmse_nm"]
    for modality in MODALITIES:
        name = f"without_{modality}"
        metrics[f"{name}_rmse_nm"] = kpi.rmse_nm(generated.points[name], maps, valid)
    return metrics


def withheld_metrics(generated: Generated, test: PreparedSplit, mean_map: np.ndarray) -> dict[str, float]:
    """Whether the samples are as uncertain as they should be when an input is withheld (`uncertainty`)."""
    assert generated.withheld_wafers is not None
    part = Measured.of(wafers_of(test, generated.withheld_wafers, "data/generated"), mean_map)
    metrics: dict[str, float] = {}
    for modality, samples in generated.withheld.items():
        m3s = kpi.samples_m3s_nm(samples, part.valid)
        metrics[f"without_{modality}_spread_skill"] = ensemble_scores(
            samples, part.maps, part.valid, (0.9,)
        ).spread_skill()
        metrics[f"without_{modality}_m3s_coverage_90"] = m3s_coverage(m3s, part.m3s, 0.9)
    return metrics


def ensemble_mean(samples: np.ndarray) -> Float[np.ndarray, "n 2 64 64"]:
    """Mean over the samples of each wafer, float32, a few wafers at a time."""
    parts = [samples[i : i + 64].mean(axis=1, dtype=np.float32) for i in range(0, len(samples), 64)]
    return np.concatenate(parts)


def unseen_metrics(
    generated: Generated, unseen: PreparedSplit, mean_map: np.ndarray, tau_nm: float
) -> dict[str, float | int] | None:
    """RMSE, R2 and OME of the point forecast for scanner x reticle pairs never seen; None where there are none."""
    if generated.unseen_wafers is None:
        return None
    part = Measured.of(wafers_of(unseen, generated.unseen_wafers, "data/generated"), mean_map)
    scores = point_scores(generated.points["unseen"], part.maps, part.valid, mean_map, tau_nm)
    scores.pop("m3s_error_nm", None)  # a point forecast's M3S is biased low; only samples forecast it
    return {"n": len(part.maps), **scores}


def shown_rows(rmse_nm: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " k"]:
    """Rows of at most `count` wafers to draw: best, median and worst by RMSE, the others evenly spaced in time.

    >>> shown_rows(np.array([3.0, 1.0, 2.0, 9.0, 4.0, 5.0, 6.0]), 5)
    array([0, 1, 3, 4, 6])
    """
    order = np.argsort(rmse_nm, kind="stable")
    chosen = {int(row) for row in (order[[0, (len(order) - 1) // 2, -1]] if len(order) else ())}
    free = np.array([row for row in range(len(order)) if row not in chosen], int)
    places = np.linspace(0, len(free) - 1, max(0, min(count - len(chosen), len(free)))).round().astype(int)
    return np.array(sorted(chosen | set(free[places].tolist())), int)


def showcase(generated: Generated, measured: Measured) -> dict[str, np.ndarray]:
    """Maps of a few wafers for the report to draw, nm; see `shown_rows`."""
    rmse = kpi.rmse_per_wafer_nm(generated.points["given"], measured.maps, measured.valid)
    shown = shown_rows(rmse, SHOWN)
    samples = generated.samples[shown].astype(np.float32)
    return {
        "barcodes": np.array([measured.split.barcode[i] for i in shown]),
        "mean": generated.points["given"][shown].astype(np.float32),
        "sigma": samples.std(1, ddof=1),
        "sample0": samples[:, 0],
        "measured": measured.maps[shown],
        "valid": measured.valid[shown].astype(np.uint8),
    }


def wafer_table(
    generated: Generated, measured: Measured, m3s_samples: Float[np.ndarray, "n m 2"]
) -> dict[str, list[Any]]:
    """One row per scored wafer: its names, RMSE of the point forecast, M3S measured and forecast, nm."""
    part, m3s, m3s_measured = measured.split, m3s_samples.mean(1), measured.m3s
    point = generated.points["given"]
    wafers: dict[str, list[Any]] = {
        "barcode": part.barcode,
        **{name: part.table.column(name).to_pylist() for name in ("lot_id", "scanner_id", "chuck_id")},
        "rmse_nm": kpi.rmse_per_wafer_nm(point, measured.maps, measured.valid).tolist(),
    }
    for axis, name in enumerate("xy"):
        wafers[f"m3s_{name}_nm"] = m3s_measured[:, axis].tolist()
        wafers[f"pred_m3s_{name}_nm"] = m3s[:, axis].tolist()
    return wafers
