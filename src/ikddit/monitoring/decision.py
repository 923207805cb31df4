"""When to retrain: forced, drift, error of the champion, or its age."""

from collections.abc import Sequence
from dataclasses import dataclass

from ikddit.params import RetrainParams

SHOWN = 3
"""Drift findings named in a reason; the record has all."""


@dataclass(frozen=True)
class Findings:
    """What is known when the decision is due; None where it could not be measured."""

    new_months: int
    """Deliveries that a challenger would be trained on and the champion was not."""
    drift: Sequence[str] | None = None
    """What has drifted, in words, largest first."""
    rmse_nm: float | None = None
    """Champion's error on the new wafers."""
    registered_rmse_nm: float | None = None
    """Champion's error when it was registered."""
    age_days: float | None = None
    forced: bool = False


@dataclass(frozen=True)
class Decision:
    """Whether to retrain; `triggers` any of forced, drift, error, schedule."""

    retrain: bool
    triggers: tuple[str, ...]
    reasons: tuple[str, ...]


def decide(found: Findings, params: RetrainParams) -> Decision:
    """Decide, with every reason that speaks for retraining, or why none does.

    Without wafers the champion has not seen there is nothing to learn: only `forced` retrains then.

    >>> decide(Findings(new_months=1, rmse_nm=1.3, registered_rmse_nm=1.0), RetrainParams()).triggers
    ('error',)
    """
    reasons: dict[str, str] = {}
    if found.forced:
        reasons["forced"] = "asked for by hand"
    if found.new_months:
        if found.drift:
            more = f"; {len(found.drift) - SHOWN} more" if len(found.drift) > SHOWN else ""
            reasons["drift"] = "; ".join(found.drift[:SHOWN]) + more
        if found.rmse_nm is not None and found.registered_rmse_nm:
            ratio = found.rmse_nm / found.registered_rmse_nm
            if ratio > params.error_ratio:
                reasons["error"] = (
                    f"champion's RMSE on new wafers {found.rmse_nm:.3f} nm is {ratio:.2f} times its registered "
                    f"{found.registered_rmse_nm:.3f} nm (limit {params.error_ratio:g})"
                )
        if found.age_days is not None and found.age_days > params.max_age_days:
            reasons["schedule"] = f"champion is {found.age_days:.0f} days old (limit {params.max_age_days:g})"
    if reasons:
        return Decision(True, tuple(reasons), tuple(f"{name}: {why}" for name, why in reasons.items()))
    if not found.new_months:
        return Decision(False, (), ("no new wafers",))
    said = ["drift not measured" if found.drift is None else "no drift"]
    if found.rmse_nm is not None and found.registered_rmse_nm:
        said.append(
            f"RMSE on new wafers {found.rmse_nm:.3f} nm, registered {found.registered_rmse_nm:.3f} nm, "
            f"ratio {found.rmse_nm / found.registered_rmse_nm:.2f} within {params.error_ratio:g}"
        )
    elif found.rmse_nm is None:
        said.append("RMSE not measured")
    if found.age_days is not None:
        said.append(f"champion {found.age_days:.0f} days old")
    return Decision(False, (), tuple(said))
