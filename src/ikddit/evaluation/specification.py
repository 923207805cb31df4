"""Is a wafer out of specification: how well its forecast tells, as a ROC curve and at the operating point."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ikddit.evaluation.scores import out_of_spec_scores
from ikddit.overlay.kpi import out_of_spec_probability


@dataclass(frozen=True)
class Call:
    """A model's score of each wafer, larger for worse wafers, and where it calls one out of specification."""

    score: Float[np.ndarray, " n"]
    threshold: float


def call_of_samples(m3s_samples: Float[np.ndarray, "n m 2"], limit_nm: float) -> Call:
    """Score by the probability of being out of specification, the one that is served; 1/2 calls."""
    return Call(out_of_spec_probability(m3s_samples, limit_nm), 0.5)


def call_of_map(m3s: Float[np.ndarray, "n 2"], limit_nm: float) -> Call:
    """Score by the larger M3S of the forecast map; at the limit it calls, although a mean map's M3S is too low."""
    return Call(m3s.max(axis=-1), limit_nm)


def roc_rows(name: str, call: Call, out_of_spec: Bool[np.ndarray, " n"]) -> list[dict[str, Any]]:
    """Corners of the ROC curve; none where all wafers are good or all are bad."""
    from sklearn.metrics import roc_curve

    if out_of_spec.all() or not out_of_spec.any():
        return []
    false_positive, true_positive, threshold = roc_curve(out_of_spec, call.score, drop_intermediate=True)
    return [
        {
            "model": name,
            "threshold": float(c),
            "false_positive_rate": float(a),
            "true_positive_rate": float(b),
        }
        for a, b, c in zip(false_positive, true_positive, threshold, strict=True)
    ]


def rates(name: str, call: Call, out_of_spec: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """AUC, and false pass and false rework at the model's threshold; absent where no wafer can show them."""
    found = out_of_spec_scores(call.score, out_of_spec, call.threshold)
    return {
        "model": name,
        "auc": found.get("auc"),
        "threshold": call.threshold,
        "false_pass": found.get("false_pass"),
        "false_rework": found.get("false_rework"),
        "out_of_spec": int(out_of_spec.sum()),
        "wafers": len(out_of_spec),
    }
