"""The generated side: FID and its kin against the reference, as reports/evaluation/fid.json holds them."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ikddit.dataset.arrow import PreparedSplit
from ikddit.device import pick_device
from ikddit.errors import ModelError
from ikddit.evaluation.fid.distances import bootstrap_sd, interval
from ikddit.evaluation.fid.extractors import Extractors
from ikddit.evaluation.fid.inception import LOGITS
from ikddit.evaluation.fid.maps import MapSet
from ikddit.evaluation.fid.reference import (
    Reference,
    figure_name,
    finite_only,
    pair_figures,
    score_figures,
)
from ikddit.evaluation.fid.spaces import EMBEDDING, features_of
from ikddit.evaluation.fid.weights import NoWeights, Weights, find_weights
from ikddit.evaluation.generated import wafers_of
from ikddit.evaluation.scores import covariance_root, frechet_from_root, gaussian_of
from ikddit.params import FidParams

log = logging.getLogger("ikddit")
NAMED_MAPS = 15_000
"""The number of maps at which the group is called fid15k."""
WIDE = 256
"""Spaces wider than this get a fifth of the bootstrap replicates: each costs a matrix root."""


def group_name(maps: int) -> str:
    """Name of the group of Frechet distances: it says 15k only of 15,000 maps.

    >>> group_name(15_000), group_name(24)
    ('fid15k', 'fid')
    """
    return "fid15k" if maps == NAMED_MAPS else "fid"


def replicates(wanted: int, width: int) -> int:
    """Bootstrap replicates in a space of this width: all up to 256 numbers, a fifth beyond.

    >>> replicates(100, 128), replicates(100, 2048)
    (100, 20)
    """
    return wanted if width <= WIDE else -(-wanted // 5)


def generated_maps(samples: np.ndarray, wafers: pa.Table, split: PreparedSplit) -> MapSet:
    """What stage `generate` wrote, wafer by wafer, each map with the mask of its wafer.

    Raises:
        InputError: a wafer is not in the split.
    """
    count, each = samples.shape[:2]
    valid = wafers_of(split, wafers, "generated").valid
    return MapSet("generated", samples.reshape(-1, 2, 64, 64), valid, np.repeat(np.arange(count), each))


def weights_as_in(reference: Reference, params: FidParams) -> Weights | NoWeights:
    """The Inception weights that the reference was computed with.

    Where the reference has none, nothing is looked for; where they cannot be had again, that is the reason.

    Raises:
        ModelError: these weights are not those of the reference.
    """
    facts = reference.facts["weights"]
    if "sha256" not in facts:
        return NoWeights(str(facts["reason"]))
    weights = find_weights(params.weights, params.timeout_s)
    if isinstance(weights, Weights) and weights.sha256 != facts["sha256"]:
        raise ModelError(
            f"fid.weights: sha256 {weights.sha256}, but the reference was computed with {facts['sha256']}; "
            "run `dvc repro --force --single-item fid_measured`, then `dvc repro`"
        )
    return weights


def score(
    generated: MapSet, reference: Reference, extractors: Extractors, params: FidParams, seed: int
) -> dict[str, Any]:
    """All figures of one set of generated maps.

    Args:
        generated: the maps, with their wafers.
        reference: statistics of the measured maps.
        extractors: of the spaces, with the same weights and rendering as the reference.
        params: section `fid`.
        seed: that the maps were sampled with; also of the bootstrap and subsets.

    Returns:
        Groups of figures; a figure that could not be computed is absent, with the reason under
        `weights.reason` or `weights.missing`.
    """
    features, broken = finite_only(features_of(generated, extractors.each))
    known = {space: moments for space, moments in reference.moments.items() if space in features}
    group: dict[str, Any] = {"n": len(generated), "wafers": len(generated.valid)}
    apart: dict[str, Any] = {}
    drawn: dict[str, int] = {}
    for space, moments in known.items():
        name, target = figure_name(space), group
        if name == "sfid":
            target = apart
        root = covariance_root(moments[1])
        value = target[name] = frechet_from_root(*moments, root, *gaussian_of(features[space]))
        count = replicates(params.bootstrap, features[space].shape[1])
        if count >= 2 and len(generated.valid) >= 2:
            log.info("bootstrap of %s: %d replicates", name, count)
            sd = bootstrap_sd(features[space], generated.wafer, moments, root, count, seed)
            target[f"{name}_low"], target[f"{name}_high"] = interval(value, sd)
            drawn[name] = count
    apart |= pair_figures(features, reference.subset, params, seed)
    if LOGITS in features:
        apart |= score_figures(features[LOGITS], seed)
    missing = extractors.missing | broken | _only_here(reference, features)
    if "reason" in extractors.weights:
        log.warning("no Inception figures: %s", extractors.weights["reason"])
    else:
        for name, reason in _by_figure(missing).items():
            log.warning("%s not computed: %s", name, reason)
    facts = {name: value for name, value in reference.facts.items() if name not in ("missing", "weights")}
    in_subset = len(reference.subset[EMBEDDING])
    return {
        group_name(len(generated)): group,
        **apart,
        "reference": facts,
        "weights": extractors.weights | ({"missing": _by_figure(missing)} if missing else {}),
        "settings": {
            "seed": seed,
            "device": pick_device(params.device, "fid.device").type,
            "threads": torch.get_num_threads(),
            **params.model_dump(include={"dims", "dtype", "neighbours", "kid_subsets"}),
            "kid_subset_size": min(params.kid_subset_size, len(generated), in_subset),
            "manifold_maps": min(params.manifold_maps, len(generated), in_subset),
            "bootstrap_replicates": drawn,
        },
    }


def _only_here(reference: Reference, features: dict[str, Any]) -> dict[str, str]:
    """Spaces in which only the generated maps have features."""
    known = {*reference.moments, LOGITS}
    reasons = reference.facts["missing"]
    return {s: reasons.get(s, "not in the reference") for s in features if s not in known}


def _by_figure(missing: dict[str, str]) -> dict[str, str]:
    names = {LOGITS: "inception_score"}
    return {names.get(space, figure_name(space)): reason for space, reason in missing.items()}
