"""Row rules as Spark columns: the rows that a rule applies to, the rows that break it, and the reasons of quarantine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from cma_clip_core.content.paths import AnyPath
from schemas.rules import (
    LINE_ERROR,
    SEVERAL_ROWS,
    Between,
    IsNull,
    Matches,
    MaxLength,
    NotNull,
    Readable,
    RowRule,
    RuleTable,
    WithinRoots,
    clears,
)

if TYPE_CHECKING:
    from pyspark.sql import Column


def within_roots_pattern(roots: Sequence[AnyPath]) -> str:
    r"""Return the regular expression (for Java and Python) of the URIs that cannot leave `roots`.

    It matches relative paths, and absolute paths or file URIs inside a root, without a ``..`` step, a backslash or a
    control character. Symbolic links are checked by the reader (`cma_clip_core.content.pictures.fetch`), which resolves
    each path.

    A dot matches any character. The end is written as "nothing follows", because ``$`` lets a line end follow in both
    languages, and ``\z`` and ``\Z`` each work in only one of them.
    """
    inside = "|".join(re.escape(str(root)) for root in roots)
    relative = r"(?!/)(?![A-Za-z][A-Za-z0-9+.\-]*:)[^\\\x00-\x1f\x7f]+"
    absolute = rf"(?:file://)?(?:{inside})/[^\\\x00-\x1f\x7f]+"
    return rf"(?s)^(?!(?:.*/)?\.\.(?:/|(?!.)))(?:{relative}|{absolute})(?!.)"


def note(column: str) -> Column:
    """Return the note on a field: the rule that cleared it, a colon, and its content; null if the field is kept."""
    from pyspark.sql import functions as F

    return F.col("notes").getItem(column)


def given(column: str, table: RuleTable) -> Column:
    """Return a column that is null if the record does not give `column`.

    A value that was cleared, or could not be read, was given.
    """
    from pyspark.sql import functions as F

    counted = any(clears(rule) or isinstance(rule, Readable) for rule in table.row_rules if rule.column == column)
    value = F.col(column).cast("string")
    return F.coalesce(value, note(column)) if counted else value


def applies(rule: RowRule) -> Column:
    """Return a column that is true if `rule` applies to the row. A line that is not a record counts only as such."""
    from pyspark.sql import functions as F

    if rule.column == LINE_ERROR:
        return F.lit(True)
    # A share of all records: if few records give the field, one bad value would be a large share of these.
    if isinstance(rule, IsNull | NotNull | Readable) or clears(rule):
        return F.col(LINE_ERROR).isNull()
    return F.col(rule.column).isNotNull()


def passes(rule: RowRule, table: RuleTable, roots: Sequence[AnyPath]) -> Column:
    """Return a column that is true if a row that `rule` applies to passes it."""
    from pyspark.sql import functions as F

    if clears(rule) or isinstance(rule, Readable):
        return ~F.coalesce(note(rule.column).startswith(f"{rule.name}: "), F.lit(False))
    column = F.col(rule.column)
    match rule:
        case IsNull():
            return column.isNull()
        case NotNull():
            return given(rule.column, table).isNotNull()
        case Matches():
            return column.rlike(rule.pattern)
        case WithinRoots():
            return column.rlike(within_roots_pattern(roots))
        case MaxLength():
            return F.length(column) <= rule.characters
        case Between():
            return column.between(rule.minimum, rule.maximum)
    assert_never(rule)


def breaks(rule: RowRule, table: RuleTable, roots: Sequence[AnyPath]) -> Column:
    """Return a column that is true if the row breaks `rule`, and false otherwise."""
    return applies(rule) & ~passes(rule, table, roots)


def reasons(table: RuleTable, roots: Sequence[AnyPath]) -> Column:
    """Return the names of the rules that make a record invalid: an empty list for a valid one.

    Rules on `several_rows` are left out: they depend on which rows of an id have no other reason.
    """
    from pyspark.sql import functions as F

    rules = [rule for rule in table.row_rules if not clears(rule) and rule.column != SEVERAL_ROWS]
    return F.array_compact(
        F.array(*[F.when(F.coalesce(breaks(rule, table, roots), F.lit(False)), rule.name) for rule in rules])
    )
