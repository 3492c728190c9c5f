"""The row rules of the rule table as Spark columns: the rows that each is about, those that break it, and quarantine's reasons."""

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
    r"""Return the regular expression (Java's and Python's) of the URIs that cannot leave `roots`.

    Relative paths, and absolute ones or file URIs inside a root; none with a ``..`` step, a backslash or a control
    character. Symbolic links are the reader's matter (`cma_clip_core.content.pictures.fetch`), which resolves each path.

    A dot is any character here, and the end is said as "nothing follows": ``$`` lets a line end follow it in both
    languages, and ``\z`` and ``\Z`` mean it in one of them only.
    """
    inside = "|".join(re.escape(str(root)) for root in roots)
    relative = r"(?!/)(?![A-Za-z][A-Za-z0-9+.\-]*:)[^\\\x00-\x1f\x7f]+"
    absolute = rf"(?:file://)?(?:{inside})/[^\\\x00-\x1f\x7f]+"
    return rf"(?s)^(?!(?:.*/)?\.\.(?:/|(?!.)))(?:{relative}|{absolute})(?!.)"


def note(column: str) -> Column:
    """Return the note on a field: the rule that took it, a colon, and what was found; null where it is kept."""
    from pyspark.sql import functions as F

    return F.col("notes").getItem(column)


def given(column: str, table: RuleTable) -> Column:
    """Return the column that is null where the record does not give `column`.

    A value that was cleared, or that a rule says cannot be read, was given.
    """
    from pyspark.sql import functions as F

    counted = any(clears(rule) or isinstance(rule, Readable) for rule in table.row_rules if rule.column == column)
    value = F.col(column).cast("string")
    return F.coalesce(value, note(column)) if counted else value


def about(rule: RowRule) -> Column:
    """Return the column that is true where `rule` is about the row: a line that is no record is counted as that alone."""
    from pyspark.sql import functions as F

    if rule.column == LINE_ERROR:
        return F.lit(True)
    # Of a field that few records give, one bad value would be most of them: what a record may lose is counted of all.
    if isinstance(rule, IsNull | NotNull | Readable) or clears(rule):
        return F.col(LINE_ERROR).isNull()
    return F.col(rule.column).isNotNull()


def passes(rule: RowRule, table: RuleTable, roots: Sequence[AnyPath]) -> Column:
    """Return the column that is true where a row that `rule` is about does not break it."""
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
    """Return the column that is true where the row breaks `rule`, and false elsewhere."""
    return about(rule) & ~passes(rule, table, roots)


def reasons(table: RuleTable, roots: Sequence[AnyPath]) -> Column:
    """Return the names of the rules that keep a record from being valid: an empty list where it is.

    Rules on `several_rows` are not asked: which rows of an id are left to choose from is known when these reasons are.
    """
    from pyspark.sql import functions as F

    asked = [rule for rule in table.row_rules if not clears(rule) and rule.column != SEVERAL_ROWS]
    return F.array_compact(
        F.array(*[F.when(F.coalesce(breaks(rule, table, roots), F.lit(False)), rule.name) for rule in asked])
    )
