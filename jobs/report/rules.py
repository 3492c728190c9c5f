"""What a critical rule that failed says: the count, the causes, a few rows, and the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from jobs.expectations import Outcome
from jobs.report.text import plain
from jobs.rule_examples import Example
from schemas.rules import LINE_ERROR, RowCount

_ID: Final = 60  # characters of an id
_FOUND: Final = 160  # characters of a value or a line
_CAUSES: Final = 5  # reasons of unparsable lines that are counted one by one


def failure_text(outcome: Outcome, examples: Sequence[Example], line_errors: Mapping[str, int]) -> str:
    """Return a failed rule in one line for a terminal: what was counted, what is allowed, why it matters, a few rows.

    Args:
        line_errors: unparsable lines by why they are no record; told by the rule that is about them.
    """
    parts = [f"{outcome.rule.name}: {outcome.observed}. {outcome.rule.why}"]
    if not isinstance(outcome.rule, RowCount) and getattr(outcome.rule, "column", None) == LINE_ERROR and line_errors:
        told = [f"{count:,} {plain(cause, _ID)}" for cause, count in list(line_errors.items())[:_CAUSES]]
        rest = sum(list(line_errors.values())[_CAUSES:])
        parts.append(f"Causes: {', '.join([*told, *([f'{rest:,} others'] if rest else [])])}.")
    if examples:
        parts.append(f"Such as {'; '.join(map(example_text, examples))}.")
    return " ".join(parts)


def example_text(example: Example) -> str:
    """Return a row for a terminal: its id, the note on it, and the start of its line where it has no id to find it by."""
    parts = []
    if example.product_id is not None:
        parts.append(f"product {plain(example.product_id, _ID)}")
    if example.note:
        rule, _, found = example.note.partition(": ")
        parts.append(plain(found or rule, _FOUND))
    if example.product_id is None and example.start is not None:
        start = example.start.decode("utf-8", "backslashreplace")
        parts.append(f"{example.source} has the line {plain(start, _FOUND)}")
    return ", ".join(parts)
