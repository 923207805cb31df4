"""The rules of the quality gate, as Great Expectations suites in code, and what their results mean.

Row-level rules judge one record: what breaks them goes to quarantine. Suite-level rules judge the data set:
what breaks them stops the pipeline.
"""

import contextlib
import io
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ikddit.errors import GateError
from ikddit.mpom.quality import ROW
from ikddit.mpom.schema import ID_FIELDS, Units
from ikddit.params import ValidateParams

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["row", "suite"]
MAX_CHANNEL = 1e6
"""A log value beyond this is a sentinel or a wrong unit, whatever the channel."""
ABSURD_SPREADS = 100.0
"""A log value this many interquartile ranges from its channel's median is physically absurd."""
ABSURD_FACTOR = 10.0
"""But never less than this many medians away: settings differ between tools."""
ROBUST_FROM = 100
"""Values a channel must have before its median and interquartile range are trusted."""
FIRST_YEAR, LAST_YEAR = 1990.0, 2100.0
LAST_SLOT = 100


@dataclass(frozen=True)
class Rule:
    """One expectation about one column; a missing value is only judged by `present`.

    Exactly one of: `present` (not missing), `unique`, `known` (one of these), or `low`/`high` (inclusive;
    of the mean over rows if `mean`).
    """

    column: str
    remedy: str
    level: Level = "row"
    low: float | None = None
    high: float | None = None
    known: tuple[str, ...] | None = None
    present: bool = False
    unique: bool = False
    mean: bool = False
    key: str = ROW
    """Column that names the rows which break the rule."""

    def reason(self, value: Any) -> str:
        """What is wrong with `value`, with the bound."""
        if self.present:
            return "missing"
        if self.unique:
            return f"{value!r} is given to several records"
        if self.known is not None:
            listed = ", ".join(self.known[:8]) + (", ..." if len(self.known) > 8 else "")
            return f"{value!r} is not a known id ({listed})"
        return f"{_number(value)}, allowed {self.bounds}"

    @property
    def bounds(self) -> str:
        """The allowed range in words."""
        if self.low is None:
            return f"at most {_number(self.high)}"
        if self.high is None:
            return f"at least {_number(self.low)}"
        return _number(self.low) if self.low == self.high else f"{_number(self.low)} to {_number(self.high)}"

    def expectation(self, number: int) -> Any:
        """The rule as a Great Expectations expectation; `number` finds its result again."""
        import great_expectations.expectations as gxe

        meta = {"rule": number, "level": self.level, "remedy": self.remedy}
        common: dict[str, Any] = {"column": self.column, "meta": meta}
        if self.present:
            return gxe.ExpectColumnValuesToNotBeNull(**common)
        if self.unique:
            return gxe.ExpectColumnValuesToBeUnique(**common)
        if self.known is not None:
            return gxe.ExpectColumnValuesToBeInSet(**common, value_set=list(self.known))
        kind = gxe.ExpectColumnMeanToBeBetween if self.mean else gxe.ExpectColumnValuesToBeBetween
        return kind(**common, min_value=self.low, max_value=self.high)


def _number(value: Any) -> str:
    return f"{float(value):.6g}" if value is not None else "missing"


@dataclass(frozen=True)
class Failure:
    """One rule that one row breaks."""

    row: Any
    rule: Rule
    value: Any


@dataclass(frozen=True)
class RuleResult:
    """What Great Expectations found about one rule."""

    suite: str
    rule: Rule
    kind: str
    """The expectation's name."""
    success: bool
    observed: float | None
    """The observed mean, for a rule about a mean."""
    failures: list[Failure] = field(repr=False)


def record_rules(
    frame: "pd.DataFrame", params: ValidateParams, units: Units, known: dict[str, list[str]]
) -> list[Rule]:
    """Row-level rules of the suite `records`.

    A field that no record of the data set has (foreign data without ids, for example) is not asked for.

    Args:
        frame: the scalars of `ikddit.mpom.quality.measure`.
        params: bounds.
        units: of the maps; RGB maps are held to 0..1, nm maps to `max_abs_nm`.
        known: known ids per field, from dataset.json; fields not named there are free.
    """
    rules = [
        Rule("barcode", "give every wafer exposure its barcode", present=True),
        Rule("barcode", "keep one record per barcode, or number the exposures", unique=True),
    ]
    for name in ("map", "prev_map"):
        if frame[f"{name}_valid_px"].isna().all():
            continue
        if units == "nm":
            remedy = "check unit and scale; set valid = 0 on flyers"
            rules += [
                Rule(f"{name}_min", remedy, low=-params.max_abs_nm),
                Rule(f"{name}_max", remedy, high=params.max_abs_nm),
            ]
        else:
            remedy = "write RGB as 8-bit PNG"
            rules += [Rule(f"{name}_min", remedy, low=0.0), Rule(f"{name}_max", remedy, high=1.0)]
        rules += [
            Rule(f"{name}_valid_share", "measure more marks, or drop the wafer", low=params.min_valid_share),
            Rule(
                f"{name}_disagree_px", "set valid = 1 exactly where dx and dy are finite", low=0.0, high=0.0
            ),
            Rule(f"{name}_mask_other_px", "write the mask as 0 and 1", low=0.0, high=0.0),
        ]
    for name in ("lot_id", "slot", "exposed_at"):
        column = "exposed_year" if name == "exposed_at" else name
        if frame[column].notna().any():
            rules.append(Rule(column, f"fill ids.{name} for every wafer, or for none", present=True))
    rules += [
        Rule("slot", "use the position in the carrier", low=0.0, high=float(LAST_SLOT)),
        Rule("exposed_year", "write ids.exposed_at as ISO 8601 in UTC", low=FIRST_YEAR, high=LAST_YEAR),
        Rule(
            "in_time_order",
            "check slot and exposed_at against the other wafers of the lot",
            low=1.0,
            high=1.0,
        ),
    ]
    for name in ID_FIELDS:
        if known.get(name):
            remedy = f"correct ids.{name}, or add it to dataset.json"
            rules.append(Rule(name, remedy, known=tuple(sorted(map(str, known[name])))))
    return rules


def log_rules(logs: "pd.DataFrame", declared: dict[str, tuple[float, float]]) -> list[Rule]:
    """Row-level rules of the suite `tool_logs`: a range per channel; a value not received is not judged.

    The range is the one that dataset.json declares (`log_ranges`), else +-1e6, narrowed to `robust_range`.

    Args:
        logs: one column per channel, and `record_row`.
        declared: ranges by channel name.
    """
    rules = []
    for name in logs.columns:
        if name == ROW:
            continue
        low, high = declared.get(name) or robust_range(logs[name].to_numpy())
        rules.append(
            Rule(
                name,
                "check the sensor and the unit of the channel, or leave the value out",
                low=low,
                high=high,
            )
        )
    return rules


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Range of physically possible values of a log channel, from the channel itself.

    The median +- 100 interquartile ranges, at least +- 10 medians, at most +-1e6: wide enough for any
    setting of a tool, narrow enough for a sentinel (-9999) or a value in a wrong unit. Median and quartiles
    do not move while less than a quarter of the values is bad. Fewer than 100 values, or quartiles that
    coincide (flags, constants), give +-1e6.

    >>> robust_range(np.array([99999.0] + [1.0, 2.0, 3.0, 4.0] * 50))
    (-147.5, 152.5)
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if finite.size < ROBUST_FROM:
        return -MAX_CHANNEL, MAX_CHANNEL
    lower, median, upper = np.quantile(finite, [0.25, 0.5, 0.75])
    if upper <= lower:
        return -MAX_CHANNEL, MAX_CHANNEL
    reach = max(ABSURD_SPREADS * (upper - lower), ABSURD_FACTOR * abs(median))
    return max(float(median - reach), -MAX_CHANNEL), min(float(median + reach), MAX_CHANNEL)


def gate_rules(params: ValidateParams) -> dict[str, list[Rule]]:
    """Suite-level rules by suite: `log_channels` (one row per channel), `lots`, `data_set` (one row)."""
    channel = "restore the channel at its source, or raise validate.max_missing_log_share"
    lots = "deliver whole lots, or lower validate.min_complete_lots or validate.wafers_per_lot"
    bad = "see both quarantine.jsonl; mend the source, or raise validate.max_quarantined_share"
    return {
        "log_channels": [
            Rule("missing_share", channel, "suite", high=params.max_missing_log_share, key="channel")
        ],
        "lots": [Rule("complete", lots, "suite", low=params.min_complete_lots, mean=True, key="lot_id")],
        "data_set": [
            Rule(
                "records", "see why ingest or validate rejected everything", "suite", low=1.0, key="data_set"
            ),
            Rule("quarantined_share", bad, "suite", high=params.max_quarantined_share, key="data_set"),
        ],
    }


class Gate:
    """Runs suites in one ephemeral Great Expectations context; nothing is written but the docs."""

    def __init__(self) -> None:
        """Start an ephemeral context (the import takes seconds)."""
        with _silence():
            import great_expectations as gx

            self._context = gx.get_context(mode="ephemeral")
            self._frames = self._context.data_sources.add_pandas("validate")

    def run(self, suite: str, frame: "pd.DataFrame", rules: list[Rule]) -> list[RuleResult]:
        """Check every rule on `frame`.

        Raises:
            GateError: a check itself is broken (a missing column, a wrong type): that says nothing about the
                data, and must not pass for good or bad data.
        """
        import great_expectations as gx
        from great_expectations.core.run_identifier import RunIdentifier

        with _silence():
            asset = self._frames.add_dataframe_asset(suite)
            batch = asset.add_batch_definition_whole_dataframe("all")
            expectations = [rule.expectation(i) for i, rule in enumerate(rules)]
            registered = self._context.suites.add(gx.ExpectationSuite(suite, expectations=expectations))
            definition = self._context.validation_definitions.add(
                gx.ValidationDefinition(name=suite, data=batch, suite=registered)
            )
            checkpoint = gx.Checkpoint(
                name=suite,
                validation_definitions=[definition],
                result_format={
                    "result_format": "COMPLETE",
                    "unexpected_index_column_names": [rules[0].key],
                },
            )
            # No clock: the same data give the same pages.
            run_id = RunIdentifier(run_name="validate", run_time=datetime(1970, 1, 1, tzinfo=UTC))
            outcome = self._context.checkpoints.add(checkpoint).run(
                batch_parameters={"dataframe": frame}, run_id=run_id
            )
        (validation,) = outcome.run_results.values()
        by_number = {r.expectation_config.meta["rule"]: r for r in validation.results}
        return [_read(suite, rule, by_number[i]) for i, rule in enumerate(rules)]

    def write_docs(self, folder: Path) -> None:
        """Build Data Docs of all runs into `folder`, as Great Expectations makes them (with CDN links)."""
        with _silence():
            store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())}
            site = {
                "class_name": "SiteBuilder",
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": store,
            }
            self._context.add_data_docs_site("data_docs", site)
            self._context.build_data_docs(site_names=["data_docs"])


def _read(suite: str, rule: Rule, result: Any) -> RuleResult:
    broken = _exception(result.exception_info)
    if broken:
        kind = result.expectation_config.type
        raise GateError(
            f"validate: the check {suite}/{kind}({rule.column}) is broken, "
            f"which says nothing about the data: {broken}"
        )
    found = result.result.get("unexpected_index_list") or []
    failures = [Failure(item[rule.key], rule, item[rule.column]) for item in found]
    observed = result.result.get("observed_value")
    if not result.success and rule.level == "row" and not failures:
        raise GateError(f"validate: {suite}/{rule.column} failed without naming rows; the check is broken")
    value = None if observed is None or not math.isfinite(observed) else float(observed)
    return RuleResult(suite, rule, result.expectation_config.type, bool(result.success), value, failures)


def _exception(info: Any) -> str | None:
    """Message of the exception behind a result; healthy results say so flatly, broken ones per metric."""
    if not info or info.get("raised_exception") is False:
        return None
    if "raised_exception" in info:
        return str(info.get("exception_message"))
    return "; ".join(sorted({str(part.get("exception_message")) for part in info.values()}))


@contextlib.contextmanager
def _silence() -> Any:
    """Keep tqdm's bars out of the log: Great Expectations draws them whatever its settings say."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
