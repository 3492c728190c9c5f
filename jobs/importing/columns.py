"""Access to the columns of a row by name, path or glob."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from schemas.column_paths import Selection, parse_path
from schemas.derivations import WILDCARD
from schemas.mapping import glob_pattern

Json: TypeAlias = Any
ABSENT: Final = object()


def get_column(row: dict[str, Json], column: str) -> Json:
    """Return the value of `column`; `ABSENT` if it does not exist.

    Dots lead into nested objects, numbers into lists: ``maker.names.0``. Brackets take items of a list: ``names[].text``,
    ``names[language_tag=en].text``; then the result is a list, or the value itself if there is one.
    """
    if column in row:
        return row[column]
    parts = parse_path(column)
    node: Json = row
    for position, part in enumerate(parts):
        if isinstance(part, Selection):
            return _select(node, parts[position:])
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return ABSENT
    return node


def _select(node: Json, parts: tuple[str | Selection, ...]) -> Json:
    """Return what the parts of a path lead to from `node`: the only value, a list of several, or `ABSENT`."""
    nodes = [node]
    for part in parts:
        if isinstance(part, str):
            nodes = [each[part] for each in nodes if isinstance(each, dict) and part in each]
            continue
        items = [item for each in nodes for item in listed(each)]
        nodes = [
            item
            for item in items
            if not part.key or (isinstance(item, dict) and part.key in item and part.takes(item[part.key]))
        ]
    values = unique(item for each in nodes for item in listed(each))
    return ABSENT if not values else values[0] if len(values) == 1 else values


def listed(value: Json) -> list[Json]:
    """Return `value` if it is a list, otherwise a list of it alone."""
    return value if isinstance(value, list) else [value]


def unique(values: Iterable[Json]) -> list[Json]:
    """Return `values` in order, each only once."""
    seen: set[str] = set()
    different: list[Json] = []
    for value in values:
        key = f"{type(value).__name__} {value!r}"
        if key not in seen:
            seen.add(key)
            different.append(value)
    return different


def matching_columns(row: Iterable[str], glob: str) -> list[str]:
    """Return the columns of a row that `glob` matches, in order. A column of exactly this name is the only match."""
    if WILDCARD not in glob:
        return [glob]
    names = list(row)
    pattern = glob_pattern(glob)
    return [glob] if glob in names else [name for name in names if pattern.fullmatch(name)]


def has_column(row: dict[str, Json], column: str) -> bool:
    """Return whether `row` has the column, path, or a column that the glob `column` matches."""
    if WILDCARD in column and column not in row:
        pattern = glob_pattern(column)
        return any(pattern.fullmatch(name) for name in row)
    return get_column(row, column) is not ABSENT


class Nulls:
    """The texts that mean "nothing given"."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(["", *(text.strip() for text in texts)])

    def is_null(self, value: Json) -> bool:
        """Return whether `value` is null or a text that means it."""
        return value is None or (isinstance(value, str) and value.strip() in self._texts)

    def is_empty(self, value: Json) -> bool:
        """Return whether `value` is null, or a list or object without content."""
        return self.is_null(value) or value in ([], {})
