"""CSV files and fid.json as stages evaluate and fid write them, small and made up."""

import csv
import json
from pathlib import Path
from typing import Any

MODELS = {"oracle": 0.7413, "student": 0.8612, "student_ensemble": 0.884, "gbm": 0.9345, "zero": 2.1}
LEVELS = [
    ("all", "all"), ("axis", "x"), ("axis", "y"), ("zone", "centre"), ("zone", "edge"),
    ("chuck", "CHK1"), ("chuck", "CHK2"), ("scanner", "LITH01"), ("scanner", "LITH02"),
]  # fmt: skip
SAMPLED = ("student_ensemble", "oracle")
FID: dict[str, Any] = {
    "fid15k": {
        "n": 15000, "wafers": 1000, "embedding": 0.0345, "embedding_low": 0.03, "embedding_high": 0.04,
        "inception_64": 1.25,
    },
    "sfid": 3.5,
    "kid_embedding": 0.0012,
    "kid_embedding_subset_sd": 0.0004,
    "reference": {
        "n": 2325, "halves": {"n": 1162, "embedding": 0.011, "kid_embedding": 0.0},
        "test": {"n": 350, "embedding": 0.02},
    },
    "weights": {"sha256": "ab" * 32},
    "settings": {"seed": 7, "device": "cpu"},
}  # fmt: skip


def kpi(model: str, group: str, level: str) -> dict[str, Any]:
    rmse = MODELS[model] * (1.25 if level == "edge" else 1.0)
    return {
        "model": model, "group": group, "level": level, "n_wafers": 3, "n_marks": 900, "rmse_nm": rmse,
        "ome": rmse / 10, "m3s_error_nm": 0.71 if model in SAMPLED else None, "p997_error_nm": 3 * rmse,
        "correctable_6": 0.4, "nce_m3s_6_nm": 3.25,
    }  # fmt: skip


def write_tables(folder: Path) -> None:
    """Write every file into reports/evaluation/."""
    steps = [i / 10 for i in range(11)]
    tables: dict[str, list[dict[str, Any]]] = {
        "kpis": [kpi(m, *level) for level in LEVELS for m in MODELS],
        "ome_curve": [
            {"tau_nm": t / 4, **{m: max(0.0, 1 - t * 0.05 / v) for m, v in MODELS.items()}}
            for t in range(1, 21)
        ],
        "out_of_spec": [
            {"model": m, "threshold": t, "false_positive_rate": (1 - t) ** 2, "true_positive_rate": 1 - t**3}
            for m in MODELS
            for t in steps
        ],
        "out_of_spec_rates": [
            {"model": m, "auc": 0.912, "threshold": 0.5, "false_pass": 0.125, "false_rework": 0.0625}
            | {"out_of_spec": 1, "wafers": 3}
            for m in MODELS
        ],
        "coverage": [
            {"nominal": t, "marks": t * 0.99, "m3s": t * 0.97, "oracle_marks": t, "oracle_m3s": t}
            for t in steps[1:10]
        ],
        "rank_histogram": [{"rank": r, "share": 0.2, "uniform": 0.2} for r in range(5)],
        "sigma_by_zone": [
            {"zone": z, "rmse_nm": 0.9, "sigma_nm": 0.85, "spread_skill": 0.944, "oracle_sd_nm": 0.74}
            | {"sharpness_ratio": 1.149, "oracle_spread_skill": 1.0}
            for z in ("all", "centre", "edge")
        ],
        "spectrum": [
            {
                "cycles": k,
                "wavelength_mm": 206 / k,
                "measured": 1 / k,
                "generated": 0.95 / k,
                "point": 1 / k**2,
            }
            | {"oracle": 1 / k}
            for k in range(1, 33)
        ],
    }
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    (folder / "fid.json").write_text(json.dumps(FID))
