"""Text of a failed critical rule: its counts, the causes and a few of its rows, for a terminal and an alert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from jobs.pages.display_text import plain
from jobs.validation.batch_rules import Outcome
from jobs.validation.rule_examples import Example
from schemas.documents import LostPicture
from schemas.rules import LINE_ERROR, PicturesFound, Readable, clears

_ID: Final = 60  # characters of an id
_CONTENT: Final = 160  # characters of a value or a line
_CAUSES: Final = 5  # reasons of unparsable lines that are counted one by one


def failure_text(
    outcome: Outcome, examples: Sequence[Example], line_errors: Mapping[str, int], lost: Sequence[LostPicture] = ()
) -> str:
    """Return a failed rule in one line for a terminal: its counts, its limit, why it matters, a few rows.

    Args:
        line_errors: the number of unparsable lines by cause, for the rule on such lines.
        lost: pictures that import could not find, for the rule on pictures; they replace the examples of products.
    """
    parts = [f"{outcome.rule.name}: {outcome.observed}. {outcome.rule.why}"]
    column = getattr(outcome.rule, "column", None)
    if column == LINE_ERROR and line_errors:
        causes = [f"{count:,} {plain(cause, _ID)}" for cause, count in list(line_errors.items())[:_CAUSES]]
        rest = sum(list(line_errors.values())[_CAUSES:])
        parts.append(f"Causes: {', '.join([*causes, *([f'{rest:,} others'] if rest else [])])}.")
    if isinstance(outcome.rule, PicturesFound) and lost:
        parts.append(f"Import could not read {'; '.join(map(_lost_text, lost))}.")
    elif examples:
        field = column if clears(outcome.rule) or isinstance(outcome.rule, Readable) else None
        parts.append(f"Examples: {'; '.join(_example_text(example, field) for example in examples)}.")
    return " ".join(parts)


def _lost_text(picture: LostPicture) -> str:
    nearest = ", ".join(plain(name, _ID) for name in picture.nearest)
    return (
        f"{plain(picture.name, _ID)} ({plain(picture.why, _CONTENT)}{f'; the export has {nearest}' if nearest else ''})"
    )


def _example_text(example: Example, field: str | None) -> str:
    """Return a row for a terminal: its id, the content of the `field`, and, without an id, the start of its line."""
    parts = []
    if example.product_id is not None:
        parts.append(f"product {plain(example.product_id, _ID)}")
    if example.note:
        rule, _, content = example.note.partition(": ")
        shown = plain(content or rule, _CONTENT)
        parts.append(f"{field} is {shown}" if field is not None else shown)
    if example.product_id is None and example.start is not None:
        start = example.start.decode("utf-8", "backslashreplace")
        parts.append(f"{example.source} has the line {plain(start, _CONTENT)}")
    return ", ".join(parts)
