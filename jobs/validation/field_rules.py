"""The rules that cost a record one field, applied where its line is parsed.

What follows from a field (whether anything is left to tag, the hash of what the model sees) must know whether the field
is kept. So these rules run in Python with the parser; the row's notes say which rule took which field, and
`jobs.validation.row_rules` counts them by the notes.
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

UNREADABLE: Final = "unreadable"  # the rule that a note names where the table has none for the field


@dataclass(frozen=True, slots=True)
class Check:
    """A rule on a field that was read."""

    field: str
    rule: str
    least: float = float("-inf")  # of a number
    most: float = float("inf")  # of a number, or of a text's characters
    pattern: re.Pattern[str] | None = None  # that a text has

    def fails(self, value: str | float) -> bool:
        """Whether `value` breaks the rule."""
        if self.pattern is not None:
            return self.pattern.search(str(value)) is None
        return not self.least <= (len(value) if isinstance(value, str) else value) <= self.most


@dataclass(frozen=True, slots=True)
class FieldRules:
    """What takes a field from a record: plain data, sent to Spark's workers."""

    readable: Mapping[str, str] = field(default_factory=dict)  # field: the rule that it must be readable
    checks: Sequence[Check] = ()

    def note(self, name: str, found: str) -> str:
        """Return the note that the field `name` cannot be read; `found` says what was found in its place."""
        return f"{self.readable.get(name, UNREADABLE)}: {found}"

    def clear(self, row: dict[str, Any], notes: dict[str, str]) -> None:
        """Set to None each field of `row` that breaks a rule, and note the rule and the value."""
        for check in self.checks:
            value = row.get(check.field)
            if value is not None and check.fails(value):
                row[check.field] = None
                notes[check.field] = f"{check.rule}: {described(value)}"


def field_rules(table: RuleTable, roots: Sequence[AnyPath]) -> FieldRules:
    """Return the rules of `table` that are applied where a line is parsed."""
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
