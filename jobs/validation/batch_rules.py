"""The rule table as a Great Expectations suite: the gate of a day's batch.

Great Expectations counts and judges; it is given no example of a failing row, so that no text of the shop's can end in
what it writes. Examples are taken from what the day's records became (`jobs.validation.rule_examples`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, assert_never

from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import MISSING
from jobs.lake.storage import AnyPath
from jobs.validation import row_rules
from jobs.validation.row_rules import within_roots_pattern
from schemas.documents import Validation
from schemas.rules import (
    LINE_ERROR,
    SEVERAL_ROWS,
    BatchRule,
    Between,
    IsNull,
    Matches,
    MaxLength,
    NotNull,
    NullShare,
    PicturesFound,
    PicturesNamed,
    Readable,
    RowCount,
    RowRule,
    RuleTable,
    Unique,
    WithinRoots,
    clears,
)

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# All that a result says but examples of the failing rows.
_COUNTS: Final = {"result_format": "SUMMARY", "partial_unexpected_count": 0}
_KEPT, _CLEARED = "kept", "cleared"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What Great Expectations says of one rule."""

    rule: RowRule | BatchRule
    passed: bool
    rows: int  # that the rule is about
    failed: int  # of these
    limit: str  # what it allows, for people

    @property
    def observed(self) -> str:
        """What was counted, against what is allowed."""
        if isinstance(self.rule, RowCount):
            return f"{self.rows:,} rows ({self.limit})"
        return f"{self.failed:,} of {self.rows:,} rows ({self.failed / max(1, self.rows):.1%}; {self.limit})"


def row_count_bounds(rule: RowCount, last_days: Sequence[Validation]) -> tuple[int, int | None]:
    """Return the smallest and largest plausible row count, given the last days (newest last)."""
    days = [day.raw for day in last_days[-rule.last_days :]]
    if not days:
        return rule.minimum, None
    mean = sum(days) / len(days)
    return max(rule.minimum, int(mean * rule.minimum_ratio)), int(mean * rule.maximum_ratio) + 1


def least_named(rule: PicturesNamed, last_days: Sequence[Validation]) -> float:
    """Return the least share of records that must name a picture: 0 where no earlier day says."""
    days = [d for d in last_days if d.pictures_named is not None][-rule.last_days :]
    shares = [(d.pictures_named or 0) / max(1, d.raw - d.unparsable) for d in days]
    return rule.minimum_ratio * sum(shares) / len(shares) if shares else 0.0


def most_missing(rule: PicturesFound, last_days: Sequence[Validation]) -> float:
    """Return the largest share of the records that name a picture for which import may have found none.

    A rise above the last days counts, and whatever these were, the day's own share: a little more each day is no way
    to lose all.
    """
    days = [d for d in last_days if d.pictures_named and d.pictures_missing is not None][-rule.last_days :]
    shares = [(d.pictures_missing or 0) / (d.pictures_named or 1) for d in days]
    if not shares:
        return rule.maximum_missing
    return min(rule.maximum_missing, sum(shares) / len(shares) + rule.maximum_rise)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One rule as Great Expectations is asked it."""

    rule: RowRule | BatchRule
    expectation: Any
    limit: str
    column: Column | None  # that the expectation is about, under the rule's name; None: about the table


def _asked(
    rule: RowRule | BatchRule, table: RuleTable, roots: Sequence[AnyPath], last_days: Sequence[Validation]
) -> _Asked:
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column as ConditionColumn
    from pyspark.sql import functions as F

    name = _column(rule)
    common: dict[str, Any] = {"meta": {"rule": rule.name}, "notes": rule.why, "severity": "critical"}
    records: dict[str, Any] = {
        "row_condition": ConditionColumn(LINE_ERROR).is_null()
    }  # lines that are none are another rule's
    if isinstance(rule, RowCount):
        low, high = row_count_bounds(rule, last_days)
        limit = f"at least {low:,} allowed" if high is None else f"{low:,} to {high:,} allowed"
        return _Asked(rule, gxe.ExpectTableRowCountToBeBetween(min_value=low, max_value=high, **common), limit, None)
    allowed = _allowed(rule, last_days)
    limit = f"{allowed:.0%} allowed"
    common |= {"column": name, "mostly": 1 - allowed}

    def is_given(column: str) -> Column:
        return F.when(row_rules.given(column, table).isNotNull(), F.lit("given"))

    def asked(expectation: Any, column: Column) -> _Asked:
        return _Asked(rule, expectation, limit, column)

    match rule:
        case NullShare():
            return asked(gxe.ExpectColumnValuesToNotBeNull(**records, **common), is_given(rule.column))
        case PicturesNamed():
            return asked(gxe.ExpectColumnValuesToNotBeNull(**records, **common), is_given("image_uri"))
        case PicturesFound():
            found = gxe.ExpectColumnValuesToNotMatchRegex(regex=f"^{MISSING}/", **common)
            return asked(found, F.col("image_uri"))
        case Unique():
            column = F.when(F.col(SEVERAL_ROWS).isNull(), F.col(rule.column))
            return asked(gxe.ExpectColumnValuesToBeUnique(**common), column)
        case _ if clears(rule) or isinstance(rule, Readable):
            kept = F.when(row_rules.passes(rule, table, roots), _KEPT).otherwise(_CLEARED)
            column = F.when(row_rules.about(rule), kept)
            return asked(gxe.ExpectColumnValuesToBeInSet(value_set=[_KEPT], **common), column)
        case IsNull():
            condition = {} if rule.column == LINE_ERROR else records
            return asked(gxe.ExpectColumnValuesToBeNull(**condition, **common), F.col(rule.column))
        case NotNull():
            return asked(gxe.ExpectColumnValuesToNotBeNull(**records, **common), is_given(rule.column))
        case Matches():
            return asked(gxe.ExpectColumnValuesToMatchRegex(regex=rule.pattern, **common), F.col(rule.column))
        case WithinRoots():
            inside = gxe.ExpectColumnValuesToMatchRegex(regex=within_roots_pattern(roots), **common)
            return asked(inside, F.col(rule.column))
        case MaxLength():
            short = gxe.ExpectColumnValueLengthsToBeBetween(max_value=rule.characters, **common)
            return asked(short, F.col(rule.column))
        case Between():
            within = gxe.ExpectColumnValuesToBeBetween(min_value=rule.minimum, max_value=rule.maximum, **common)
            return asked(within, F.col(rule.column))
    assert_never(rule)


def _column(rule: RowRule | BatchRule) -> str:
    return f"rule_{rule.name}"


def _allowed(
    rule: RowRule | NullShare | Unique | PicturesNamed | PicturesFound, last_days: Sequence[Validation]
) -> float:
    match rule:
        case NullShare():
            return rule.maximum
        case PicturesNamed():
            return 1 - least_named(rule, last_days)
        case PicturesFound():
            return most_missing(rule, last_days)
        case _:
            return rule.max_failed_share


def check(
    frame: DataFrame,
    table: RuleTable,
    roots: Sequence[AnyPath],
    last_days: Sequence[Validation],
    scratch: AnyPath,
    *,
    ds: str,
) -> tuple[Outcome, ...]:
    """Validate `frame` by every rule of `table`; return what was counted, rule by rule, in the table's order.

    Args:
        frame: the parsed records, with the columns the rules name; read once.
        last_days: the validations of the days before, oldest first.
        scratch: a folder that is not there, for what the rules are about: Great Expectations asks some ten queries of it,
            and each would plan and evaluate all of `frame` again.

    Raises:
        JobError: Great Expectations could not evaluate a rule, or lost one.
    """
    from pyspark.sql import functions as F

    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    asked = [_asked(rule, table, roots, last_days) for rule in (*table.row_rules, *table.batch_rules)]
    columns = [each.column.alias(_column(each.rule)) for each in asked if each.column is not None]
    logging.getLogger(ProgressBarsConfig.__module__).setLevel(logging.WARNING)  # it sets its own to INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_spark("catalog", persist=False)
    batch = source.add_dataframe_asset(f"records of {ds}").add_batch_definition_whole_dataframe("day")
    suite = context.suites.add(
        gx.ExpectationSuite(name="catalog rules", expectations=[each.expectation for each in asked])
    )
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=ds, data=batch, suite=suite))
    narrow = frame.select(F.col(LINE_ERROR), *columns)
    narrow.write.parquet(storage.spark_uri(scratch))
    kept = frame.sparkSession.read.schema(narrow.schema).parquet(storage.spark_uri(scratch))
    parameters = {"dataframe": kept}
    outcome = definition.run(batch_parameters=parameters, result_format=_COUNTS)
    seen = {result.expectation_config.meta["rule"]: result for result in outcome.results}
    missing = [each.rule.name for each in asked if each.rule.name not in seen]
    if missing:
        raise JobError(f"Great Expectations gave no result for the rules {missing}; this is a bug of the validation")
    return tuple(_outcome(each, seen[each.rule.name]) for each in asked)


def _outcome(asked: _Asked, found: Any) -> Outcome:
    """Raises JobError where the rule could not be evaluated."""
    if found.exception_info.get("raised_exception"):
        message = str(found.exception_info["exception_message"])
        raise JobError(f"rule {asked.rule.name!r} could not be checked: {message[:1000]}")
    result = found.result
    if isinstance(asked.rule, RowCount):
        return Outcome(asked.rule, found.success, result["observed_value"], 0, asked.limit)
    # Where nulls are what is counted, none is missing.
    rows = result["element_count"] - result.get("missing_count", 0)
    return Outcome(asked.rule, found.success, rows, result["unexpected_count"], asked.limit)
