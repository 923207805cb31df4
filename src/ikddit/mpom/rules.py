"""The rules of the quality gate: what a record, a log channel, a lot and a data set must be.

Row-level rules judge one record: what breaks them goes to quarantine. Suite-level rules judge the data set:
what breaks them stops the pipeline.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ikddit.mpom.quality import MAPS, RECORD, ROW
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
    field: str = ""
    """What the owner of the data knows it as: a column of the record; `column` if empty."""
    level: Level = "row"
    low: float | None = None
    high: float | None = None
    known: tuple[str, ...] | None = None
    present: bool = False
    unique: bool = False
    mean: bool = False
    keys: tuple[str, ...] = (ROW, RECORD)
    """Columns that name the rows which break the rule; the first is unique."""
    says: str = "{value}"
    """How a value outside the range reads."""
    unit: str = ""

    @property
    def name(self) -> str:
        """The field, as quarantine and reports name it."""
        return self.field or self.column

    def reason(self, value: Any) -> str:
        """What is wrong with `value`, with the bound."""
        if self.present:
            return "missing"
        if self.unique:
            return f"{value!r} is given to several records"
        if self.known is not None:
            listed = ", ".join(self.known[:8]) + (", ..." if len(self.known) > 8 else "")
            return f"{value!r} is not a known id ({listed})"
        said = self.says.format(value=f"{_number(value)}{self.unit}")
        return f"{said}, allowed {self.bounds}" if "{value}" in self.says else said

    @property
    def bounds(self) -> str:
        """The allowed range in words."""
        low, high = (_number(bound) + self.unit for bound in (self.low, self.high))
        if self.low is None:
            return f"at most {high}"
        if self.high is None:
            return f"at least {low}"
        return low if self.low == self.high else f"{low} to {high}"

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
    return f"{float(value):.6g}" if value is not None else "none"


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
    for name, mask in MAPS.items():
        if frame[f"{name}_valid_px"].isna().all():
            continue
        largest = "largest value {value}"
        if units == "nm":
            remedy, bound, unit = (
                "check unit and scale; set the mask to 0 on flyers",
                params.max_abs_nm,
                " nm",
            )
        else:
            remedy, bound, unit = "write the image as 8-bit RGB", 1.0, ""
        lowest = -bound if units == "nm" else 0.0
        rules += [
            Rule(f"{name}_min", remedy, name, low=lowest, says="smallest value {value}", unit=unit),
            Rule(f"{name}_max", remedy, name, high=bound, says=largest, unit=unit),
            Rule(
                f"{name}_valid_share",
                "measure more marks, set ingest.marks.interpolate (--interpolate), or lower validate.min_valid_share",
                mask,
                low=params.min_valid_share,
                says="valid on {value} of the usable pixels",
            ),
            Rule(
                f"{name}_disagree_px",
                "set the mask to 1 exactly where dx and dy are finite",
                mask,
                high=0.0,
                says="mask and map disagree on {value} pixels",
            ),
            Rule(
                f"{name}_mask_other_px",
                "write the mask as 0 and 1",
                mask,
                high=0.0,
                says="neither 0 nor 1 on {value} pixels",
            ),
        ]
    for name, column in (("lot_id", "lot_id"), ("slot", "slot"), ("exposed_at", "exposed_year")):
        if frame[column].notna().any():
            rules.append(Rule(column, f"fill ids.{name} for every wafer, or for none", name, present=True))
    rules += [
        Rule("slot", "use the position in the carrier", low=0.0, high=float(LAST_SLOT)),
        Rule(
            "exposed_year",
            "write ids.exposed_at as ISO 8601 in UTC",
            "exposed_at",
            low=FIRST_YEAR,
            high=LAST_YEAR,
            says="year {value}",
        ),
        Rule(
            "in_time_order",
            "check slot and exposed_at against the other wafers of the lot",
            "exposed_at",
            low=1.0,
            high=1.0,
            says="not in the order of the slots of its lot",
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
        logs: one column per channel, and the keys `record_row` and `record`.
        declared: ranges by channel name.
    """
    rules = []
    for name in logs.columns:
        if name in (ROW, RECORD):
            continue
        low, high = declared.get(name) or robust_range(logs[name].to_numpy())
        remedy = "check the sensor and the unit of the channel, or leave the value out"
        rules.append(Rule(name, remedy, f"log_features.{name}", low=low, high=high))
    return rules


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Range of physically possible values of a log channel, from the channel itself.

    The median +- 100 interquartile ranges, at least +- 10 medians, at most +-1e6: wide enough for any
    setting of a tool, narrow enough for a sentinel (-9999) or a value in a wrong unit. Median and quartiles
    do not move while less than a quarter of the values is bad. Fewer than 100 values, or quartiles that
    coincide (flags, constants), give +-1e6.

    >>> robust_range(np.array([99999.0] + [1.0, 2.0, 3.0, 4.0] * 50))
    (-197.0, 203.0)
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
            Rule(
                "missing_share",
                channel,
                level="suite",
                high=params.max_missing_log_share,
                keys=("channel",),
            )
        ],
        "lots": [
            Rule(
                "complete",
                lots,
                level="suite",
                low=params.min_complete_lots,
                mean=True,
                keys=("lot_id",),
                says="share of complete lots {value}",
            )
        ],
        "data_set": [
            Rule(
                "records",
                "see why ingest or validate rejected everything",
                level="suite",
                low=1.0,
                keys=("data_set",),
                says="{value} records are left",
            ),
            Rule(
                "quarantined_share",
                bad,
                level="suite",
                high=params.max_quarantined_share,
                keys=("data_set",),
                says="{value} of all items are quarantined",
            ),
        ],
    }
