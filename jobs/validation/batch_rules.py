"""The rule table as a Great Expectations suite: the gate of a day's batch.

Great Expectations counts and judges. It never sees a failing value, so no text of a shop can end in its output.
`jobs.validation.rule_examples` takes examples from the tables of the day.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from jobs.errors import JobError
from jobs.lake.layout import MISSING
from jobs.lake.storage import AnyPath
from jobs.validation import row_rules
from schemas.documents import Validation
from schemas.rules import (
    LINE_ERROR,
    SEVERAL_ROWS,
    BatchRule,
    NullShare,
    PicturesFound,
    PicturesNamed,
    RowCount,
    RowRule,
    RuleTable,
    Unique,
)

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# Keys of an expectation's `meta`: the rule that it decides, or the column that it only adds up.
_RULE: Final = "rule"
_SUM: Final = "sum"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict of Great Expectations on one rule, with its counts."""

    rule: RowRule | BatchRule
    passed: bool
    rows: int  # the number of rows that the rule applies to
    failed: int  # the number of these rows that break it
    limit: str  # the limit, as text for people

    @property
    def observed(self) -> str:
        """The counts beside the limit, as text for people."""
        if isinstance(self.rule, RowCount):
            return f"{self.rows:,} rows ({self.limit})"
        return f"{self.failed:,} of {self.rows:,} rows ({self.failed / max(1, self.rows):.1%}; {self.limit})"


def row_count_bounds(rule: RowCount, last_days: Sequence[Validation]) -> tuple[int, int | None]:
    """Return the smallest and the largest plausible row count, from the last days (newest last)."""
    days = [day.raw for day in last_days[-rule.last_days :]]
    if not days:
        return rule.minimum, None
    mean = sum(days) / len(days)
    return max(rule.minimum, int(mean * rule.minimum_ratio)), int(mean * rule.maximum_ratio) + 1


def least_named(rule: PicturesNamed, last_days: Sequence[Validation]) -> float:
    """Return the smallest share of records that must name a picture: 0 without an earlier day to compare with."""
    days = [d for d in last_days if d.pictures_named is not None][-rule.last_days :]
    shares = [(d.pictures_named or 0) / max(1, d.raw - d.unparsable) for d in days]
    return rule.minimum_ratio * sum(shares) / len(shares) if shares else 0.0


def most_missing(rule: PicturesFound, last_days: Sequence[Validation]) -> float:
    """Return the largest share of pictures that import may have missed, of the records that name one.

    Both the rise above the last days and the day's own share are limited: otherwise a catalog could lose its pictures
    bit by bit.
    """
    days = [d for d in last_days if d.pictures_named and d.pictures_missing is not None][-rule.last_days :]
    shares = [(d.pictures_missing or 0) / (d.pictures_named or 1) for d in days]
    if not shares:
        return rule.maximum_missing
    return min(rule.maximum_missing, sum(shares) / len(shares) + rule.maximum_rise)


@dataclass(frozen=True, slots=True)
class _Measure:
    """One rule as two columns over the parsed records."""

    rule: RowRule | BatchRule
    applies: Column  # true in a row that the rule applies to
    failed: Column  # 1.0 in a row that breaks the rule, 0.0 in one that passes, null in all other rows
    low: int | None  # for a rule on the number of rows: the bounds
    high: int | None
    allowed: float  # for any other rule: the largest mean of `failed`

    @property
    def column(self) -> str:
        """The column name of `failed`."""
        return f"failed_{self.rule.name}"

    @property
    def limit(self) -> str:
        """The limit of the rule, as text for people."""
        if not isinstance(self.rule, RowCount):
            return f"{self.allowed:.0%} allowed"
        return f"at least {self.low:,} allowed" if self.high is None else f"{self.low:,} to {self.high:,} allowed"

    def expectation(self, rows: str) -> Any:
        """Return the expectation that decides; `rows` names the column with 1.0 in the rows that the rule applies to."""
        import great_expectations.expectations as gxe

        details: dict[str, Any] = {"meta": {_RULE: self.rule.name}, "notes": self.rule.why, "severity": "critical"}
        if isinstance(self.rule, RowCount):
            return gxe.ExpectColumnSumToBeBetween(column=rows, min_value=self.low, max_value=self.high, **details)
        return gxe.ExpectColumnMeanToBeBetween(column=self.column, max_value=self.allowed, **details)


def _measure(
    rule: RowRule | BatchRule,
    table: RuleTable,
    roots: Sequence[AnyPath],
    last_days: Sequence[Validation],
    *,
    has_duplicates: bool,
) -> _Measure:
    from pyspark.sql import functions as F

    applies, passes = _applies_and_passes(rule, table, roots, has_duplicates=has_duplicates)
    failed = F.when(applies, F.when(passes, 0.0).otherwise(1.0))
    if isinstance(rule, RowCount):
        return _Measure(rule, applies, failed, *row_count_bounds(rule, last_days), allowed=0.0)
    return _Measure(rule, applies, failed, None, None, _allowed(rule, last_days))


def _applies_and_passes(
    rule: RowRule | BatchRule, table: RuleTable, roots: Sequence[AnyPath], *, has_duplicates: bool
) -> tuple[Column, Column]:
    """Return two columns: true where the rule applies to a row, and true where such a row passes."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    is_record = F.col(LINE_ERROR).isNull()
    match rule:
        case RowCount():
            return F.lit(True), F.lit(True)
        case NullShare():
            return is_record, row_rules.given(rule.column, table).isNotNull()
        case PicturesNamed():
            return is_record, row_rules.given("image_uri", table).isNotNull()
        case PicturesFound():
            return F.col("image_uri").isNotNull(), ~F.col("image_uri").startswith(f"{MISSING}/")
        case Unique():
            column = F.when(F.col(SEVERAL_ROWS).isNull(), F.col(rule.column))
            once = F.count(column).over(Window.partitionBy(column)) == 1 if has_duplicates else F.lit(True)
            return column.isNotNull(), once
        case _:
            return row_rules.applies(rule), row_rules.passes(rule, table, roots)


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
    *,
    ds: str,
    has_duplicates: bool,
) -> tuple[Outcome, ...]:
    """Validate `frame` by every rule of `table`; return the outcomes in the table's order.

    Great Expectations sees two numbers per rule and row, and needs only their sums and means. One query computes all of
    these. An expectation about values would run another query for examples, even if it needs none.

    Args:
        frame: the parsed records, with the columns the rules name.
        last_days: the validations of the days before, oldest first.
        has_duplicates: whether any id occurs twice.

    Raises:
        JobError: Great Expectations could not evaluate a rule, or lost one.
    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig
    from pyspark.sql import functions as F

    measures = [
        _measure(rule, table, roots, last_days, has_duplicates=has_duplicates)
        for rule in (*table.row_rules, *table.batch_rules)
    ]
    # Most rules apply to the same rows, so few of these columns differ.
    applies = {str(measure.applies): measure.applies for measure in measures}
    rows_columns = {text: f"rows_{number}" for number, text in enumerate(applies)}
    columns = [F.when(column, 1.0).alias(rows_columns[text]) for text, column in applies.items()]
    columns += [measure.failed.alias(measure.column) for measure in measures]
    expectations = [measure.expectation(rows_columns[str(measure.applies)]) for measure in measures]
    expectations += [
        gxe.ExpectColumnSumToBeBetween(column=column, min_value=0, meta={_SUM: column})
        for column in (*rows_columns.values(), *(measure.column for measure in measures))
    ]
    logging.getLogger(ProgressBarsConfig.__module__).setLevel(logging.WARNING)  # it sets its own to INFO
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_spark("catalog", persist=False)
    batch = source.add_dataframe_asset(f"records of {ds}").add_batch_definition_whole_dataframe("day")
    suite = context.suites.add(gx.ExpectationSuite(name="catalog rules", expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=ds, data=batch, suite=suite))
    results = definition.run(batch_parameters={"dataframe": frame.select(columns)}, result_format="BASIC").results
    holds: dict[str, bool] = {}
    sums: dict[str, int] = {}
    for result in results:
        meta = result.expectation_config.meta
        if result.exception_info.get("raised_exception"):
            message = str(result.exception_info["exception_message"])
            raise JobError(f"rule {meta.get(_RULE) or meta[_SUM]!r} could not be checked: {message[:1000]}")
        if _RULE in meta:
            holds[meta[_RULE]] = result.success
        else:
            sums[meta[_SUM]] = int(result.result["observed_value"] or 0)
    lost = [measure.rule.name for measure in measures if measure.rule.name not in holds or measure.column not in sums]
    if lost or not sums.keys() >= set(rows_columns.values()):
        raise JobError(f"Great Expectations gave no result for the rules {lost}; this is a bug of the validation")
    outcomes = []
    for measure in measures:
        rows = sums[rows_columns[str(measure.applies)]]
        # A rule that applies to no row has no mean to judge, and holds.
        passed = holds[measure.rule.name] or (rows == 0 and not isinstance(measure.rule, RowCount))
        outcomes.append(Outcome(measure.rule, passed, rows, sums[measure.column], measure.limit))
    return tuple(outcomes)
