"""The promotion gate: may this challenger become champion? One pure function of what is known of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ikddit.params import PromotionParams

DEFAULT_LIMITS = PromotionParams()
LINEAR = "ridge"
"""Baselines whose names begin so are the linear ones."""


@dataclass(frozen=True)
class Evidence:
    """What the gate knows of one model; None is not known, which never counts in its favour."""

    rmse_nm: float | None = None
    """Of the point forecast, on the test wafers of its data."""
    coverage_90: float | None = None
    """Share of marks inside their 90 % interval."""
    m3s_coverage_90: float | None = None
    """Share of wafers whose |mean| + 3 sigma is inside its 90 % interval."""
    linear_rmse_nm: float | None = None
    """The best linear baseline's, on the same wafers."""
    validation_passed: bool | None = None
    """Whether its data passed the quality gate."""
    data_md5: str | None = None
    """Hash of the prepared data."""
    n_wafers: int | None = None
    """How many of its test wafers were scored: two models are scored on the same ones if both agree."""

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> "Evidence":
        """Read the tags that `register` gives a version.

        >>> Evidence.of_tags({"rmse_nm": "0.78", "validation_passed": "true"}).rmse_nm
        0.78
        """
        passed = tags.get("validation_passed")
        numbers = {name: float(tags[name]) for name in EVIDENCE_METRICS if name in tags}
        return cls(
            **numbers,
            validation_passed=None if passed is None else passed == "true",
            data_md5=tags.get("data_md5"),
            n_wafers=int(tags["n_wafers"]) if "n_wafers" in tags else None,
        )

    @classmethod
    def of_reports(
        cls, metrics: Mapping[str, Any], validation: Mapping[str, Any] | None, data_md5: str | None
    ) -> "Evidence":
        """Read reports/evaluation/metrics.json and reports/validation.json.

        >>> Evidence.of_reports({"baselines": {"ridge_ids": {"rmse_nm": 1.4}}}, None, None).linear_rmse_nm
        1.4
        """
        linear = [
            scores["rmse_nm"]
            for name, scores in metrics.get("baselines", {}).items()
            if name.startswith(LINEAR) and scores.get("rmse_nm") is not None
        ]
        return cls(
            rmse_nm=metrics.get("rmse_nm"),
            coverage_90=metrics.get("coverage_90"),
            m3s_coverage_90=metrics.get("m3s_coverage_90"),
            linear_rmse_nm=min(linear, default=None),
            validation_passed=None if validation is None else validation.get("passed"),
            data_md5=data_md5,
            n_wafers=metrics.get("n_wafers"),
        )

    def as_tags(self) -> dict[str, str]:
        """The tags that `of_tags` reads; what is not known has none."""
        values = {name: getattr(self, name) for name in EVIDENCE_METRICS}
        tags = {name: f"{value:.6g}" for name, value in values.items() if value is not None}
        if self.validation_passed is not None:
            tags["validation_passed"] = str(self.validation_passed).lower()
        if self.n_wafers is not None:
            tags["n_wafers"] = str(self.n_wafers)
        return tags | ({"data_md5": self.data_md5} if self.data_md5 else {})


EVIDENCE_METRICS = ("rmse_nm", "coverage_90", "m3s_coverage_90", "linear_rmse_nm")


@dataclass(frozen=True)
class PairedDifference:
    """Challenger's minus champion's RMSE on the same wafers, nm; negative where the challenger is better."""

    mean_nm: float
    low_nm: float
    """Lower end of its 95 % interval."""
    high_nm: float
    """Upper end."""
    wafers: int


@dataclass(frozen=True)
class GateVerdict:
    """The answer, with one sentence per condition."""

    promote: bool
    passed: tuple[str, ...]
    failed: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """All sentences, those that speak against it first."""
        return self.failed + self.passed

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"promote": self.promote, "failed": list(self.failed), "passed": list(self.passed)}


def promotion_gate(
    challenger: Evidence,
    champion: Evidence | None,
    paired: PairedDifference | None = None,
    limits: PromotionParams = DEFAULT_LIMITS,
) -> GateVerdict:
    """Judge a challenger: its data, its intervals, and its error against the champion's.

    All conditions must hold: the data passed validation; the 90 % intervals cover what they should; the error
    is smaller than the champion's. The last is judged on the same wafers: by `paired`, whose whole interval
    must speak for the challenger, else by the RMSE of both where both were scored on as many wafers of the same
    data. Without a champion the best linear baseline takes its place.

    Args:
        challenger: what is known of it.
        champion: what is known of the champion, None where there is none.
        paired: measured difference on wafers that both forecast.
        limits: section `register.promotion` of params.yaml.
    """
    checks = [_validated(challenger), *_covered(challenger, limits)]
    if champion is None:
        checks.append(
            _below("RMSE", challenger.rmse_nm, challenger.linear_rmse_nm, "the best linear baseline's")
        )
    elif paired is not None:
        checks += _paired(paired, limits)
    elif challenger.data_md5 is None or challenger.data_md5 != champion.data_md5:
        sentence = "scored on other data than the champion and not compared with it on the same wafers"
        checks.append((False, sentence))
    elif challenger.n_wafers is None or challenger.n_wafers != champion.n_wafers:
        mine, its = _count(challenger.n_wafers), _count(champion.n_wafers)
        checks.append((False, f"scored on {mine} test wafers, the champion on {its}: not the same ones"))
    else:
        checks.append(_below("RMSE", challenger.rmse_nm, champion.rmse_nm, "the champion's"))
    passed = tuple(sentence for good, sentence in checks if good)
    failed = tuple(sentence for good, sentence in checks if not good)
    return GateVerdict(not failed, passed, failed)


def _validated(challenger: Evidence) -> tuple[bool, str]:
    words = {True: "its data passed validation", False: "its data failed validation"}
    known = challenger.validation_passed
    return bool(known), "whether its data passed validation is not known" if known is None else words[known]


def _covered(challenger: Evidence, limits: PromotionParams) -> list[tuple[bool, str]]:
    marks = ("90 % interval of marks", challenger.coverage_90, limits.coverage_low, limits.coverage_high)
    wafers = ("90 % interval of M3S", challenger.m3s_coverage_90, limits.m3s_coverage_low, 1.0)
    return [_within(*marks), _within(*wafers)]


def _within(name: str, value: float | None, low: float, high: float) -> tuple[bool, str]:
    if value is None:
        return False, f"coverage of the {name} is not known"
    return low <= value <= high, f"{name} covers {value:.3f}, allowed {low:g} to {high:g}"


def _below(name: str, value: float | None, limit: float | None, whose: str) -> tuple[bool, str]:
    if value is None or limit is None:
        return False, f"{name} {_nm(value)} against {whose} {_nm(limit)}: one is not known"
    return value < limit, f"{name} {_nm(value)} against {whose} {_nm(limit)}"


def _count(wafers: int | None) -> str:
    return "an unknown number of" if wafers is None else str(wafers)


def _nm(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f} nm"


def _paired(paired: PairedDifference, limits: PromotionParams) -> list[tuple[bool, str]]:
    difference = (
        f"RMSE {paired.mean_nm:+.4f} nm against the champion on {paired.wafers} wafers "
        f"(95 % interval {paired.low_nm:+.4f} to {paired.high_nm:+.4f}), "
        f"all of it below {0 - limits.min_gain_nm:g} nm needed"
    )
    # a NaN compares as False: it never promotes
    return [
        (paired.high_nm < -limits.min_gain_nm, difference),
        (
            paired.wafers >= limits.min_paired_wafers,
            f"compared on {paired.wafers} wafers, at least {limits.min_paired_wafers} needed",
        ),
    ]
