"""The rule table as a Great Expectations suite: the gate of a day's batch, and its document (Data Docs)."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, assert_never

from jobs import storage
from jobs.errors import JobError
from jobs.row_filter import within_roots_pattern
from jobs.storage import Place
from schemas.rules import (
    BatchRule,
    Between,
    IsNull,
    Matches,
    MaxLength,
    NotNull,
    NullShare,
    RowCount,
    RowRule,
    RuleTable,
    Unique,
    WithinRoots,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# All that a result says but examples of the failing rows.
_COUNTS: Final = {"result_format": "SUMMARY", "partial_unexpected_count": 0}


@dataclass(frozen=True, slots=True)
class Gate:
    """What Great Expectations says of a batch."""

    failures: tuple[str, ...]  # one sentence for each critical rule that failed
    data_docs: Place  # index.html


def row_count_bounds(rule: RowCount, last_days: Sequence[int]) -> tuple[int, int | None]:
    """Return the smallest and largest plausible row count, given those of the last days (newest last)."""
    days = last_days[-rule.last_days :]
    if not days:
        return rule.minimum, None
    mean = sum(days) / len(days)
    return max(rule.minimum, int(mean * rule.minimum_ratio)), int(mean * rule.maximum_ratio) + 1


def _expectation(rule: RowRule | BatchRule, roots: Sequence[Place], last_days: Sequence[int]) -> Any:
    import great_expectations.expectations as gxe

    common: dict[str, Any] = {"meta": {"rule": rule.name}, "notes": rule.why, "severity": "critical"}
    match rule:
        case RowCount():
            low, high = row_count_bounds(rule, last_days)
            return gxe.ExpectTableRowCountToBeBetween(min_value=low, max_value=high, **common)
        case NullShare():
            return gxe.ExpectColumnValuesToNotBeNull(column=rule.column, mostly=1 - rule.maximum, **common)
        case Unique():
            return gxe.ExpectColumnValuesToBeUnique(column=rule.column, mostly=1 - rule.max_failed_share, **common)
    common |= {"column": rule.column, "mostly": 1 - rule.max_failed_share}
    match rule:
        case IsNull():
            return gxe.ExpectColumnValuesToBeNull(**common)
        case NotNull():
            return gxe.ExpectColumnValuesToNotBeNull(**common)
        case Matches():
            return gxe.ExpectColumnValuesToMatchRegex(regex=rule.pattern, **common)
        case WithinRoots():
            return gxe.ExpectColumnValuesToMatchRegex(regex=within_roots_pattern(roots), **common)
        case MaxLength():
            return gxe.ExpectColumnValueLengthsToBeBetween(max_value=rule.characters, **common)
        case Between():
            return gxe.ExpectColumnValuesToBeBetween(min_value=rule.minimum, max_value=rule.maximum, **common)
    assert_never(rule)


def check(
    frame: DataFrame, table: RuleTable, roots: Sequence[Place], last_days: Sequence[int], docs: Place, *, ds: str
) -> Gate:
    """Validate `frame` by every rule of `table` and write Data Docs to the folder `docs`.

    Args:
        frame: the parsed records, with the columns the rules name; read several times, so better read from a file or a cache.
        last_days: raw row counts of the days before, oldest first.

    Raises:
        JobError: Great Expectations could not evaluate a rule, or lost one.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    rules: list[RowRule | BatchRule] = [*table.row_rules, *table.batch_rules]
    logging.getLogger(ProgressBarsConfig.__module__).setLevel(logging.WARNING)  # it sets its own to INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_spark("catalog", persist=False)
    batch = source.add_dataframe_asset(f"records of {ds}").add_batch_definition_whole_dataframe("day")
    expectations = [_expectation(rule, roots, last_days) for rule in rules]
    suite = context.suites.add(gx.ExpectationSuite(name="catalog rules", expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=ds, data=batch, suite=suite))
    storage.remove_folder(docs)
    with _sent(docs) as made:
        context.add_data_docs_site(
            site_name="night",
            site_config={
                "class_name": "SiteBuilder",
                "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(made)},
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            },
        )
        parameters = {"dataframe": frame}
        # What all rules count is a few queries, but examples of failing rows are one more for each rule: those that have any.
        outcome = definition.run(batch_parameters=parameters, result_format=_COUNTS)
        failing = {r.expectation_config.meta["rule"] for r in outcome.results if r.result.get("unexpected_count")}
        if failing:
            shown = [_expectation(rule, roots, last_days) for rule in rules if rule.name in failing]
            found = batch.get_batch(parameters).validate(
                gx.ExpectationSuite(name="failing rules", expectations=shown), result_format="SUMMARY"
            )
            told = {result.expectation_config.meta["rule"]: result for result in found.results}
            outcome.results = [told.get(r.expectation_config.meta["rule"], r) for r in outcome.results]
            store = context.validation_results_store
            (key,) = store.list_keys()
            store.set(key, outcome)
        context.build_data_docs(site_names=["night"])
    seen = {result.expectation_config.meta["rule"]: result for result in outcome.results}
    missing = [rule.name for rule in rules if rule.name not in seen]
    if missing:
        raise JobError(f"Great Expectations gave no result for the rules {missing}; see {docs / 'index.html'}")
    failures = []
    for rule in rules:
        result = seen[rule.name]
        if result.exception_info.get("raised_exception"):
            raise JobError(f"rule {rule.name!r} could not be checked: {result.exception_info['exception_message']}")
        if not result.success:
            failures.append(f"{rule.name}: {_observed(rule, result.result)}. {rule.why}")
    return Gate(tuple(failures), docs / "index.html")


@contextlib.contextmanager
def _sent(folder: Place) -> Iterator[Path]:
    """Yield a folder of this machine whose files become those of `folder`."""
    if storage.on_disk(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="data-docs-") as made:
        yield Path(made)
        storage.send_folder(Path(made), folder)


def _observed(rule: RowRule | BatchRule, result: dict[str, Any]) -> str:
    if isinstance(rule, RowCount):
        return f"{result['observed_value']:,} rows"
    failed = result["unexpected_count"]
    rows = result["element_count"] - result.get("missing_count", 0)
    allowed = rule.maximum if isinstance(rule, NullShare) else rule.max_failed_share
    return f"{failed:,} of {rows:,} rows ({failed / max(1, rows):.1%}; {allowed:.0%} allowed)"
