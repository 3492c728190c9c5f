"""The row rules of the rule table as Spark columns: which records go to quarantine, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from cma_clip_core.places import Place
from schemas.rules import Between, IsNull, Matches, MaxLength, NotNull, RowRule, RuleTable, WithinRoots

if TYPE_CHECKING:
    from pyspark.sql import Column


def within_roots_pattern(roots: Sequence[Place]) -> str:
    r"""Return the regular expression (Java's and Python's) of the URIs that cannot leave `roots`.

    Relative paths, and absolute ones or file URIs inside a root; none with a ``..`` step, a backslash or a control
    character. Symbolic links are the reader's matter (`cma_clip_core.pictures.fetch`), which resolves each path.

    A dot is any character here, and the end is said as "nothing follows": ``$`` lets a line end follow it in both
    languages, and ``\z`` and ``\Z`` mean it in one of them only.
    """
    inside = "|".join(re.escape(str(root)) for root in roots)
    relative = r"(?!/)(?![A-Za-z][A-Za-z0-9+.\-]*:)[^\\\x00-\x1f\x7f]+"
    absolute = rf"(?:file://)?(?:{inside})/[^\\\x00-\x1f\x7f]+"
    return rf"(?s)^(?!(?:.*/)?\.\.(?:/|(?!.)))(?:{relative}|{absolute})(?!.)"


def passes(rule: RowRule, roots: Sequence[Place]) -> Column:
    """Return the column that is true where a record passes `rule`."""
    from pyspark.sql import functions as F

    column = F.col(rule.column)
    match rule:
        case IsNull():
            return column.isNull()
        case NotNull():
            return column.isNotNull()
        case Matches():
            return column.isNull() | column.rlike(rule.pattern)
        case WithinRoots():
            return column.isNull() | column.rlike(within_roots_pattern(roots))
        case MaxLength():
            return column.isNull() | (F.length(column) <= rule.characters)
        case Between():
            return column.isNull() | column.between(rule.minimum, rule.maximum)
    assert_never(rule)


def reasons(table: RuleTable, roots: Sequence[Place]) -> Column:
    """Return the names of the rules a record breaks: an empty list where it is valid.

    A line that is no record says only that: what else it lacks follows from it.
    """
    from pyspark.sql import functions as F

    broken = F.array_compact(F.array(*[F.when(~passes(rule, roots), rule.name) for rule in table.row_rules]))
    first = next((r.name for r in table.row_rules if r.column == "line_error"), None)
    if first is None:
        return broken
    return F.when(F.col("line_error").isNotNull(), F.array(F.lit(first))).otherwise(broken)
