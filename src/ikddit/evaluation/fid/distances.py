"""What is measured between two sets of feature vectors: bootstrap of the Frechet distance, KID, manifolds, IS.

The Frechet distance itself is `ikddit.evaluation.scores.frechet_from_moments`. Neighbour searches are
scikit-learn's.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from ikddit.evaluation.scores import Moments, frechet_from_root

Vectors = Float[np.ndarray, "n d"]
NORMAL_95 = 1.959963984540054
IS_SPLITS = 10


def bootstrap_sd(
    features: Vectors,
    wafer: Int[np.ndarray, " n"],
    reference: Moments,
    root: Float[np.ndarray, "d d"],
    replicates: int,
    seed: int,
) -> float:
    """Standard deviation of the Frechet distance under resampling of wafers.

    The samples of a wafer belong together, so that wafers are drawn with replacement and bring all of theirs.
    The reference is kept.

    Args:
        features: of the generated maps.
        wafer: number of each map's wafer, 0 to the number of wafers - 1.
        reference: moments of the measured maps.
        root: of the reference's covariance.
        replicates: at least 2.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    wafers = int(wafer.max()) + 1
    values = []
    for _ in range(replicates):
        drawn = np.bincount(rng.integers(wafers, size=wafers), minlength=wafers)
        values.append(frechet_from_root(*reference, root, *weighted_gaussian(features, drawn[wafer])))
    return float(np.std(values, ddof=1))


def weighted_gaussian(features: Vectors, times: Int[np.ndarray, " n"]) -> Moments:
    """Mean and covariance (divisor n - 1) of vectors of which each counts `times` times; float64."""
    used = np.flatnonzero(times)
    weight = times[used].astype(np.float64)
    total = weight.sum()
    rows = features[used].astype(np.float64)
    mean = weight @ rows / total
    rows -= mean
    rows *= np.sqrt(weight)[:, None]
    return mean, rows.T @ rows / (total - 1.0)


def interval(value: float, sd: float) -> tuple[float, float]:
    """Normal 95 % interval around a distance, cut at 0.

    Around the value itself: a resample has fewer distinct wafers, which raises the Frechet distance in every
    replicate, so that quantiles of replicates would lie above it.
    """
    return max(value - NORMAL_95 * sd, 0.0), value + NORMAL_95 * sd


def kid(fake: Vectors, real: Vectors, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Kernel distance: squared MMD with the kernel (x.y / d + 1)^3, unbiased (Binkowski et al. 2018).

    Args:
        fake: features of generated maps.
        real: features of measured maps.
        subsets: random subsets (without replacement) over which it is averaged.
        size: of each; at most the smaller set.
        seed: of the draws.

    Returns:
        Mean and standard deviation over the subsets; unlike FID not biased by the number of maps.
    """
    rng = np.random.default_rng(seed)
    size = min(size, len(fake), len(real))
    values = [
        _squared_mmd(
            fake[rng.choice(len(fake), size, replace=False)].astype(np.float64),
            real[rng.choice(len(real), size, replace=False)].astype(np.float64),
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    n, d = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        root: np.ndarray = a @ b.T / d + 1.0
        cube: np.ndarray = root * root * root
        return cube

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2.0 * kernel(x, y).mean())


def manifold_scores(fake: Vectors, real: Vectors, neighbours: int) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set's manifold is the union of balls around its vectors, each reaching to the `neighbours`-th nearest
    other vector of the set.

    Args:
        fake: features of generated maps.
        real: features of measured maps, about as many.
        neighbours: at least 1, below the number of vectors.

    Returns:
        `precision`: share of generated maps in the measured manifold; `recall`: of measured maps in the
        generated manifold; `density`: mean number of measured balls around a generated map, over `neighbours`
        (may exceed 1); `coverage`: share of measured balls that hold a generated map.
    """
    fake_radius, real_radius = (_radius(x, neighbours) for x in (fake, real))
    inside_real = np.zeros(len(fake), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for rows, distance in _distances(real, fake):
        in_real = distance <= real_radius[rows, None]
        inside_real += in_real.sum(axis=0)
        covered[rows] = in_real.any(axis=1)
        recalled[rows] = (distance <= fake_radius).any(axis=1)
    return {
        "precision": float((inside_real > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(inside_real.mean() / neighbours),
        "coverage": float(covered.mean()),
    }


def _radius(x: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each vector to its k-th nearest other one."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(x.astype(np.float64))
    distance: np.ndarray = search.kneighbors()[0][:, -1]
    return distance


def _distances(x: np.ndarray, y: np.ndarray, rows: int = 512) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances, a block of `x` against all of `y` at a time."""
    from sklearn.metrics.pairwise import euclidean_distances

    x, y = x.astype(np.float64), y.astype(np.float64)
    for start in range(0, len(x), rows):
        part = slice(start, min(start + rows, len(x)))
        yield part, euclidean_distances(x[part], y)


def inception_score(logits: Float[np.ndarray, "n c"], seed: int) -> tuple[float, float]:
    """Inception score exp(E KL(p(y|x) || p(y))) (Salimans et al. 2016).

    Args:
        logits: of the 1,008 classes.
        seed: of the order in which maps are dealt into ten splits.

    Returns:
        Mean and standard deviation over the splits.
    """
    from scipy.special import log_softmax

    order = np.random.default_rng(seed).permutation(len(logits))
    scores = []
    for rows in np.array_split(order, min(IS_SPLITS, len(order))):
        log_p = log_softmax(logits[rows].astype(np.float64), axis=1)
        p = np.exp(log_p)
        scores.append(np.exp((p * (log_p - np.log(p.mean(axis=0)))).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))
