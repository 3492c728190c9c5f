"""Compute the columns that a mapping derives from the shop's own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from jobs.importing.columns import ABSENT, Nulls, get_column, listed, matching_columns, unique
from jobs.importing.formats.observations import Observations, shown
from jobs.importing.steps import Unread, apply_steps
from jobs.records.values import identity
from schemas.derivations import BRACES, WILDCARD, Derivation, template_columns
from schemas.mapping import Mapping, glob_pattern

Json: TypeAlias = Any


class DerivedColumns:
    """Maker of the columns that a mapping derives, from one row or from the rows of a product."""

    def __init__(self, mapping: Mapping, nulls: Nulls, observations: Observations) -> None:
        self._mapping, self._nulls, self._observations = mapping, nulls, observations
        self._pairs = {name: each for name, each in mapping.derive.items() if each.pairs}
        self.examples: dict[str, str] = {}  # a value that could not be read, by what was noted

    def extend(self, row: dict[str, Json]) -> dict[str, Json]:
        """Return `row` with all derived columns."""
        extended = dict(row)
        for name, derivation in self._mapping.derive.items():
            value = self._derive(extended, name, derivation)
            if not self._nulls.is_empty(value):
                extended[name] = value
            else:
                extended.pop(name, None)
        return extended

    def value(self, row: dict[str, Json], column: str) -> Json:
        """Return a column of a row that has no derived columns yet; None if nothing is given."""
        if column not in self._mapping.derive:
            value = get_column(row, column)
            return None if value is ABSENT or self._nulls.is_null(value) else value
        derivation = self._mapping.derive[column]
        needed = {source: self.value(row, source) for source in derivation.sources if source in self._mapping.derive}
        return self._derive(row | needed, column, derivation, quiet=True)

    def pairs_of(self, rows: Iterable[dict[str, Json]]) -> dict[str, Json]:
        """Return the columns of pairs for the rows of a product, before their steps.

        A row that gives a value without a name takes the name from the row before it, as in Shopify's options.
        """
        objects: dict[str, Json] = {}
        rows = list(rows)
        for column, derivation in self._pairs.items():
            made: dict[str, list[Json]] = {}
            before: dict[str, str] = {}
            for row in rows:
                self._add_pairs(made, row, column, derivation, before)
            objects[column] = _single({name: unique(values) for name, values in made.items()})
        return objects

    def _derive(self, row: dict[str, Json], column: str, derivation: Derivation, *, quiet: bool = False) -> Json:
        if derivation.pairs:
            value = row[column] if column in row else self.pairs_of([row])[column]
        else:
            given = (self._source(row, text) for text in derivation.first)
            value = next((each for each in given if each is not None), None)
            if derivation.every:
                several = (self._source(row, text) for text in derivation.every)
                value = unique(item for each in several if each is not None for item in listed(each))
        if derivation.steps and value is not None:
            value = apply_steps(value, derivation.steps, (lambda _: None) if quiet else self._report(column))
        return _merge_objects(value)

    def _source(self, row: dict[str, Json], text: str) -> Json:
        """Return the value of a column, or a text whose braces hold columns; None if a column is not given.

        If a column in braces holds a list, the result is a list of texts.
        """
        columns = template_columns(text)
        if not columns:
            value = get_column(row, text)
            return None if value is ABSENT or self._nulls.is_empty(value) else value
        values = {column: self._source(row, column) for column in columns}
        if any(value is None or isinstance(value, dict) for value in values.values()):
            return None
        texts = [fill(text, values, position) for position in range(max(len(listed(v)) for v in values.values()))]
        return texts[0] if len(texts) == 1 else texts

    def _add_pairs(
        self,
        made: dict[str, list[Json]],
        row: dict[str, Json],
        column: str,
        derivation: Derivation,
        before: dict[str, str],
    ) -> None:
        for name_glob, value_glob in derivation.pairs:
            for name_column, value_column in _pair_columns(row, name_glob, value_glob):
                name, value = self._source(row, name_column), self._source(row, value_column)
                if name is not None and isinstance(name, str | int | float):
                    before[name_column] = str(identity(name)).strip()
                if value is None:
                    continue
                if name_column not in before:
                    self._note(column, "values without a name, kept under their column's name", value)
                made.setdefault(before.get(name_column, value_column), []).extend(listed(value))

    def _report(self, column: str) -> Any:
        def report(unread: Unread) -> None:
            self._note(column, f"values that step {unread.step!r} could not read, kept as they are", unread.value)

        return report

    def _note(self, column: str, what: str, value: Json) -> None:
        description = f"derived column {column!r}: {what}"
        self._observations.note(description)
        self.examples.setdefault(description, shown(value))


def _pair_columns(row: dict[str, Json], name_glob: str, value_glob: str) -> list[tuple[str, str]]:
    """Return the columns of names and of values that belong together: those where ``*`` stands for the same text."""
    if WILDCARD not in name_glob:
        return [(name_glob, value_glob)]
    pattern = glob_pattern(value_glob)
    stars = [match[1] for name in matching_columns(row, value_glob) if (match := pattern.fullmatch(name))]
    return [(name_glob.replace(WILDCARD, star), value_glob.replace(WILDCARD, star)) for star in stars]


def fill(text: str, values: dict[str, Json], position: int) -> str:
    """Return `text` with each column in braces replaced by its value; of a list, the item at `position`, or the last one."""

    def item(match: re.Match[str]) -> str:
        items = listed(values[match[1]])
        return str(identity(items[min(position, len(items) - 1)]))

    return BRACES.sub(item, text)


def _merge_objects(value: Json) -> Json:
    """Return a list of objects as one object with all their values; any other items of the list stay beside it."""
    if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
        return value
    merged: dict[str, list[Json]] = {}
    for item in value:
        if isinstance(item, dict):
            for name, held in item.items():
                merged.setdefault(name, []).extend(listed(held))
    rest = [item for item in value if not isinstance(item, dict)]
    single = _single({name: unique(held) for name, held in merged.items()})
    return [single, *rest] if rest else single


def _single(values: dict[str, list[Json]]) -> dict[str, Json]:
    return {name: held[0] if len(held) == 1 else held for name, held in values.items()}
