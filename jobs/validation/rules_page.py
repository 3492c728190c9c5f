"""The page of a day's rule outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.pages.html import render
from jobs.validation.batch_rules import Outcome
from jobs.validation.rule_examples import Example
from schemas.documents import Validation


def render_rules(validation: Validation, outcomes: Sequence[Outcome], examples: Mapping[str, Sequence[Example]]) -> str:
    """Return the page of a day's rule outcomes; `examples` are by rule name."""
    failed = [outcome for outcome in outcomes if not outcome.passed]
    shown = [outcome for outcome in outcomes if examples.get(outcome.rule.name)]
    return render(
        "rules.html.j2", validation=validation, outcomes=outcomes, failed=failed, shown=shown, examples=examples
    )
