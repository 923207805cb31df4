"""Wafers drawn from a fab: lots of 25 at known minutes, each lot from its own seed."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ikddit.errors import ParamsError
from ikddit.params import ShiftParams, SimulateParams
from ikddit.simulator import history, hotspot, physics
from ikddit.simulator.basis import LINEAR, PROCESS, TERMS, TRANSLATION
from ikddit.simulator.constants import (
    CHAMBERS,
    CHAMBERS_PER_LOT,
    CHUCKS,
    DOSE_MJ_CM2,
    FLYER_NM,
    LAYERS,
    LOT,
    LOT_MINUTE,
    OLDER_COUPLING,
    P_FLYER,
    P_GROUP_MISSING,
    P_HOT_SPOT,
    P_REPORT_MISSING,
    P_REZERO,
    RETICLES_PER_LAYER,
    SCANNER_IDS,
    SCANNERS,
    SD_ALIGNMENT,
    SD_HEAT_GAIN,
    SD_OLDER,
    SD_PREVIOUS,
    SD_SHAPE,
    SD_SMOOTH,
    SHAPE_IN_PREVIOUS,
    WAFERS_PER_LOT,
    WHITE_VAR,
    Fab,
    seeded,
)
from ikddit.simulator.sensors import GROUPS, NUISANCE, read_sensors

MINUTES_PER_DAY = 1440

# Streams within a lot; maps, sensors and nuisance never share one.
PLAN, LATENT, SENSORS, WHITE, WHITE_PREVIOUS, FLYERS, NUISANCES, LINES = range(8)


@dataclass(frozen=True)
class Wafers:
    """Exposures as arrays, one entry per wafer; machine ids are indices into the tables of `constants`."""

    barcode: list[str]
    lot: Int[np.ndarray, " n"]
    """Minute of the fab's life at which the lot starts: its number."""
    slot: Int[np.ndarray, " n"]
    """1 to 25."""
    scanner: Int[np.ndarray, " n"]
    chuck: Int[np.ndarray, " n"]
    reticle: Int[np.ndarray, " n"]
    layer: Int[np.ndarray, " n"]
    chamber: Int[np.ndarray, " n"]
    prev_scanner: Int[np.ndarray, " n"]
    prev_chuck: Int[np.ndarray, " n"]
    prev_reticle: Int[np.ndarray, " n"]
    prev_layer: Int[np.ndarray, " n"]
    prev_chamber: Int[np.ndarray, " n"]
    dose_mj_cm2: Float[np.ndarray, " n"]
    lot_minutes: Float[np.ndarray, " n"]
    days_since_pm: Float[np.ndarray, " n"]
    rf_hours: Float[np.ndarray, " n"]
    heat: Float[np.ndarray, " n"]
    report: Bool[np.ndarray, " n"]
    """Whether the equipment report (sensors, nuisance, all log lines) was received."""
    received: Bool[np.ndarray, "n 4"]
    """Sensor groups received, in the order of `sensors.GROUPS`; all False without a report."""
    rezero: Bool[np.ndarray, " n"]
    hot: Bool[np.ndarray, " n"]
    hot_x_mm: Float[np.ndarray, " n"]
    hot_y_mm: Float[np.ndarray, " n"]
    hot_dz_nm: Float[np.ndarray, " n"]
    step_nm: Float[np.ndarray, " n"]
    """Forced step of the scanner (`simulate.shift`) in both translations; 0 without one."""
    sensors: Float[np.ndarray, "n 17"]
    """Readings in printed units, rounded as printed; also where not received."""
    nuisance: Float[np.ndarray, "n nuisance"]
    map: Float[np.ndarray, "n 2 64 64"]
    """Measured overlay in nm (current minus previous layer), flyers included; 0 where not exposed."""
    valid: UInt8[np.ndarray, "n 64 64"]
    prev_map: Float[np.ndarray, "n 2 64 64"]
    prev_valid: UInt8[np.ndarray, "n 64 64"]

    def __len__(self) -> int:
        """Count the wafers."""
        return len(self.barcode)

    def take(self, index: Int[np.ndarray, " k"]) -> "Wafers":
        """Pick wafers by position, in that order."""
        picked = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "barcode"}
        return Wafers(barcode=[self.barcode[i] for i in index], **picked)

    @staticmethod
    def join(parts: Sequence["Wafers"]) -> "Wafers":
        """Put several together, in order."""
        arrays = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(Wafers)
            if f.name != "barcode"
        }
        return Wafers(barcode=[name for part in parts for name in part.barcode], **arrays)


def lot_name(params: SimulateParams, lot: int) -> str:
    """Name of a lot: fab seed, sample seed and the minute it starts.

    >>> lot_name(SimulateParams(), 525600)
    'F0S0L0525600'
    """
    return f"F{params.fab_seed}S{params.sample_seed}L{lot:07d}"


def lot_numbers(params: SimulateParams) -> Int[np.ndarray, " lots"]:
    """Choose the lots of a window, in time order.

    The fab can start one lot a minute; lot number n is the one that starts in minute n of the fab's life,
    and is the same lot in whatever window or however dense a selection it turns up. `params.lots` of them
    are taken, one from each of as many equal parts of the window. Windows cut at multiples of one such part
    and of the same density therefore choose the same lots.

    Raises:
        ParamsError: more lots than minutes are asked for.

    >>> whole = lot_numbers(SimulateParams(lots=12, days=12.0))
    >>> end = lot_numbers(SimulateParams(lots=3, from_day=9.0, days=3.0))
    >>> bool((whole[9:] == end).all())
    True
    """
    edges = np.round((params.from_day + np.linspace(0.0, params.days, params.lots + 1)) * MINUTES_PER_DAY)
    edges = edges.astype(np.int64)
    if (np.diff(edges) < 1).any():
        most = int(params.days * MINUTES_PER_DAY)
        raise ParamsError(
            f"simulate.lots: {params.lots} lots in {params.days:g} days; the fab starts at most one a "
            f"minute, so ask for {most} or fewer, or for more days"
        )
    return np.array(
        [
            seeded(params.fab_seed, LOT_MINUTE, params.sample_seed, a).integers(a, b)
            for a, b in itertools.pairwise(edges.tolist())
        ]
    )


def draw_lots(fab: Fab, params: SimulateParams, lots: Iterable[int]) -> Wafers:
    """Draw whole lots by number; a lot depends on the fab, `sample_seed`, `shift` and its
    number alone.

    Args:
        fab: the fab, built from `params.fab_seed`.
        params: `sample_seed`, `unflagged_flyers` and `shift` are used here, the window is not.
        lots: lot numbers, see `lot_numbers`.
    """
    assert fab.fab_seed == params.fab_seed
    return Wafers.join([_draw_lot(fab, params, int(lot)) for lot in lots])


def _stream(params: SimulateParams, lot: int, purpose: int) -> np.random.Generator:
    return seeded(params.fab_seed, LOT, params.sample_seed, lot, purpose)


def line_stream(params: SimulateParams, lot: int) -> np.random.Generator:
    """Give the generator of a lot's nuisance log lines."""
    return _stream(params, lot, LINES)


def _draw_lot(fab: Fab, params: SimulateParams, lot: int) -> Wafers:
    n = WAFERS_PER_LOT
    rng = _stream(params, lot, PLAN)
    slot = np.arange(1, n + 1)
    layer = int(rng.integers(1, len(LAYERS)))
    scanner, prev_scanner = (int(v) for v in rng.integers(SCANNERS, size=2))
    reticle, prev_reticle = (
        (layer - np.array([0, 1])) * RETICLES_PER_LAYER + rng.integers(RETICLES_PER_LAYER, size=2)
    ).tolist()
    chamber = rng.permutation(CHAMBERS)[:CHAMBERS_PER_LOT][(slot - 1) % CHAMBERS_PER_LOT]
    prev_chamber = rng.permutation(CHAMBERS)[:CHAMBERS_PER_LOT][
        (slot - 1 + rng.integers(CHAMBERS_PER_LOT)) % CHAMBERS_PER_LOT
    ]
    prev_chuck = (slot - 1 + rng.integers(CHUCKS)) % CHUCKS
    dose = np.full(n, np.round(rng.uniform(*DOSE_MJ_CM2), 2))
    pace = rng.uniform(1.0, 1.2)  # minutes per wafer
    lot_minutes = np.round(rng.uniform(0.2, 1.0) + pace * (slot - 1 + rng.uniform(0.0, 0.4, n)), 2)
    report = rng.random(n) >= P_REPORT_MISSING
    received = (rng.random((n, len(GROUPS))) >= P_GROUP_MISSING) & report[:, None]
    rezero = rng.random(n) < P_REZERO
    hot = rng.random(n) < P_HOT_SPOT
    hot_x, hot_y, hot_dz = hotspot.draw(rng, n)

    start = lot / MINUTES_PER_DAY
    day = (lot + lot_minutes) / MINUTES_PER_DAY
    cycle, pm_day = history.last_maintenance(fab, scanner, start)
    days_since_pm = np.round(day - pm_day, 3)
    clean_day = np.array([history.last_clean(fab, int(c), start) for c in chamber])
    rf_hours = np.round((day - clean_day) * fab.rf_hours_per_day[chamber], 1)

    ids = {"scanner": np.full(n, scanner), "chuck": (slot - 1) % CHUCKS, "reticle": np.full(n, reticle)}
    prev_ids = {
        "scanner": np.full(n, prev_scanner),
        "chuck": prev_chuck,
        "reticle": np.full(n, prev_reticle),
    }
    heat = physics.heat(fab, ids["reticle"], dose, lot_minutes)

    # Everything random that the sensors or the maps see, in nm.
    rng = _stream(params, lot, LATENT)
    alignment = rng.normal(0.0, SD_ALIGNMENT, (n, LINEAR.stop))
    heat_gain = rng.normal(0.0, SD_HEAT_GAIN, n)
    shape = rng.normal(0.0, SD_SHAPE, (n, PROCESS.stop - PROCESS.start))
    previous, older, smooth, prev_smooth = rng.normal(size=(4, n, TERMS)) * np.stack(
        [SD_PREVIOUS, SD_OLDER, SD_SMOOTH, SD_SMOOTH]
    ).reshape(4, 1, TERMS)
    drift = history.drift(fab, params.sample_seed, scanner, cycle, days_since_pm)

    # Placement errors as coefficients, then the maps.
    own = physics.placement(fab, **ids) + days_since_pm[:, None] * fab.drift_rate[scanner]
    own += (heat * (1.0 + heat_gain))[:, None] * fab.heat_shape[scanner] + rezero[:, None] * fab.rezero_step[
        scanner
    ]
    own[:, LINEAR] += alignment + drift
    step = forced_step_nm(params.shift, scanner, start)
    own[:, TRANSLATION] += step
    below = physics.placement(fab, **prev_ids) + previous
    current = (
        physics.current_minus_previous(own, below)
        + smooth
        + physics.clean_factor(rf_hours)[:, None] * fab.chamber[chamber]
    )
    current[:, PROCESS] += shape
    previous_map = below - OLDER_COUPLING * older + prev_smooth + fab.chamber[prev_chamber]
    previous_map[:, PROCESS] += SHAPE_IN_PREVIOUS * shape

    flyers = _stream(params, lot, FLYERS)
    map_, valid = _measure(fab, params, current, _stream(params, lot, WHITE), flyers)
    prev_map, prev_valid = _measure(fab, params, previous_map, _stream(params, lot, WHITE_PREVIOUS), flyers)
    gain = hot * fab.hot_gain[scanner, ids["chuck"]]
    map_ += (gain[:, None, None, None] * hotspot.shift(hot_x, hot_y, hot_dz) * fab.basis.exposed).astype(
        np.float32
    )

    name = lot_name(params, lot)
    return Wafers(
        barcode=[f"{name}W{s:02d}" for s in slot],
        lot=np.full(n, lot),
        slot=slot,
        scanner=ids["scanner"],
        chuck=ids["chuck"],
        reticle=ids["reticle"],
        layer=np.full(n, layer),
        chamber=chamber,
        prev_scanner=prev_ids["scanner"],
        prev_chuck=prev_chuck,
        prev_reticle=prev_ids["reticle"],
        prev_layer=np.full(n, layer - 1),
        prev_chamber=prev_chamber,
        dose_mj_cm2=dose,
        lot_minutes=lot_minutes,
        days_since_pm=days_since_pm,
        rf_hours=rf_hours,
        heat=heat,
        report=report,
        received=received,
        rezero=rezero,
        hot=hot,
        hot_x_mm=hot_x,
        hot_y_mm=hot_y,
        hot_dz_nm=hot_dz,
        step_nm=np.full(n, step),
        sensors=read_sensors(_stream(params, lot, SENSORS), alignment, drift, heat_gain, shape),
        nuisance=NUISANCE.draw(_stream(params, lot, NUISANCES), n),
        map=map_,
        valid=valid,
        prev_map=prev_map,
        prev_valid=prev_valid,
    )


def forced_step_nm(shift: ShiftParams | None, scanner: int, day: float) -> float:
    """Step in nm of what a scanner (by index) exposes in a lot that starts on `day`.

    >>> shift = ShiftParams(scanner="LITH03", day=45.0, nm=3.0)
    >>> forced_step_nm(shift, 2, 44.9), forced_step_nm(shift, 2, 45.0), forced_step_nm(shift, 1, 45.0)
    (0.0, 3.0, 0.0)
    """
    if shift is None or SCANNER_IDS[scanner] != shift.scanner or day < shift.day:
        return 0.0
    return shift.nm


def _measure(
    fab: Fab,
    params: SimulateParams,
    coefficients: Float[np.ndarray, "n terms"],
    white: np.random.Generator,
    flyers: np.random.Generator,
) -> tuple[Float[np.ndarray, "n 2 64 64"], UInt8[np.ndarray, "n 64 64"]]:
    """Turn coefficients into measured maps: white noise on every mark, flyers on a few."""
    rows = coefficients.astype(np.float32) @ fab.basis.matrix32.T
    rows += np.float32(np.sqrt(WHITE_VAR)) * white.standard_normal(rows.shape, np.float32)
    maps = fab.basis.to_maps(rows)
    flown = (flyers.random(maps[:, 0].shape) < P_FLYER) & fab.basis.exposed
    count = int(flown.sum())
    jump = flyers.uniform(*FLYER_NM, (count, 2)) * flyers.choice([-1.0, 1.0], (count, 2))
    wafer, row, col = np.nonzero(flown)
    maps[wafer, :, row, col] += jump.astype(np.float32)
    valid = np.broadcast_to(fab.basis.exposed, flown.shape)
    if not params.unflagged_flyers:
        valid = valid & ~flown
    return maps, valid.astype(np.uint8)
