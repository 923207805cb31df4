"""Acceptance gate of masked inference: it is served only where it is as good as full inference, and faster."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ikddit.diffusion.plan import Inference

MODES: tuple[Inference, Inference] = ("full", "masked")
MIN_SEEDS = 3
FRECHET_RATIO = 1.02
"""Largest mean Frechet distance of masked over full inference."""
NOISE_SDS = 2.0
"""RMSE and OME may be worse by this many standard deviations of full inference over its seeds."""


@dataclass(frozen=True)
class ModeFigures:
    """One inference mode, a number per seed; both modes have the same seeds, wafers and noise."""

    frechet: Sequence[float]
    """Frechet distance of generated to measured maps on the project's embedding."""
    rmse_nm: Sequence[float]
    """Of the ensemble mean, nm."""
    ome: Sequence[float]
    """Share of axis-marks off by more than tau, of the ensemble mean."""
    seconds: Sequence[float]
    """For drawing all samples of a seed, both modes taking turns."""

    @classmethod
    def of_json(cls, measured: Mapping[str, Sequence[float | None]]) -> "ModeFigures":
        """The numbers by seed, as gate.json has them."""
        return cls(
            **{name: [np.nan if v is None else v for v in values] for name, values in measured.items()}
        )

    def as_json(self) -> dict[str, Any]:
        """The numbers by seed, with mean and standard deviation of each."""
        out: dict[str, Any] = {}
        for name, values in asdict(self).items():
            out[name] = [float(v) for v in values]
            out[f"{name}_mean"] = float(np.mean(values))
            out[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return out


@dataclass(frozen=True)
class Check:
    """One condition: `value` must not exceed `limit` (for the speed-up: must exceed it)."""

    name: str
    value: float
    limit: float
    passed: bool
    reason: str


@dataclass(frozen=True)
class Decision:
    """What is served, and why."""

    served: Inference
    fid_ratio: float
    speedup: float
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> list[str]:
        """One sentence per check, the failed ones first."""
        return [c.reason for c in sorted(self.checks, key=lambda c: c.passed)]


def decide(full: ModeFigures, masked: ModeFigures) -> Decision:
    """Serve masked inference if every check passes, else full.

    Checks (science.md section 4): at least three seeds; mean Frechet distance at most 1.02 times that of full
    inference; mean RMSE and OME not worse by more than two standard deviations of full inference over its
    seeds; median speed-up over the seeds above 1. A figure that is not finite fails its check.

    >>> same = ModeFigures((1.0, 1.1, 1.2), (0.9, 0.91, 0.92), (0.1, 0.1, 0.1), (2.0, 2.0, 2.0))
    >>> faster = ModeFigures(same.frechet, same.rmse_nm, same.ome, (1.0, 1.0, 1.0))
    >>> decide(same, faster).served, decide(same, same).served
    ('masked', 'full')

    Raises:
        ValueError: the modes do not have the same seeds.
    """
    count = len(full.frechet)
    lengths = {len(values) for mode in (full, masked) for values in asdict(mode).values()}
    if lengths != {count} or count == 0:
        raise ValueError(f"figures of {sorted(lengths)} seeds; both modes need the same seeds, at least one")
    ratio = _ratio(float(np.mean(masked.frechet)), float(np.mean(full.frechet)))
    speedup = float(np.median([_ratio(f, m) for f, m in zip(full.seconds, masked.seconds, strict=True)]))
    checks = (
        _check("seeds", -count, -MIN_SEEDS, f"{count} seeds, at least {MIN_SEEDS} needed"),
        _check(
            "frechet_ratio",
            ratio,
            FRECHET_RATIO,
            f"Frechet ratio {ratio:.4f}, at most {FRECHET_RATIO} allowed",
        ),
        _within_noise("rmse_nm", "RMSE", full.rmse_nm, masked.rmse_nm),
        _within_noise("ome", "OME", full.ome, masked.ome),
        Check("speedup", speedup, 1.0, bool(speedup > 1), f"speed-up {speedup:.3f}, more than 1 needed"),
    )
    served: Inference = "masked" if all(check.passed for check in checks) else "full"
    return Decision(served, ratio, speedup, checks)


def _check(name: str, value: float, limit: float, reason: str) -> Check:
    return Check(name, abs(value), abs(limit), bool(value <= limit), reason)


def _within_noise(name: str, title: str, full: Sequence[float], masked: Sequence[float]) -> Check:
    worse = float(np.mean(masked) - np.mean(full))
    noise = NOISE_SDS * float(np.std(full, ddof=1)) if len(full) > 1 else 0.0
    reason = f"{title} {worse:+.5f} against full, seed noise allows {noise:.5f}"
    return Check(name, worse, noise, bool(worse <= noise), reason)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else float("nan")


def serving_report(measured: Mapping[str, Any]) -> tuple[Decision, dict[str, Any]]:
    """Decide what is served from what `measure_serving` measured.

    Returns:
        The decision, and everything for `serving.json`: decision, reasons, checks, figures of both modes by
        seed, and what they were measured with.
    """
    modes = {mode: ModeFigures.of_json(measured[mode]) for mode in MODES}
    decision = decide(modes["full"], modes["masked"])
    settings = {name: value for name, value in measured.items() if name not in MODES}
    report: dict[str, Any] = without_nan(
        {
            "served": decision.served,
            "fid_ratio": decision.fid_ratio,
            "speedup": decision.speedup,
            "reasons": decision.reasons,
            "checks": [asdict(check) for check in decision.checks],
            **{mode: figures.as_json() for mode, figures in modes.items()},
            **settings,
        }
    )
    return decision, report


def without_nan(value: Any) -> Any:
    """The same with None for every number that is not finite, which JSON does not know.

    >>> without_nan({"frechet": [1.5, float("nan")], "seeds": 3})
    {'frechet': [1.5, None], 'seeds': 3}
    """
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def serving_metrics(decision: Decision) -> dict[str, Any]:
    """The decision's keys of metrics.json; figures that could not be computed are absent."""
    figures = {"fid_ratio": decision.fid_ratio, "speedup": decision.speedup}
    masked = {name: value for name, value in figures.items() if np.isfinite(value)}
    return {"masked": masked, "served": decision.served}
