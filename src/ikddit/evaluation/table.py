"""The table every model stands in: all baselines and the oracle, on the wafers that models are scored on."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ikddit.console import log
from ikddit.dataset.arrow import PreparedSplit
from ikddit.evaluation.baseline_maps import ORACLE, ORACLE_DRAWS, ORACLE_SD, MapWriter
from ikddit.evaluation.baselines import NAMES, Baselines
from ikddit.evaluation.marks import on_wafer
from ikddit.evaluation.scores import evaluation_subset, ome_name, point_scores
from ikddit.evaluation.uncertainty import ensemble_scores
from ikddit.overlay import kpi
from ikddit.params import BaselineParams

ORACLE_SAMPLES = 8
"""Posterior samples per wafer for the oracle's M3S forecast."""
_CHUNK = 250


def baseline_table(
    splits: Mapping[str, PreparedSplit],
    mean_map: Float[np.ndarray, "2 64 64"],
    dataset: Mapping[str, Any],
    settings: BaselineParams,
    wafers: int,
    tau_nm: float,
    seed: int = 0,
    maps: Path | None = None,
) -> dict[str, Any]:
    """Score all baselines on `test` and `test_unseen` (see `evaluation_subset`).

    Args:
        splits: train, val, test and, if there is one, test_unseen.
        mean_map: mean map of train, nm, the reference of R2.
        dataset: dataset.json; with the seeds of a simulated fab it gives the oracle and the floor.
        settings: the `baselines` section of params.yaml.
        wafers: scored wafers per split, at most.
        tau_nm: of OME.
        seed: of the randomised fits.
        maps: folder for the forecasts of `test` (`ikddit.evaluation.baseline_maps`); None writes none.

    Returns:
        What reports/baselines.json holds: `floor_rmse_nm` and `floor_ome_...` of `test`; for each scored
        split its `n`, its floor, and the figures of each baseline; `not_computed` with the reasons.
    """
    baselines = Baselines(splits["train"], splits["val"], settings, seed)
    not_computed = baselines.unavailable()
    if "seeds" not in dataset:
        not_computed["oracle"] = "the data are not simulated: no exact floor is known"
    elif dataset["seeds"].get("unflagged_flyers"):
        not_computed["floor"] = "flyers were left unflagged: the simulator's law does not hold for them"
    history = [split for split in splits.values() if len(split)]
    table: dict[str, Any] = {}
    for split_name in ("test", "test_unseen"):
        split = splits.get(split_name)
        if split is None or not len(split):
            continue
        rows = evaluation_subset(split, wafers)
        measured, valid = split.map[rows].astype(np.float32), on_wafer(split.valid[rows])
        part: dict[str, Any] = {"n": len(rows)}
        barcodes = [split.barcode[row] for row in rows]
        writer = MapWriter(maps if split_name == "test" else None, barcodes)
        for name in NAMES:
            if name not in not_computed:
                start = time.monotonic()
                predicted = baselines.predict(name, split, rows, history)
                writer.put(name, predicted)
                part[name] = point_scores(predicted, measured, valid, mean_map, tau_nm)
                if (alpha := baselines.alpha(name)) is not None:
                    part[name]["alpha"] = alpha
                _say(split_name, name, part[name], start)
        if "seeds" in dataset:
            start = time.monotonic()
            oracle, floor = _oracle(dataset, barcodes, measured, valid, mean_map, tau_nm, writer)
            part = {"n": part.pop("n"), **floor, **part, "oracle": oracle}
            _say(split_name, "oracle", oracle, start)
        table[split_name] = part
    floors = {name: value for name, value in table.get("test", {}).items() if name.startswith("floor_")}
    return {**floors, **table, "not_computed": not_computed}


def _say(split_name: str, name: str, figures: dict[str, float], start: float) -> None:
    rmse = figures.get("rmse_nm", float("nan"))
    log.info("baselines: %s: %s: %.3f nm (%.1f s)", split_name, name, rmse, time.monotonic() - start)


def _oracle(
    dataset: Mapping[str, Any],
    barcodes: Sequence[str],
    measured: np.ndarray,
    valid: np.ndarray,
    mean_map: np.ndarray,
    tau_nm: float,
    writer: MapWriter,
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of the exact conditional mean, and the expected ones: the floor.

    `m3s_error_nm` is that of the mean map, as for every baseline; `m3s_error_sampled_nm` that of posterior
    samples, the better M3S forecast; `crps_nm` is of those samples too. The floor is absent where flyers
    were left unflagged: the simulator's law then no longer holds for the measured map.
    """
    from ikddit.simulator.oracle import oracle_for

    rng = np.random.default_rng(0)
    predicted, m3s = np.empty_like(measured), np.empty((len(barcodes), 2))
    squares = beyond = crps = 0.0
    marks = np.count_nonzero(valid, axis=(1, 2))
    for start in range(0, len(barcodes), _CHUNK):
        part = slice(start, start + _CHUNK)
        posterior = oracle_for(dict(dataset), barcodes[part])
        predicted[part] = posterior.mean_map()
        draws = posterior.sample(ORACLE_SAMPLES, rng)
        m3s[part] = kpi.samples_m3s_nm(draws, valid[part]).mean(axis=1)
        writer.put(ORACLE, predicted[part], start)
        writer.put(ORACLE_SD, np.sqrt(posterior.variance_map()), start)
        writer.put(ORACLE_DRAWS, draws, start)
        scored = ensemble_scores(draws, measured[part], valid[part])
        crps += scored.crps_nm * int(marks[part].sum())
        squares += float(posterior.floor_mse @ marks[part])
        beyond += float(posterior.ome(tau_nm) @ marks[part])
    figures = point_scores(predicted, measured, valid, mean_map, tau_nm)
    figures["m3s_error_sampled_nm"] = kpi.m3s_error_nm(m3s, kpi.m3s_nm(measured, valid))
    total = max(int(marks.sum()), 1)
    figures["crps_nm"] = crps / total
    if dataset["seeds"].get("unflagged_flyers"):
        return figures, {}
    floor = {
        "floor_rmse_nm": float(np.sqrt(squares / total)),
        f"floor_{ome_name(tau_nm)}": beyond / total,
    }
    return figures, floor
