"""How well a map can be matched to the logs or the ids it belongs to, by the simulator's own law.

For every pair (i, j) of a batch, log p(map of wafer i | conditions of wafer j). Given ids and events a map is

    map = B c + hot spot + white,   c ~ N(mean_j, cov_j)

over the marks valid in map i, so the density is one Cholesky factor of 68 + 1 dimensions per pair:

    det(s^2 I + B S B') = s^(2m) det(S) det(S^-1 + B'B/s^2)                         (matrix determinant lemma)
    r'(s^2 I + B S B')^-1 r = r'r/s^2 - u'(S^-1 + B'B/s^2)^-1 u,  u = B'r/s^2        (Woodbury)

**Exact**: the previous map given ids, the previous map given logs, and the current map given logs, of every
wafer whose equipment report was received (98 %: its lines name all ids). **Gaussian with the exact law's mean
and covariance**: a lost report (ids unknown, so a mixture over machines; lens heating taken as known), and the
current map given ids, where days since maintenance, RF hours, lens heating, a re-zero and a hot spot are unknown
and enter by their moments over the batch or their prior. Logs and ids need no likelihood: a received report
prints every id, so that they match one another but for wafers that share all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ikddit.simulator import hotspot, physics
from ikddit.simulator.constants import P_HOT_SPOT, P_REZERO, SD_HEAT_GAIN, WHITE_VAR, Fab
from ikddit.simulator.oracle import joint_law, wafers_for
from ikddit.simulator.wafers import Wafers

HOT_SPOT_DRAWS = 400


@dataclass(frozen=True)
class MapLaw:
    """What one modality says of the maps of n wafers: shift + B c + white noise, c ~ N(mean, cov)."""

    mean: Float[np.ndarray, "n terms"]
    cov: Float[np.ndarray, "n terms terms"]
    """Positive definite."""
    shift: Float[np.ndarray, "n rows"] | None = None
    """Known part outside the basis (located hot spots), nm; none is 0."""

    def pooled(self) -> "MapLaw":
        """The law of a map of which nothing is known: one, with the moments of the mixture of all n."""
        n = len(self.mean)
        mean = self.mean.mean(0)
        centred = self.mean - mean
        cov = self.cov.mean(0) + centred.T @ centred / n
        return MapLaw(mean[None], cov[None], None if self.shift is None else self.shift.mean(0)[None])


def pair_log_density(
    values: Float[np.ndarray, "m rows"],
    known: Bool[np.ndarray, "m rows"],
    matrix: Float[np.ndarray, "rows terms"],
    law: MapLaw,
    white_var: float = WHITE_VAR,
) -> Float[np.ndarray, "m n"]:
    """Log density of each of m maps under each of n laws, natural logarithm.

    Args:
        values: maps as rows (`Basis.to_rows`), nm.
        known: marks that count, for dx and dy alike.
        matrix: columns of the basis.
        law: n laws.
        white_var: variance of the white noise, nm^2.
    """
    n, terms = law.mean.shape
    scale = np.sqrt(white_var)
    y = np.where(known, values, 0.0) / scale
    basis = matrix / scale
    shift = np.zeros((n, 1)) if law.shift is None else law.shift / scale
    shift = np.broadcast_to(shift, (n, y.shape[1]))
    inverse = np.linalg.inv(law.cov)
    log_det = np.linalg.slogdet(law.cov)[1]

    # over all marks that any map has, then less the few that map i lacks
    some = known.any(0)
    gram_all = basis[some].T @ basis[some]
    shift_basis, shift_square = (shift * some) @ basis, (shift**2 * some).sum(1)
    y_basis, y_square, y_shift = y @ basis, (y**2).sum(1), y @ shift.T
    out = np.empty((len(y), n))
    block = np.empty((n, terms + 1, terms + 1))
    for i in range(len(y)):
        lost = np.flatnonzero(some & ~known[i])
        rows, gone = basis[lost], shift[:, lost]
        gram = gram_all - rows.T @ rows
        score = y_basis[i] - (shift_basis - gone @ rows)  # B'(y - shift), (n, terms)
        square = y_square[i] - 2 * y_shift[i] + shift_square - (gone**2).sum(1)
        pull = law.mean @ gram
        square = square - 2 * (law.mean * score).sum(1) + (law.mean * pull).sum(1)
        # The last pivot of the bordered matrix is what is left of r'r: the Mahalanobis distance.
        block[:, :terms, :terms] = inverse + gram
        block[:, terms, :terms] = block[:, :terms, terms] = score - pull
        block[:, terms, terms] = square
        pivots = np.linalg.cholesky(block)[:, np.arange(terms + 1), np.arange(terms + 1)]
        determinant = log_det + 2 * np.log(pivots[:, :terms]).sum(1)
        marks = int(known[i].sum())
        out[i] = -0.5 * (marks * np.log(2 * np.pi * white_var) + determinant + pivots[:, terms] ** 2)
    return out


def map_laws(fab: Fab, wafers: Wafers) -> dict[tuple[str, str], MapLaw]:
    """Laws of the previous ("map") and current map given "log" or "id", per wafer; see the module."""
    w = wafers
    report = w.report[:, None]
    logs, lost = joint_law(fab, w), joint_law(fab, w, frozenset({"ids"}))
    ids = joint_law(fab, w, frozenset({"logs", "text"}))
    spot_mean, spot_cov = _hot_spot_moments(fab, fab.hot_gain.ravel())
    spots = hotspot.shift(w.hot_x_mm, w.hot_y_mm, w.hot_dz_nm) * fab.basis.exposed
    gain = w.hot * w.report * fab.hot_gain[w.scanner, w.chuck]
    return {
        ("map", "log"): MapLaw(
            np.where(report, logs.mean_p, lost.mean_p),
            np.where(report[:, None], logs.cov_pp, lost.cov_pp),
        ),
        ("map", "id"): MapLaw(ids.mean_p, ids.cov_pp),
        ("current", "log"): MapLaw(
            np.where(report, logs.mean_c, lost.mean_c + spot_mean),
            np.where(report[:, None], logs.cov_cc, lost.cov_cc + spot_cov),
            gain[:, None] * fab.basis.to_rows(spots),
        ),
        ("current", "id"): _current_given_ids(fab, w),
    }


def _current_given_ids(fab: Fab, w: Wafers) -> MapLaw:
    """Mean and covariance of the current coefficients where only the ids are known."""
    light = w.heat / fab.transmission[w.reticle]
    typical = replace(
        w,
        days_since_pm=np.full(len(w), w.days_since_pm.mean()),
        rf_hours=np.full(len(w), w.rf_hours.mean()),
        heat=light.mean() * fab.transmission[w.reticle],
    )
    law = joint_law(fab, typical, frozenset({"logs", "text"}))
    heat_var = light.var() * fab.transmission[w.reticle] ** 2 * (1 + SD_HEAT_GAIN**2)
    mean, cov = law.mean_c + P_REZERO * fab.rezero_step[w.scanner], law.cov_cc
    for variance, effect in (
        (w.days_since_pm.var(), fab.drift_rate[w.scanner]),
        (physics.clean_factor(w.rf_hours).var(), fab.chamber[w.chamber]),
        (heat_var, fab.heat_shape[w.scanner]),
        (P_REZERO * (1 - P_REZERO), fab.rezero_step[w.scanner]),
    ):
        spread = np.broadcast_to(variance, len(w))[:, None, None]
        cov = cov + spread * (effect[:, :, None] * effect[:, None, :])
    gains = fab.hot_gain[w.scanner, w.chuck]
    spot_mean, spot_cov = _hot_spot_moments(fab, np.ones(1))
    return MapLaw(mean + gains[:, None] * spot_mean, cov + (gains**2)[:, None, None] * spot_cov)


def _hot_spot_moments(
    fab: Fab, gains: Float[np.ndarray, " gains"]
) -> tuple[Float[np.ndarray, " terms"], Float[np.ndarray, "terms terms"]]:
    """Moments of what the basis sees of a hot spot nobody logged, over its prior and equally likely gains.

    What the basis does not see is the same for all candidates of a map.
    """
    basis = fab.basis
    rng = np.random.default_rng(0)
    spots = hotspot.shift(*hotspot.draw(rng, HOT_SPOT_DRAWS)) * basis.exposed
    exposed = np.tile(basis.exposed[basis.usable], 2)
    matrix = basis.matrix[exposed]
    seen = basis.to_rows(spots)[:, exposed] @ matrix
    # a whiff of ridge: the basis is nearly collinear
    seen = np.linalg.solve(matrix.T @ matrix + np.eye(matrix.shape[1]), seen.T).T
    mean = P_HOT_SPOT * gains.mean() * seen.mean(0)
    square = P_HOT_SPOT * (gains**2).mean() * (seen.T @ seen) / HOT_SPOT_DRAWS
    return mean, square - np.outer(mean, mean)


def retrieval_share(score: Float[np.ndarray, "q c"], match: Bool[np.ndarray, "q c"], k: int) -> float:
    """Share of queries (rows) with a match among their k best candidates.

    >>> retrieval_share(np.array([[2.0, 1.0], [3.0, 0.0]]), np.eye(2, dtype=bool), 1)
    0.5
    """
    best = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(match, best, axis=1).any(1).mean())


def exact_retrieval(
    dataset_json: dict[str, Any], barcodes: Sequence[str], ks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """Retrieval within one batch by the simulator's likelihood, as `exact_retrieval_<a>_to_<b>_at_<k>`.

    Given a map, candidates are ranked by p(map | conditions). Given conditions, maps are ranked by
    p(map | conditions) / p(map), with the pooled Gaussian of the batch as p(map), an approximation. With ids,
    any wafer with the same ids is a match, with logs only the wafer itself. Wafers are taken as independent, one
    query at a time: that the assignment is one to one is not used. 256 wafers take some ten seconds on one core.

    Args:
        dataset_json: the data set's dataset.json.
        barcodes: the batch.
        ks: ranks that count.

    Raises:
        InputError: see `ikddit.simulator.oracle.wafers_for`.
    """
    fab, w = wafers_for(dataset_json, barcodes)
    ids = np.stack([w.layer, w.scanner, w.chuck, w.reticle, w.chamber, w.prev_layer, w.prev_scanner,
                    w.prev_chuck, w.prev_reticle, w.prev_chamber], axis=1)  # fmt: skip
    own, shared = np.eye(len(w), dtype=bool), (ids[:, None] == ids[None]).all(-1)
    maps = {"map": (w.prev_map, w.prev_valid), "current": (w.map, w.valid)}
    rows = {
        name: (
            fab.basis.to_rows(values.astype(float)),
            np.tile(valid[:, fab.basis.usable].astype(bool), (1, 2)),
        )
        for name, (values, valid) in maps.items()
    }
    out = {"exact_retrieval_batch": float(len(w))}
    for (a, b), law in map_laws(fab, w).items():
        score = pair_log_density(*rows[a], fab.basis.matrix, law)
        against = pair_log_density(*rows[a], fab.basis.matrix, law.pooled())
        match = shared if b == "id" else own
        for k in ks:
            out[f"exact_retrieval_{a}_to_{b}_at_{k}"] = retrieval_share(score, match, k)
            out[f"exact_retrieval_{b}_to_{a}_at_{k}"] = retrieval_share((score - against).T, match, k)
    return out
