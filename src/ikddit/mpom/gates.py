"""Runs rules as Great Expectations suites in code, and reads what the results mean."""

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikddit.errors import GateError
from ikddit.mpom.rules import Rule

if TYPE_CHECKING:
    import pandas as pd


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
                    "unexpected_index_column_names": list(rules[0].keys),
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
    failures = [Failure(item[rule.keys[0]], rule, item[rule.column]) for item in found]
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
def _silence() -> Iterator[None]:
    """Keep tqdm's bars out of the log: Great Expectations draws them whatever its settings say."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
