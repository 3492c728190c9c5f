"""The rules that clear one field of a record, applied as its line is parsed.

Other columns depend on whether a field is kept: whether anything is left to tag, and the hash of the model's inputs. So
these rules run in Python with the parser. The row's notes name each rule and the field that it cleared;
`jobs.validation.row_rules` counts them by these notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, assert_never

from cma_clip_core.content.paths import AnyPath
from jobs.records.fields import described
from jobs.validation.row_rules import within_roots_pattern
from schemas.rules import Between, IsNull, Matches, MaxLength, NotNull, Readable, RuleTable, WithinRoots, clears

UNREADABLE: Final = "unreadable"  # the rule name in a note, if the table has no rule for the field


@dataclass(frozen=True, slots=True)
class Check:
    """A rule on a field that was read."""

    field: str
    rule: str
    least: float = float("-inf")  # the smallest number
    most: float = float("inf")  # the largest number, or the most characters of a text
    pattern: re.Pattern[str] | None = None  # the pattern of a text

    def fails(self, value: str | float) -> bool:
        """Return whether `value` breaks the rule."""
        if self.pattern is not None:
            return self.pattern.search(str(value)) is None
        return not self.least <= (len(value) if isinstance(value, str) else value) <= self.most


@dataclass(frozen=True, slots=True)
class FieldRules:
    """The rules that clear fields, as plain data for Spark's workers."""

    readable: Mapping[str, str] = field(default_factory=dict)  # by field: the name of the rule that it must be readable
    checks: Sequence[Check] = ()

    def note(self, name: str, content: str) -> str:
        """Return the note that the field `name` cannot be read; `content` describes its content."""
        return f"{self.readable.get(name, UNREADABLE)}: {content}"

    def clear(self, row: dict[str, Any], notes: dict[str, str]) -> None:
        """Set to None each field of `row` that breaks a rule, and note the rule and the value."""
        for check in self.checks:
            value = row.get(check.field)
            if value is not None and check.fails(value):
                row[check.field] = None
                notes[check.field] = f"{check.rule}: {described(value)}"


def field_rules(table: RuleTable, roots: Sequence[AnyPath]) -> FieldRules:
    """Return the rules of `table` that are applied as a line is parsed."""
    checks: list[Check] = []
    for rule in table.row_rules:
        if not clears(rule):
            continue
        match rule:
            case WithinRoots():
                checks.append(Check(rule.column, rule.name, pattern=re.compile(within_roots_pattern(roots))))
            case MaxLength():
                checks.append(Check(rule.column, rule.name, most=rule.characters))
            case Between():
                checks.append(Check(rule.column, rule.name, least=rule.minimum, most=rule.maximum))
            case Readable() | IsNull() | NotNull() | Matches():
                pass
            case _:
                assert_never(rule)
    readable = {rule.column: rule.name for rule in table.row_rules if isinstance(rule, Readable)}
    return FieldRules(readable, tuple(checks))
