"""Read JSON objects whose names are unique."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jobs.records.fields import described


class NameTwiceError(ValueError):
    """A JSON object has a name twice."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the JSON object of `pairs`. Raises `NameTwiceError` where a name occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = Counter(name for name, _ in pairs)
        twice = next(name for name, n in names.items() if n > 1)
        raise NameTwiceError(
            f"the name {described(twice)} is there twice, so which of the values is meant is not known"
        )
    return found
