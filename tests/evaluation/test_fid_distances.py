"""Distances between sets of vectors against closed forms, loops and pytorch-fid's own function."""

from functools import partial

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ikddit.evaluation.fid.distances import (
    bootstrap_sd,
    inception_score,
    interval,
    kid,
    manifold_scores,
    weighted_gaussian,
)
from ikddit.evaluation.scores import covariance_root, frechet_from_moments, gaussian_of
from ikddit.vision import make_torchvision_importable


def vectors(n, d, seed, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1.0, (n, d)).astype(np.float32)


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b = rng.uniform(0.1, 2, 6), rng.uniform(0.1, 2, 6)
    mean = rng.normal(size=6)
    expected = (mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_from_moments(np.zeros(6), basis * a @ basis.T, mean, basis * b @ basis.T)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("n", "d"), [(300, 64), (40, 64)])
def test_frechet_distance_is_that_of_pytorch_fid(n, d):
    make_torchvision_importable()
    from pytorch_fid.fid_score import calculate_frechet_distance

    mix = np.random.default_rng(1).normal(size=(d, d))
    a, b = gaussian_of(vectors(n, d, 2) @ mix), gaussian_of(vectors(n + 7, d, 3, 0.3))
    expected = calculate_frechet_distance(*a, *b)
    assert frechet_from_moments(*a, *b) == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_weighted_moments_are_those_of_repeated_rows():
    features = vectors(20, 4, 0, 5.0)
    times = np.random.default_rng(1).integers(0, 4, 20)
    mean, cov = weighted_gaussian(features, times)
    expected = gaussian_of(np.repeat(features, times, axis=0))
    np.testing.assert_allclose(mean, expected[0], rtol=1e-12)
    np.testing.assert_allclose(cov, expected[1], rtol=1e-9, atol=1e-12)


def test_bootstrap_counts_wafers_not_samples():
    """Repeating every wafer's map m times leaves the spread; drawing single samples would shrink it."""
    features, reference = vectors(50, 3, 0), gaussian_of(vectors(5000, 3, 1))
    sd_of = partial(
        bootstrap_sd, reference=reference, root=covariance_root(reference[1]), replicates=200, seed=0
    )
    once = sd_of(features, np.arange(50))
    many = sd_of(np.repeat(features, 10, axis=0), np.repeat(np.arange(50), 10))
    single = sd_of(np.repeat(features, 10, axis=0), np.arange(500))
    assert many == pytest.approx(once, rel=0.1)
    assert single < 0.6 * once


def test_interval_is_around_the_value_and_not_below_zero():
    low, high = interval(1.0, 0.1)
    assert (low, high) == pytest.approx((0.804, 1.196), abs=1e-3)
    assert interval(0.1, 1.0)[0] == 0.0


def test_kid_is_the_unbiased_mmd_written_as_loops():
    x, y = vectors(7, 3, 0), vectors(7, 3, 1, 0.5)

    def kernel(a, b):
        return (float(a.astype(np.float64) @ b.astype(np.float64)) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(7) for j in range(7)]
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / (7 * 6)
    expected -= 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 49
    value, sd = kid(x, y, subsets=3, size=100, seed=0)
    assert value == pytest.approx(expected, rel=1e-10)
    assert sd == pytest.approx(0.0, abs=1e-10)


def test_kid_of_one_law_is_zero_on_average():
    value, sd = kid(vectors(2000, 8, 0), vectors(2000, 8, 1), subsets=50, size=200, seed=0)
    assert abs(value) < sd


def test_manifold_scores_are_those_of_loops():
    fake, real, k = vectors(60, 3, 0, 0.6), vectors(50, 3, 1), 4
    across, within = cdist(real, fake), {"f": cdist(fake, fake), "r": cdist(real, real)}
    # Nearest is the vector itself: index k is the k-th other one.
    f_radius, r_radius = (np.sort(within[side], axis=1)[:, k] for side in "fr")
    precision = np.mean([any(across[i, j] <= r_radius[i] for i in range(50)) for j in range(60)])
    recall = np.mean([any(across[i, j] <= f_radius[j] for j in range(60)) for i in range(50)])
    density = sum(across[i, j] <= r_radius[i] for i in range(50) for j in range(60)) / (k * 60)
    coverage = np.mean([any(across[i, j] <= r_radius[i] for j in range(60)) for i in range(50)])
    found = manifold_scores(fake, real, k)
    assert found == pytest.approx(
        {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    )
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_inception_score_is_one_for_one_answer_and_the_number_of_classes_for_sure_ones():
    assert inception_score(np.ones((100, 7)), 0)[0] == pytest.approx(1.0)
    sure = np.tile(50.0 * np.eye(5), (200, 1))
    value, sd = inception_score(sure, 0)
    assert value == pytest.approx(5.0, rel=0.05)
    assert sd < 0.1
