"""What new wafers say about the champion, and which of champion and challenger forecasts them better."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ikddit.atomic import read_json
from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.inputs import take
from ikddit.evaluation.scores import evaluation_subset
from ikddit.monitoring.drift import lot_codes, machine_names, measure_drift
from ikddit.monitoring.paired import compare
from ikddit.overlay import kpi
from ikddit.params import Params
from ikddit.registry.gate import PairedDifference
from pipelines.champion import Model, validated_records


def examine(champion: Model, folders: list[Path], params: Params) -> dict[str, Any]:
    """Drift and error of the champion on new wafers.

    Args:
        champion: the model that serves.
        folders: validated records of the new deliveries.
        params: section `retrain`, `seed`.

    Returns:
        `drift` and `error` of the record; `error.rmse_nm` is None where no new wafer is measured.
    """
    new = champion.encode(validated_records(folders))
    drift = measure_drift(champion.train, new, params.retrain.drift)
    measured = take(new, np.flatnonzero(new.valid.any((1, 2))))
    part = take(measured, evaluation_subset(measured, params.retrain.wafers))
    error: dict[str, Any] = {"rmse_nm": None, "wafers": len(part)}
    if len(part):
        forecast = champion.generator.point(part, params.seed)
        target = part.map.astype(np.float32)
        error["rmse_nm"] = float(kpi.rmse_nm(forecast, target, part.valid))
        by_machine: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(machine_names(part)):
            by_machine["/".join(name)].append(row)
        error["by_scanner_chuck"] = {
            name: float(kpi.rmse_nm(forecast[rows], target[rows], part.valid[rows]))
            for name, rows in sorted(by_machine.items())
        }
        if champion.rmse_nm:
            error["ratio"] = error["rmse_nm"] / champion.rmse_nm
    return {"drift": asdict(drift), "error": error}


def later_wafers(champion: Model, challenger: Model) -> list[str]:
    """Barcodes of wafers that are in the challenger's test split and in no split of the champion.

    The test split is the last of its data set in time, so neither has trained on them, and both were made
    before they were measured.
    """
    known = set(champion.lots)
    test = PreparedSplit.open(challenger.prepared["test.arrow"])
    lots = test.table.column("lot_id").to_pylist()
    return [code for code, lot in zip(test.barcode, lots, strict=True) if (lot or code) not in known]


def compare_models(
    champion: Model, challenger: Model, params: Params
) -> tuple[dict[str, Any], PairedDifference | None]:
    """Paired test of both models on the same later wafers.

    Returns:
        What the record keeps, and the difference as the promotion gate wants it; None without such wafers.
    """
    barcodes = later_wafers(champion, challenger)
    if not barcodes:
        reason = "no wafer of the challenger's test split is new to the champion: nothing to compare them on"
        return {"better": False, "reason": reason, "lots": 0, "wafers": 0}, None
    records = challenger.records(barcodes).sort_by("barcode")
    errors = []
    for model in (champion, challenger):
        split = model.encode(iter([records]))
        forecast = model.generator.point(split, params.seed)
        errors.append(kpi.rmse_per_wafer_nm(forecast, split.map.astype(np.float32), split.valid) ** 2)
    outcome = compare(lot_codes(split), errors[0], errors[1], params.retrain.comparison, params.seed)
    paired = PairedDifference(-outcome.gain_nm, -outcome.high_nm, -outcome.low_nm, outcome.wafers)
    splits = read_json(challenger.prepared["splits.json"])["splits"]["test"]
    return asdict(outcome) | {"from": splits["from"], "to": splits["to"]}, paired
