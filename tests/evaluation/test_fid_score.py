"""Reference and score: names that say what was computed, reasons for what was not, and the floor."""

import json

import numpy as np
import pytest
import torch
from evaluation_fakes import GRID
from fid_fakes import made_embedding, made_maps, made_state

from ikddit.errors import ModelError
from ikddit.evaluation.fid.extractors import make_extractors, own_extractors
from ikddit.evaluation.fid.inception import InceptionFeatures
from ikddit.evaluation.fid.maps import MapSet
from ikddit.evaluation.fid.measured import MeasuredFeatures
from ikddit.evaluation.fid.reference import Reference, build_reference
from ikddit.evaluation.fid.score import score, weights_as_in
from ikddit.evaluation.fid.spaces import EmbeddingFeatures, OverlayFeatures, features_of
from ikddit.evaluation.fid.weights import NoWeights, Weights
from ikddit.evaluation.scores import frechet_distance
from ikddit.overlay.terms import linear_basis
from ikddit.params import FidParams
from made_maps import term_maps

PARAMS = FidParams(
    dims=[64, 192],
    device="cpu",
    bootstrap=4,
    manifold_maps=30,
    neighbours=3,
    kid_subsets=2,
    kid_subset_size=20,
)
NONE = NoWeights("fid.weights is none")


def map_set(name, maps, wafer=None):
    wafer = np.arange(len(maps)) if wafer is None else np.asarray(wafer)
    wafers = wafer.max() + 1
    barcodes = [f"{name}-{number}" for number in range(wafers)]
    return MapSet(name, maps, np.stack([GRID.usable.astype(np.uint8)] * wafers), wafer, barcodes)


def extractors(weights=NONE):
    return make_extractors(PARAMS, weights, made_embedding(), 1.0, 16.0)


def measured(parts, weights=NONE):
    """As stage `fid_measured` leaves it, but from maps in memory."""
    every = extractors(weights)
    inception = [extractor for extractor in every.each if isinstance(extractor, InceptionFeatures)]
    features = [features_of(part, inception) for part in parts]
    return MeasuredFeatures(
        {"weights": every.weights, "missing": every.missing, "scale_nm": 16.0},
        {code: row for row, code in enumerate(code for part in parts for code in part.barcode)},
        {space: np.concatenate([found[space] for found in features]) for space in features[0]},
    )


def reference_of(parts, weights=NONE):
    own = own_extractors(made_embedding(), 1.0, torch.device("cpu"))
    return build_reference(parts, own, measured(parts, weights), PARAMS, seed=0)


PARTS = [map_set("train", made_maps(50, 0)), map_set("test", made_maps(30, 1))]
GENERATED = map_set("generated", made_maps(40, 2, shift_nm=1.0), np.repeat(np.arange(20), 2))


@pytest.fixture(scope="module")
def reference():
    return reference_of(PARTS)


@pytest.fixture(scope="module")
def figures(reference):
    return score(GENERATED, reference, extractors(), PARAMS, seed=0)


def test_reference_read_back_is_the_one_written(reference, tmp_path):
    reference.save(tmp_path / "reference")
    found = Reference.load(tmp_path / "reference")
    assert found.facts == reference.facts
    assert set(found.moments) == {"embedding", "overlay10_nm2", "overlay_k_nm2"}
    for space, moments in reference.moments.items():
        assert all((a == b).all() for a, b in zip(found.moments[space], moments, strict=True))
    assert (found.subset["embedding"] == reference.subset["embedding"]).all()
    (tmp_path / "reference" / "moments.npz").write_bytes(b"cut")
    with pytest.raises(ModelError, match="dvc repro fid_reference"):
        Reference.load(tmp_path / "reference")


def test_frechet_distances_are_those_of_the_features_of_all_maps(figures):
    for space in (EmbeddingFeatures(made_embedding(), 1.0), OverlayFeatures()):
        real = [features_of(part, [space]) for part in PARTS]
        fake = features_of(GENERATED, [space])
        for name in space.spaces:
            expected = frechet_distance(fake[name], np.concatenate([r[name] for r in real]))
            assert figures["fid"][name] == pytest.approx(expected, rel=1e-6)
            assert figures["fid"][f"{name}_low"] <= expected <= figures["fid"][f"{name}_high"]


def test_the_name_says_15k_of_15000_maps_only(figures):
    assert figures["fid"]["n"] == 40
    assert figures["fid"]["wafers"] == 20
    assert "fid15k" not in figures


def test_without_weights_the_other_figures_stand_and_the_reason_is_given(figures):
    assert figures["weights"]["reason"] == "fid.weights is none"
    assert set(figures["weights"]["missing"]) == {"inception_64", "inception_192"}
    text = json.dumps({k: v for k, v in figures.items() if k not in ("weights", "settings")}, allow_nan=False)
    assert "inception" not in text
    assert {"kid_embedding", "precision_embedding", "recall_embedding"} <= set(figures)


def test_settings_say_how_many_maps_were_really_compared(reference):
    wide = PARAMS.model_copy(update={"manifold_maps": 5000, "kid_subset_size": 1000})
    found = score(GENERATED, reference, extractors(), wide, seed=3)["settings"]
    assert (found["manifold_maps"], found["kid_subset_size"], found["seed"]) == (30, 30, 3)
    assert found["bootstrap_replicates"]["embedding"] == 4


def test_reference_holds_the_floor_between_measured_maps(figures):
    floor = figures["reference"]
    assert (floor["n"], floor["test"]["n"], floor["halves"]["n"]) == (80, 30, 40)
    assert floor["parts"] == {"train": 50, "test": 30}
    assert 0 < floor["halves"]["overlay10_nm2"] < figures["fid"]["overlay10_nm2"]


def test_overlay_features_are_the_rms_that_each_pattern_adds():
    basis = linear_basis(10)
    terms = np.zeros((3, 2, 5))
    terms[0, 0, 0] = 2.0  # translation of 2 nm
    terms[1, 1, 1] = 0.05  # magnification
    terms[2] = np.random.default_rng(0).normal(0, 0.02, (2, 5))
    maps = term_maps(basis, terms)
    valid = np.stack([GRID.usable.astype(np.uint8)] * 3)
    found = OverlayFeatures()(np.where(valid[:, None], maps, 0).astype(np.float32), valid)
    rms = np.sqrt((maps[..., GRID.usable] ** 2).mean(-1).sum(-1))
    for name in ("overlay10_nm2", "overlay_k_nm2"):
        if name == "overlay10_nm2":
            np.testing.assert_allclose(np.linalg.norm(found[name], axis=1), rms, rtol=1e-4)
        else:
            np.testing.assert_allclose(np.linalg.norm(found[name], axis=1)[:2], rms[:2], rtol=1e-4)


@pytest.fixture(scope="module")
def weights():
    state = made_state()
    name = next(name for name in state if name.startswith("Conv2d_3b_1x1."))
    return Weights({**state, name: torch.full_like(state[name], torch.nan)}, "made.pth", "ab" * 32)


def test_with_weights_the_sound_depths_are_scored_and_the_broken_ones_absent_with_reason(weights):
    few = [map_set("train", made_maps(5, 0)), map_set("test", made_maps(4, 1))]
    reference = reference_of(few, weights)
    found = score(map_set("generated", made_maps(6, 2)), reference, extractors(weights), PARAMS, seed=0)
    assert found["fid"]["inception_64"] > 0
    assert found["reference"]["halves"]["inception_64"] > 0
    assert "inception_192" not in found["fid"]
    assert found["weights"]["sha256"] == "ab" * 32
    assert found["weights"]["missing"] == {"inception_192": "weights are not finite (NaN) in Conv2d_3b_1x1"}
    assert "kid_inception_64" in found


def with_weights(reference, facts):
    return Reference({**reference.facts, "weights": facts}, reference.moments, reference.subset)


def test_weights_other_than_the_references_are_refused(reference, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    params = FidParams(weights=str(tmp_path / "w.pth"))
    with pytest.raises(ModelError, match="dvc repro --force --single-item fid_measured"):
        weights_as_in(with_weights(reference, {"source": "v.pth", "sha256": "00"}), params)


def test_no_weights_are_looked_for_where_the_reference_has_none(reference, tmp_path):
    params = FidParams(weights=str(tmp_path / "nothing.pth"))
    assert weights_as_in(with_weights(reference, {"reason": "no network"}), params) == NoWeights("no network")
