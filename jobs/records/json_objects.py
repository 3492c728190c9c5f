"""JSON objects that must not have duplicate names."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jobs.records.fields import described


class NameTwiceError(ValueError):
    """Error for a JSON object that has a name twice."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the JSON object of `pairs`. Raises `NameTwiceError` if a name occurs twice."""
    record = dict(pairs)
    if len(record) != len(pairs):
        names = Counter(name for name, _ in pairs)
        duplicate = next(name for name, n in names.items() if n > 1)
        raise NameTwiceError(f"the name {described(duplicate)} occurs twice, so it is unknown which value is meant")
    return record
