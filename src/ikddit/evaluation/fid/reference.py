"""The measured side: statistics of all measured maps, computed once, and the floor between measured maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from ikddit.atomic import atomic_dir, read_json, write_json
from ikddit.errors import ModelError
from ikddit.evaluation.fid.distances import inception_score, kid, manifold_scores
from ikddit.evaluation.fid.inception import LOGITS, SPATIAL, space_of
from ikddit.evaluation.fid.maps import MapSet
from ikddit.evaluation.fid.measured import MeasuredFeatures
from ikddit.evaluation.fid.spaces import EMBEDDING, Extractor, features_of
from ikddit.evaluation.scores import Moments, frechet_from_moments, gaussian_of
from ikddit.params import FidParams

Features = dict[str, Float32[np.ndarray, "n d"]]
"""By space."""
FLOOR_PART = "test"
_FACTS, _MOMENTS, _SUBSET = "reference.json", "moments.npz", "subset.npz"


@dataclass(frozen=True)
class Reference:
    """What generated maps are compared with."""

    facts: dict[str, Any]
    """`n`, `parts` (maps of each split), `weights`, `missing`, `scale_nm`, and the floor (`test`, `halves`)."""
    moments: dict[str, Moments]
    subset: Features
    """Of some maps, for KID and the manifolds."""

    def save(self, folder: Path | str) -> None:
        """Write the folder, as a whole or not at all."""
        with atomic_dir(folder) as scratch:
            write_json(scratch / _FACTS, self.facts)
            np.savez(scratch / _MOMENTS, **_flat(self.moments))  # type: ignore[arg-type]
            np.savez(scratch / _SUBSET, **self.subset)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path | str) -> "Reference":
        """Read what `save` wrote.

        Raises:
            ModelError: a file is missing or damaged.
        """
        folder = Path(folder)
        try:
            facts = read_json(folder / _FACTS)
            with np.load(folder / _MOMENTS, allow_pickle=False) as stored:
                spaces = [name.removesuffix(".mean") for name in stored if name.endswith(".mean")]
                moments = {space: (stored[f"{space}.mean"], stored[f"{space}.cov"]) for space in spaces}
            with np.load(folder / _SUBSET, allow_pickle=False) as stored:
                subset = dict(stored)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"{folder}: no readable reference ({error}); run `dvc repro fid_reference`"
            ) from error
        return cls(facts, moments, subset)


def _flat(moments: Mapping[str, Moments]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for space, (mean, cov) in moments.items():
        out |= {f"{space}.mean": mean, f"{space}.cov": cov}
    return out


def build_reference(
    parts: Sequence[MapSet],
    own: Sequence[Extractor],
    measured: MeasuredFeatures,
    params: FidParams,
    seed: int,
) -> Reference:
    """Take the features of all measured maps and compare measured maps with one another.

    Two floors go with the statistics, since a Frechet distance between finite sets of the same maps is not 0:
    the maps of the split `test` against all (of which they are a part), and two random halves against each
    other.

    Args:
        parts: measured maps by split, none empty, with their barcodes.
        own: of the spaces that need no Inception.
        measured: Inception features of all these maps.
        params: section `fid`.
        seed: of the halves and subsets.

    Raises:
        ModelError: `measured` lacks a map.
    """
    by_part = {
        part.name: features_of(part, own) | measured.of([part.barcode[row] for row in part.wafer])
        for part in parts
    }
    spaces = list(by_part[parts[0].name])
    features, broken = finite_only(
        {space: np.concatenate([part[space] for part in by_part.values()]) for space in spaces}
    )
    total = sum(len(part) for part in parts)
    rng = np.random.default_rng(seed)
    order = rng.permutation(total)
    first, second = (take(features, np.sort(rows)) for rows in np.array_split(order, 2))
    moments = _moments(features)
    halves = frechet_figures(first, _moments(second)) | pair_figures(first, second, params, seed)
    facts = {
        "n": total,
        "parts": {part.name: len(part) for part in parts},
        "weights": measured.facts["weights"],
        "missing": measured.facts["missing"] | broken,
        "scale_nm": measured.facts["scale_nm"],
        **({"dtype": measured.facts["dtype"]} if "dtype" in measured.facts else {}),
        "halves": {"n": total // 2, **halves},
    }
    if FLOOR_PART in by_part:
        floor = {space: by_part[FLOOR_PART][space] for space in features}
        facts[FLOOR_PART] = {"n": len(floor[EMBEDDING]), **frechet_figures(floor, moments)}
    if LOGITS in features:
        facts |= score_figures(features[LOGITS], seed)
    return Reference(facts, moments, subset_of(features, params.manifold_maps, seed))


def finite_only(features: Features) -> tuple[Features, dict[str, str]]:
    """The spaces whose numbers are finite, and the reason for each that is left out."""
    broken = {s: "features are not finite" for s, values in features.items() if not np.isfinite(values).all()}
    return {space: values for space, values in features.items() if space not in broken}, broken


def take(features: Features, rows: np.ndarray) -> Features:
    """The maps at `rows` in every space."""
    return {space: values[rows] for space, values in features.items()}


def subset_of(features: Features, at_most: int, seed: int) -> Features:
    """At most so many maps, drawn at random, in the spaces where neighbours and kernels are looked at."""
    spaces = pair_spaces(features)
    total = len(features[spaces[0]])
    rows = np.sort(np.random.default_rng([seed, 1]).permutation(total)[:at_most])
    return take({space: features[space] for space in spaces}, rows)


def pair_spaces(features: Mapping[str, Any]) -> list[str]:
    """The project's embedding and the deepest Inception features there are."""
    depths = [space_of(depth) for depth in (2048, 768, 192, 64) if space_of(depth) in features]
    return [EMBEDDING, *depths[:1]]


def _moments(features: Features) -> dict[str, Moments]:
    return {space: gaussian_of(values) for space, values in features.items() if space != LOGITS}


def figure_name(space: str) -> str:
    """Name of the Frechet distance in a space.

    >>> figure_name("inception_spatial"), figure_name("inception_64")
    ('sfid', 'inception_64')
    """
    return "sfid" if space == SPATIAL else space


def frechet_figures(features: Features, reference: Mapping[str, Moments]) -> dict[str, float]:
    """Frechet distance in every space that both sides have."""
    return {
        figure_name(space): frechet_from_moments(*gaussian_of(features[space]), *moments)
        for space, moments in reference.items()
        if space in features
    }


def pair_figures(fake: Features, real: Features, params: FidParams, seed: int) -> dict[str, float]:
    """KID, precision, recall, density and coverage, named after their space (`kid_embedding`).

    Manifolds need two sets of about one size: both are cut to `fid.manifold_maps` maps or the smaller set.
    """
    figures: dict[str, float] = {}
    for space in (space for space in pair_spaces(fake) if space in real):
        value, sd = kid(fake[space], real[space], params.kid_subsets, params.kid_subset_size, seed)
        figures |= {f"kid_{space}": value, f"kid_{space}_subset_sd": sd}
        size = min(params.manifold_maps, len(fake[space]), len(real[space]))
        if size > params.neighbours:
            rng = np.random.default_rng([seed, 2])
            a, b = (x[space][np.sort(rng.permutation(len(x[space]))[:size])] for x in (fake, real))
            scores = manifold_scores(a, b, params.neighbours)
            figures |= {f"{name}_{space}": score for name, score in scores.items()}
    return figures


def score_figures(logits: Float32[np.ndarray, "n c"], seed: int) -> dict[str, float]:
    """Inception score of one set of maps."""
    value, sd = inception_score(logits, seed)
    return {"inception_score": value, "inception_score_split_sd": sd}
