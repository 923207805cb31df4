"""The best forecast anyone can make of a simulated wafer, exactly: conditional mean, covariance, samples.

Given ids and events every map is linear-Gaussian in the coefficients of `Basis`:

    current  c = mu_c + ...,   previous  p = mu_p + ...,   jointly Gaussian,
    previous map = B p + white,   sensors = part of c + noise

so the posterior of c is Gaussian conditioning in 68 dimensions, and the map is B c + hot spot + white.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from pydantic import ValidationError

from ikddit.errors import InputError
from ikddit.params import SimulateParams
from ikddit.simulator import history, hotspot
from ikddit.simulator.basis import LINEAR, PROCESS, TERMS
from ikddit.simulator.constants import (
    COUPLING,
    OLDER_COUPLING,
    P_HOT_SPOT,
    SD_ALIGNMENT,
    SD_HEAT_GAIN,
    SD_OLDER,
    SD_PREVIOUS,
    SD_SHAPE,
    SD_SMOOTH,
    SENSOR_NOISE,
    SHAPE_IN_PREVIOUS,
    SIMULATOR_VERSION,
    WAFERS_PER_LOT,
    WHITE_VAR,
    Fab,
)
from ikddit.simulator.population import Machines, with_ids, without_ids
from ikddit.simulator.sensors import coefficients_from
from ikddit.simulator.wafers import Wafers, draw_lots

INPUTS = frozenset({"prev", "logs", "text", "ids"})
"""Inputs that can be withheld from the oracle."""
EVENT_DRAWS = 64


@dataclass(frozen=True)
class Posterior:
    """What is known of each wafer's measured map, given its inputs.

    The map is B c + gain * hot-spot shift + white noise with c Gaussian; where the log is silent c also
    makes the re-zero step with probability `rezero_p`, and the hot spot follows its prior.
    """

    fab: Fab
    wafers: Wafers
    mean: Float[np.ndarray, "n terms"]
    """Mean of c without an unknown re-zero step."""
    cov: Float[np.ndarray, "n terms terms"]
    rezero_p: Float[np.ndarray, " n"]
    """Probability of a re-zero step the log says nothing about; 0 where it is known."""
    rezero_step: Float[np.ndarray, "n terms"]
    hot_known: Bool[np.ndarray, " n"]
    """True where the log says whether and where there is a hot spot."""
    hot_gain: Float[np.ndarray, "n gains"]
    """Possible gains, equally likely: one where scanner and chuck are known."""

    def __len__(self) -> int:
        """Count the wafers."""
        return len(self.wafers)

    @cached_property
    def _hot_moments(self) -> tuple[Float[np.ndarray, "n 2 64 64"], Float[np.ndarray, "n 2 64 64"]]:
        """Mean and variance of the hot-spot shift."""
        w = self.wafers
        known = w.hot[:, None, None, None] * hotspot.shift(w.hot_x_mm, w.hot_y_mm, w.hot_dz_nm)
        first, second = hotspot.prior_moments()
        is_known = self.hot_known[:, None, None, None]
        gain = self.hot_gain.mean(1)[:, None, None, None]
        gain_sq = (self.hot_gain**2).mean(1)[:, None, None, None]
        mean = gain * np.where(is_known, known, first)
        square = gain_sq * np.where(is_known, known**2, second)
        exposed = self.fab.basis.exposed
        return mean * exposed, (square - mean**2) * exposed

    def mean_map(self) -> Float[np.ndarray, "n 2 64 64"]:
        """Conditional mean of the map in nm; 0 where not exposed."""
        centre = self.mean + self.rezero_p[:, None] * self.rezero_step
        maps: np.ndarray = self.fab.basis.to_maps(centre @ self.fab.basis.matrix.T) + self._hot_moments[0]
        return maps

    def variance_map(self) -> Float[np.ndarray, "n 2 64 64"]:
        """Predictive variance of every measured mark in nm^2, white noise included; 0 where not exposed."""
        step = self.fab.basis.to_maps(self.rezero_step @ self.fab.basis.matrix.T)
        unlogged = (self.rezero_p * (1 - self.rezero_p))[:, None, None, None]
        variance: np.ndarray = self._gaussian_variance() + unlogged * step**2 + self._hot_moments[1]
        return variance

    def _event_cov(self) -> Float[np.ndarray, "n terms terms"]:
        """Covariance of c, an unknown re-zero included."""
        weight = (self.rezero_p * (1 - self.rezero_p))[:, None, None]
        cov: np.ndarray = self.cov + weight * (self.rezero_step[:, :, None] * self.rezero_step[:, None, :])
        return cov

    @cached_property
    def floor_mse(self) -> Float[np.ndarray, " n"]:
        """Least possible expected squared error in nm^2 per wafer, over its valid marks and both axes."""
        w = self.wafers
        marks = w.valid.sum((1, 2), dtype=float)
        gram = gram_of_valid(self.fab, w.valid)
        smooth = np.einsum("nij,nij->n", self._event_cov(), gram) / (2 * marks)
        hot = (self._hot_moments[1] * w.valid[:, None]).sum((1, 2, 3)) / (2 * marks)
        mse: np.ndarray = smooth + hot + WHITE_VAR
        return mse

    def sample(self, n: int, rng: np.random.Generator) -> Float[np.ndarray, "wafers n 2 64 64"]:
        """Draw n maps per wafer in nm (float32), white noise included: as a perfect generator would."""
        basis, w = self.fab.basis, self.wafers
        root = np.linalg.cholesky(self.cov)
        out = np.empty((len(self), n, 2, 64, 64), np.float32)
        for i in range(len(self)):
            c = self.mean[i] + rng.normal(size=(n, TERMS)) @ root[i].T
            c += (rng.random(n) < self.rezero_p[i])[:, None] * self.rezero_step[i]
            rows = c.astype(np.float32) @ basis.matrix32.T
            rows += np.float32(np.sqrt(WHITE_VAR)) * rng.standard_normal(rows.shape, np.float32)
            out[i] = basis.to_maps(rows)
            if not self.hot_known[i]:
                out[i] += self._unknown_spots(i, n, rng)
            elif w.hot[i]:
                spot = hotspot.shift(w.hot_x_mm[i : i + 1], w.hot_y_mm[i : i + 1], w.hot_dz_nm[i : i + 1])
                out[i] += rng.choice(self.hot_gain[i], n)[:, None, None, None] * spot * basis.exposed
        return out

    def ome(self, tau_nm: float) -> Float[np.ndarray, " n"]:
        """Least expected share of valid (mark, axis) pairs further than `tau_nm` from a forecast, per wafer.

        Exact where the law is Gaussian (the mean is then the best forecast for any tau). Where an event is
        unknown: the share beyond `tau_nm` of the mean map, averaged over `EVENT_DRAWS` drawn events.
        """
        from scipy.special import ndtr

        w, basis = self.wafers, self.fab.basis
        sd = np.sqrt(np.maximum(self._gaussian_variance(), WHITE_VAR))
        beyond = 2.0 * ndtr(-tau_nm / sd)
        rng = np.random.default_rng(0)
        for i in np.flatnonzero(~self.hot_known).tolist():
            rezero = (rng.random(EVENT_DRAWS) < self.rezero_p[i]) - self.rezero_p[i]
            offset = basis.to_maps(rezero[:, None] * (basis.matrix @ self.rezero_step[i]))
            offset += self._unknown_spots(i, EVENT_DRAWS, rng) - self._hot_moments[0][i]
            beyond[i] = (ndtr((offset - tau_nm) / sd[i]) + ndtr((-offset - tau_nm) / sd[i])).mean(0)
        share: np.ndarray = (beyond * w.valid[:, None]).sum((1, 2, 3)) / (2 * w.valid.sum((1, 2)))
        return share

    def _gaussian_variance(self) -> Float[np.ndarray, "n 2 64 64"]:
        basis = self.fab.basis
        root = np.linalg.cholesky(self.cov).astype(np.float32)
        rows = np.stack([((basis.matrix32 @ r) ** 2).sum(1, dtype=float) for r in root])
        return basis.to_maps(rows + WHITE_VAR)

    def _unknown_spots(self, i: int, n: int, rng: np.random.Generator) -> Float[np.ndarray, "n 2 64 64"]:
        gain = rng.choice(self.hot_gain[i], n) * (rng.random(n) < P_HOT_SPOT)
        spots: np.ndarray = (
            gain[:, None, None, None] * hotspot.shift(*hotspot.draw(rng, n)) * self.fab.basis.exposed
        )
        return spots


def gram_of_valid(fab: Fab, valid: np.ndarray) -> Float[np.ndarray, "n terms terms"]:
    """Build B'B over the valid marks of each wafer: the full one less the few invalid rows."""
    basis = fab.basis
    exposed = np.tile(basis.exposed[basis.usable], 2)
    full = basis.matrix[exposed].T @ basis.matrix[exposed]
    out = np.broadcast_to(full, (len(valid), TERMS, TERMS)).copy()
    lost = basis.exposed[basis.usable] & ~valid[:, basis.usable].astype(bool)
    for gram, missing in zip(out, lost, strict=True):
        rows = basis.matrix[np.tile(missing, 2)]
        gram -= rows.T @ rows
    return out


@dataclass(frozen=True)
class JointLaw:
    """Joint Gaussian of current (c) and previous (p) coefficients, before either map is seen."""

    mean_c: Float[np.ndarray, "n terms"]
    mean_p: Float[np.ndarray, "n terms"]
    cov_cc: Float[np.ndarray, "n terms terms"]
    cov_cp: Float[np.ndarray, "n terms terms"]
    cov_pp: Float[np.ndarray, "n terms terms"]
    known: Machines
    """What the ids say, and the re-zero step that is not in the moments."""
    text: Bool[np.ndarray, " n"]
    """True where the event log is known."""


def posterior(fab: Fab, wafers: Wafers, drop: frozenset[str] = frozenset()) -> Posterior:
    """Condition on everything logged about each wafer, less the inputs in `drop`.

    Args:
        fab: the fab the wafers came from.
        wafers: whose inputs are used; their `map` is not.
        drop: any of `INPUTS`. "prev": the previous map; "logs": all sensor readings (what the MES knows
            stays); "text": whether the stage re-zeroed and where a hot spot is; "ids": which machines were
            used. All are exact Bayes but "ids", which gives the best *linear* forecast over the fab's
            machines, with the lens heating still known: an upper bound of the true floor.

    Raises:
        ValueError: `drop` names an unknown input.
    """
    if unknown := set(drop) - INPUTS:
        raise ValueError(f"drop: {sorted(unknown)} unknown; known: {sorted(INPUTS)}")
    w = wafers
    law = joint_law(fab, w, drop)
    mu_c, mu_p, s_cc, s_cp, s_pp = law.mean_c, law.mean_p, law.cov_cc, law.cov_cp, law.cov_pp

    # The previous map, through B'(map) and B'B over its own valid marks: they are sufficient because
    # its noise is white. Woodbury, so that a nearly collinear B costs no accuracy.
    if "prev" not in drop:
        basis = fab.basis
        rows = basis.to_rows(w.prev_map.astype(float) * w.prev_valid[:, None])
        precision = gram_of_valid(fab, w.prev_valid) / WHITE_VAR
        score = rows @ basis.matrix / WHITE_VAR - np.einsum("nij,nj->ni", precision, mu_p)
        # (I + N S)^-1 applied to the score and to N S_pc at once
        right = np.concatenate([score[:, :, None], precision @ s_cp.transpose(0, 2, 1)], axis=2)
        solved = np.linalg.solve(np.eye(TERMS) + precision @ s_pp, right)
        mu_c = mu_c + np.einsum("nij,nj->ni", s_cp, solved[:, :, 0])
        s_cc = s_cc - s_cp @ solved[:, :, 1:]
    return Posterior(
        fab=fab,
        wafers=w,
        mean=mu_c,
        cov=(s_cc + s_cc.transpose(0, 2, 1)) / 2,
        rezero_p=law.known.rezero_p,
        rezero_step=law.known.rezero_step,
        hot_known=law.text,
        hot_gain=law.known.hot_gain,
    )


def joint_law(fab: Fab, wafers: Wafers, drop: frozenset[str] = frozenset()) -> JointLaw:
    """Give the law of a wafer's coefficients in both layers from ids, sensors and text, less those in `drop`.

    Arguments as in `posterior`; "prev" makes no difference here.
    """
    w, n = wafers, len(wafers)
    received = w.received & ("logs" not in drop)
    text = w.report & ("text" not in drop)
    sensors = coefficients_from(w.sensors)

    # 1. Sensors: each reads one latent, so each shrinks on its own.
    drift_var = history.drift_variance(w.days_since_pm)
    align, align_var = _shrink(sensors[:, 0:6], SD_ALIGNMENT**2, "alignment", received[:, 0])
    drift, left_drift_var = _shrink(sensors[:, 6:12], drift_var, "baseline", received[:, 1])
    gain, gain_var = _shrink(sensors[:, 12:13], SD_HEAT_GAIN**2, "heating", received[:, 2])
    shape, shape_var = _shrink(sensors[:, 13:17], SD_SHAPE**2, "levelling", received[:, 3])

    # 2. Joint Gaussian of current and previous coefficients. With ids it is diagonal but for the heat.
    machines = without_ids if "ids" in drop else with_ids
    known = machines(fab, w, w.heat * (1.0 + gain[:, 0]), text)
    mu_c, mu_p = known.mean_c.copy(), known.mean_p.copy()
    mu_c[:, LINEAR] += align + drift
    mu_c[:, PROCESS] += shape
    mu_p[:, PROCESS] += SHAPE_IN_PREVIOUS * shape
    var_c = np.tile((COUPLING * SD_PREVIOUS) ** 2 + SD_SMOOTH**2, (n, 1))
    var_c[:, LINEAR] += align_var + left_drift_var
    var_c[:, PROCESS] += shape_var
    var_p = np.tile(SD_PREVIOUS**2 + (OLDER_COUPLING * SD_OLDER) ** 2 + SD_SMOOTH**2, (n, 1))
    var_p[:, PROCESS] += SHAPE_IN_PREVIOUS**2 * shape_var
    both = np.tile(-COUPLING * SD_PREVIOUS**2, (n, 1))
    both[:, PROCESS] += SHAPE_IN_PREVIOUS * shape_var
    eye = np.eye(TERMS)
    s_cc = known.cov_cc + var_c[:, :, None] * eye
    s_cc += (w.heat**2 * gain_var[:, 0])[:, None, None] * known.heat_square
    s_cp = known.cov_cp + both[:, :, None] * eye
    s_pp = known.cov_pp + var_p[:, :, None] * eye
    return JointLaw(mu_c, mu_p, s_cc, s_cp, s_pp, known, text)


def _shrink(
    reading: Float[np.ndarray, "n k"],
    prior_var: float | Float[np.ndarray, " n"],
    sensor: str,
    received: Bool[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n 1"]]:
    """Posterior mean and variance of latents N(0, prior_var) read with the sensor's noise, or not at all."""
    prior = np.broadcast_to(prior_var, received.shape)[:, None]
    weight = received[:, None] * prior / (prior + SENSOR_NOISE[sensor] ** 2)
    return weight * reading, (1.0 - weight) * prior


_BARCODE = re.compile(r"F(\d+)S(\d+)L(\d{7,})W(\d\d)")


def wafers_for(dataset_json: dict[str, Any], barcodes: Sequence[str]) -> tuple[Fab, Wafers]:
    """Draw wafers of a simulated data set again, in the order of `barcodes`.

    Args:
        dataset_json: the data set's dataset.json, whose `seeds` and `simulator_version` are used.
        barcodes: barcodes of that data set.

    Raises:
        InputError: the data set was not simulated, or by another version, its seeds are damaged, or a barcode is
            not of it.
    """
    file = "dataset.json"
    if "seeds" not in dataset_json:
        raise InputError(
            file,
            "seeds",
            "missing, so the data are not simulated",
            "an oracle exists for simulated data only",
        )
    if (version := dataset_json.get("simulator_version")) != SIMULATOR_VERSION:
        reason = f"{version!r}, this is version {SIMULATOR_VERSION}, whose seeds give other maps"
        raise InputError(file, "simulator_version", reason, "simulate the data again")
    try:
        params = SimulateParams.model_validate(dataset_json["seeds"])
    except ValidationError as error:
        wrong = error.errors()[0]
        at = ".".join(map(str, ("seeds", *wrong["loc"])))
        raise InputError(file, at, wrong["msg"], "simulate the data again") from None
    lots: list[int] = []
    slots: list[int] = []
    for barcode in barcodes:
        match = _BARCODE.fullmatch(barcode)
        ours = match and match[1] == str(params.fab_seed) and match[2] == str(params.sample_seed)
        if not match or not ours or not 1 <= int(match[4]) <= WAFERS_PER_LOT:
            prefix = f"F{params.fab_seed}S{params.sample_seed}L"
            raise InputError(
                file, "barcode", f"{barcode!r} is not of this data set ({prefix}...)", "check the data set"
            )
        lots.append(int(match[3]))
        slots.append(int(match[4]))
    fab = Fab.build(params.fab_seed)
    drawn, where = np.unique(np.array(lots, dtype=np.int64), return_inverse=True)
    # Lot by lot, so that memory follows the barcodes asked for and not the lots they come from.
    order = np.argsort(where, kind="stable")
    slot_index = np.array(slots) - 1
    parts = [
        draw_lots(fab, params, [int(lot)]).take(slot_index[order[where[order] == k]])
        for k, lot in enumerate(drawn)
    ]
    return fab, Wafers.join(parts).take(np.argsort(order, kind="stable"))


def oracle_for(
    dataset_json: dict[str, Any], barcodes: Sequence[str], drop: frozenset[str] = frozenset()
) -> Posterior:
    """Posterior of wafers of a simulated data set, in the order of `barcodes`.

    Raises:
        InputError: see `wafers_for`.
        ValueError: see `posterior`.
    """
    fab, wafers = wafers_for(dataset_json, barcodes)
    return posterior(fab, wafers, drop)
