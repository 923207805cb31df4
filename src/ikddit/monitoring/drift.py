"""How far new wafers are from the wafers a model was trained on: log channels, ids, map coefficients.

Wafers of a lot share scanner, day and lot offsets, so they are no independent witnesses. Effects are
measured over wafers, in units a person can judge (standard deviations of training, nm); whether chance could
make them is asked of lots. Something has drifted only when its effect is large *and* chance is ruled out
after correction for the number of things looked at (Benjamini and Yekutieli 2001, valid under any
dependence): an effect of no consequence is not reported however many wafers prove it, and the largest of
hundreds of noisy figures is not taken for news.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from ikddit.dataset.arrow import PreparedSplit
from ikddit.mpom.schema import ID_FIELDS
from ikddit.overlay.grid import wafer_grid
from ikddit.overlay.terms import fit_terms, linear_basis
from ikddit.params import DriftParams

PSI_BINS = 10
PSI_FLOOR = 1e-3
"""Share given to an empty bin, so that one wafer outside of what training saw is not an infinite drift."""


@dataclass(frozen=True)
class LogDrift:
    """One log channel."""

    channel: str
    wasserstein_sd: float
    """Wasserstein-1 distance in standard deviations of training: 1 is a shift by one of them."""
    ks: float
    """Kolmogorov-Smirnov distance over wafers, 0 to 1."""
    psi: float
    """Population stability index over deciles of training; above 0.25 is called large by convention."""
    missing_change: float
    """Share of wafers without a value, new minus training."""
    p_value: float
    """Two-sample KS test over lot means, corrected for the number of channels."""
    drifted: bool


@dataclass(frozen=True)
class MapDrift:
    """One coefficient of the 10-parameter model on one scanner and chuck."""

    scanner_id: str
    chuck_id: str
    term: str
    shift_nm: float
    """New mean minus that of training, as nm RMS of the coefficient's pattern over the wafer."""
    p_value: float
    """t test with the pooled lot-to-lot variance, corrected for the number of coefficients and machines."""
    lots: int
    """New lots on this scanner and chuck."""
    drifted: bool


@dataclass(frozen=True)
class Drift:
    """Everything measured; `reasons` says in words what exceeds its threshold."""

    logs: list[LogDrift]
    ids: dict[str, float]
    """Share of wafers whose id is not empty and unknown to training, by field."""
    maps: list[MapDrift]
    reasons: list[str]


def measure_drift(train: PreparedSplit, new: PreparedSplit, params: DriftParams) -> Drift:
    """Compare new wafers with the training wafers of a model.

    Args:
        train: the model's train split.
        new: new wafers, encoded with the model's own normaliser and vocabularies.
        params: thresholds.
    """
    logs = log_drift(train, new, params)
    ids = unknown_ids(new)
    maps = map_drift(train, new, params)
    reasons = [
        f"log channel {log.channel}: {log.wasserstein_sd:.2f} sd from training (p = {log.p_value:.1g})"
        if log.wasserstein_sd >= params.log_wasserstein_sd
        else f"log channel {log.channel}: missing share changed by {log.missing_change:+.0%}"
        for log in sorted(logs, key=lambda log: -log.wasserstein_sd)
        if log.drifted
    ]
    reasons += [
        f"{name}: {share:.1%} of the wafers have an id unknown to training"
        for name, share in ids.items()
        if share > params.unknown_ids
    ]
    reasons += [
        f"{m.scanner_id} {m.chuck_id}: {m.term} moved by {m.shift_nm:+.2f} nm over {m.lots} lots "
        f"(p = {m.p_value:.1g})"
        for m in sorted(maps, key=lambda m: -abs(m.shift_nm))
        if m.drifted
    ]
    return Drift(logs, ids, maps, reasons)


def corrected(p_values: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Benjamini-Yekutieli adjusted p-values; a drift is one below alpha.

    >>> corrected(np.array([0.001, 0.5])).round(4).tolist()
    [0.003, 0.75]
    """
    if not len(p_values):
        return p_values
    out: np.ndarray = stats.false_discovery_control(p_values, method="by")
    return out


def lot_codes(split: PreparedSplit) -> Int[np.ndarray, " n"]:
    """Number of the lot of each wafer; a wafer without lot is one of its own."""
    return np.unique(np.array(split.lots), return_inverse=True)[1].astype(np.int64)


def group_means(values: Float[np.ndarray, "n k"], groups: Int[np.ndarray, " n"]) -> Float[np.ndarray, "g k"]:
    """Mean of each group over its finite values, NaN where there is none.

    >>> group_means(np.array([[1.0], [3.0], [np.nan]]), np.array([0, 0, 1])).tolist()
    [[2.0], [nan]]
    """
    finite = np.isfinite(values)
    total = np.zeros((int(groups.max(initial=-1)) + 1, values.shape[1]))
    count = np.zeros_like(total)
    np.add.at(total, groups, np.where(finite, values, 0.0))
    np.add.at(count, groups, finite)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / np.where(count > 0, count, np.nan))


# Logs ------------------------------------------------------------------------------------------------------


def psi(reference: Float[np.ndarray, " n"], new: Float[np.ndarray, " m"], bins: int = PSI_BINS) -> float:
    """Population stability index: sum over bins of (q - p) ln(q / p), bins at quantiles of the reference.

    >>> psi(np.arange(100.0), np.arange(100.0))
    0.0
    """
    edges = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    p, q = (
        np.bincount(np.searchsorted(edges, v, side="right"), minlength=len(edges) + 1) / len(v)
        for v in (reference, new)
    )
    p, q = np.maximum(p, PSI_FLOOR), np.maximum(q, PSI_FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def log_drift(train: PreparedSplit, new: PreparedSplit, params: DriftParams) -> list[LogDrift]:
    """Drift of every log channel; z-scores of training are its unit."""
    values = [np.where(split.log_missing > 0, np.nan, split.log_features) for split in (train, new)]
    lots = [
        group_means(v.astype(np.float64), lot_codes(s)) for v, s in zip(values, (train, new), strict=True)
    ]
    found: list[tuple[float, float, float, float]] = []
    p_values = []
    for channel in range(values[0].shape[1]):
        a, b = (v[:, channel][np.isfinite(v[:, channel])].astype(np.float64) for v in values)
        missing = (1 - len(b) / len(values[1])) - (1 - len(a) / len(values[0]))
        if len(a) < 2 or len(b) < 2:
            found.append((0.0, 0.0, 0.0, missing))
            p_values.append(1.0)
            continue
        spread = a.std() or 1.0
        distance = float(stats.wasserstein_distance(a / spread, b / spread))
        found.append((distance, float(stats.ks_2samp(a, b).statistic), psi(a, b), missing))
        of_lots = [lot[:, channel][np.isfinite(lot[:, channel])] for lot in lots]
        p_values.append(float(stats.ks_2samp(*of_lots).pvalue))
    adjusted = corrected(np.array(p_values))
    return [
        LogDrift(
            name,
            *figures,
            p_value=float(p),
            drifted=bool(
                (figures[0] >= params.log_wasserstein_sd and p < params.alpha)
                or abs(figures[3]) >= params.log_missing
            ),
        )
        for name, figures, p in zip(new.log_names, found, adjusted, strict=True)
    ]


# Ids -------------------------------------------------------------------------------------------------------


def unknown_ids(new: PreparedSplit) -> dict[str, float]:
    """Share of wafers with an id that is given and that training never saw, by field."""
    given = np.array([[v is not None for v in new.table.column(name).to_pylist()] for name in ID_FIELDS]).T
    unknown = given & (new.ids == 0)
    return dict(zip(ID_FIELDS, unknown.mean(0).tolist(), strict=True))


# Maps ------------------------------------------------------------------------------------------------------


def map_terms(split: PreparedSplit) -> tuple[Float[np.ndarray, "n 10"], tuple[str, ...]]:
    """10-parameter coefficients of each wafer's map, each as nm RMS of its pattern over the usable wafer.

    Returns:
        Coefficients, NaN for a wafer without a map, and their names (dx terms, then dy terms).
    """
    basis = linear_basis(10)
    measured = np.flatnonzero(split.valid.any((1, 2)))
    rms = np.sqrt((basis.design[:, :, wafer_grid().usable] ** 2).mean(-1))
    out = np.full((len(split), rms.size), np.nan)
    if len(measured):
        terms = fit_terms(basis, split.map[measured], split.valid[measured])
        out[measured] = (terms * rms).reshape(len(measured), -1)
    return out, basis.names[0] + basis.names[1]


def pooled_shift(
    reference: tuple[Float[np.ndarray, "a k"], Int[np.ndarray, " a"]],
    new: tuple[Float[np.ndarray, "b k"], Int[np.ndarray, " b"]],
    cells: int,
) -> tuple[Float[np.ndarray, "c k"], Float[np.ndarray, "c k"], Int[np.ndarray, "2 c"]]:
    """Change of each cell's mean, tested with the variance within cells pooled over all of them.

    The t test of a one-way layout: t = (m1 - m0) / (s sqrt(1/n0 + 1/n1)), s^2 the variance within cell and
    period, its degrees of freedom the units less the groups. Pooling makes a test of cells with few units.

    Args:
        reference: values per unit (a lot on a machine) and the cell of each, 0 to `cells` - 1.
        new: the same of the new period.
        cells: number of cells.

    Returns:
        Shifts, two-sided p-values (both NaN where a period has no unit), units per period and cell.
    """
    means, squares, counts = [], 0.0, []
    for values, cell in (reference, new):
        n = np.bincount(cell, minlength=cells)
        mean = np.full((cells, values.shape[1]), np.nan)
        some = group_means(values, cell)
        mean[: len(some)] = some
        squares = squares + ((values - mean[cell]) ** 2).sum(0)
        means.append(mean)
        counts.append(n)
    freedom = sum(int(n.sum()) - int((n > 0).sum()) for n in counts)
    shift = means[1] - means[0]
    if freedom < 1:
        return shift, np.ones_like(shift), np.array(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.sqrt(squares / freedom * (1 / counts[0] + 1 / counts[1])[:, None])
        p = 2 * stats.t.sf(np.abs(shift) / error, freedom)
    p = np.where((shift == 0) & (error == 0), 1.0, p)  # a coefficient that never varies has not moved
    return shift, p, np.array(counts)


def machine_names(split: PreparedSplit) -> list[tuple[str, str]]:
    """Scanner and chuck of each wafer, `?` where unknown."""
    columns = [split.table.column(name).to_pylist() for name in ("scanner_id", "chuck_id")]
    return [(scanner or "?", chuck or "?") for scanner, chuck in zip(*columns, strict=True)]


def _by_lot_and_machine(
    split: PreparedSplit, terms: np.ndarray, machines: dict[tuple[str, str], int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean coefficients of each lot on each machine, and the machine's number."""
    cell = np.array([machines[name] for name in machine_names(split)], np.int64)
    keep = np.isfinite(terms).all(1)
    unit = lot_codes(split)[keep] * len(machines) + cell[keep]
    units, where = np.unique(unit, return_inverse=True)
    return group_means(terms[keep], where), units % len(machines)


def map_drift(train: PreparedSplit, new: PreparedSplit, params: DriftParams) -> list[MapDrift]:
    """Drift of the 10 linear coefficients per scanner and chuck; machines with too few lots are left out."""
    names = sorted({*machine_names(train), *machine_names(new)})
    machines = {name: i for i, name in enumerate(names)}
    (before, terms), (after, _) = map_terms(train), map_terms(new)
    shift, p, lots = pooled_shift(
        _by_lot_and_machine(train, before, machines), _by_lot_and_machine(new, after, machines), len(machines)
    )
    enough = np.asarray((lots >= params.min_lots).all(0))
    rows = [(c, t) for c in np.flatnonzero(enough).tolist() for t in range(len(terms))]
    adjusted = corrected(np.array([p[row] for row in rows]))
    return [
        MapDrift(
            *names[c],
            term=terms[t],
            shift_nm=float(shift[c, t]),
            p_value=float(value),
            lots=int(lots[1, c]),
            drifted=bool(abs(shift[c, t]) >= params.map_shift_nm and value < params.alpha),
        )
        for (c, t), value in zip(rows, adjusted, strict=True)
    ]
