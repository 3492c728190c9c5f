"""Counts of a shop's own export: the words it uses most for each value, its full paths, and its separators."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

from jobs.importing.columns import Json, matching_columns
from jobs.importing.derived_columns import DerivedColumns
from jobs.importing.steps import Unread, apply_steps
from schemas.characters import fold
from schemas.derivations import WILDCARD
from schemas.mapping import Mapping, glob_pattern
from schemas.taxonomy import Taxonomy

_MOST_PATHS: Final = 1_000_000  # paths of all derived columns that are remembered
_LEAF: Final = "leaf"
_SPLIT: Final = "split"


class ShopWords:
    """Counts of the words, paths, separators and attribute names of one export."""

    def __init__(
        self,
        mapping: Mapping,
        taxonomy: Taxonomy,
        derived: DerivedColumns,
        names: str = "",  # glob of columns of attributes' names
        beside: tuple[str, ...] = (),  # globs of the columns beside them
    ) -> None:
        self._name_columns, self._beside = names, beside
        self._flags: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._mapping, self._taxonomy, self._derived = mapping, taxonomy, derived
        self._words: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._names: dict[str, Counter[str]] = defaultdict(Counter)
        self._fields = {fold(attribute.field) for attribute in taxonomy.attributes}
        self._paths: dict[tuple[str, int], dict[str, set[str]]] = defaultdict(dict)
        self._separators: dict[str, Counter[str]] = defaultdict(Counter)
        self._stepped = {
            name: derivation
            for name, derivation in mapping.derive.items()
            if any(call.name in (_LEAF, _SPLIT) for call in derivation.steps)
        }
        self._remembered = 0
        self.columns: dict[str, None] = {}  # of the shop's rows, in order

    def read(self, rows: list[dict[str, Json]], labels: dict[str, Json]) -> None:
        """Count the rows and the labels of a product."""
        for row in rows:
            self.columns.update(dict.fromkeys(row))
            self._read_flags(row)
            if self._mapping.list_separator:
                for column, text in row.items():
                    self._count_separators(column, text, self._mapping.list_separator)
            for name in self._stepped:
                self._read_steps(row, name)
        for name in labels:
            if fold(name) in self._fields:
                self._names[fold(name)][name] += 1
        for attribute in self._taxonomy.attributes:
            for word in texts_of(labels.get(self.name(attribute.field))):
                if (value := attribute.read(word)[1]) is not None:
                    self._words[attribute.name, value][word.strip()] += 1

    def word(self, attribute: str, value: str) -> str:
        """Return the word that the shop uses most for a value; if it uses none, the value's name."""
        counts = self._words.get((attribute, value))
        return min(counts, key=lambda word: (-counts[word], word)) if counts else value

    def name(self, field: str) -> str:
        """Return a taxonomy's `field` as the shop writes it."""
        counts = self._names.get(fold(field))
        if not counts or field in counts:
            return field
        return min(counts, key=lambda name: (-counts[name], name))

    def path(self, column: str, step: int, leaf: str) -> tuple[str, ...]:
        """Return the full paths that end in `leaf`, at most two, of a step of a derived column."""
        return tuple(sorted(self._paths.get((column, step), {}).get(leaf, ())))

    def separator(self, column: str, separator: str) -> str:
        """Return `separator` as the shop writes it in a source column: with a blank after it, or without."""
        counts = self._separators.get(column)
        spaced = f"{separator} "
        return spaced if counts and counts[spaced] > counts[separator] else separator

    def flag(self, name: str, glob: str) -> str:
        """Return what the shop writes most in the column `glob` beside an attribute's name; an empty text if nothing."""
        counts = self._flags.get((fold(name), glob))
        return min(counts, key=lambda text: (-counts[text], text)) if counts else ""

    def _read_steps(self, row: dict[str, Json], name: str) -> None:
        derivation = self._stepped[name]
        for source in derivation.sources:
            for call in derivation.steps:
                if call.name == _SPLIT:
                    for column in matching_columns(row, source):
                        self._count_separators(source, row.get(column), call.argument)
        if derivation.pairs or not any(call.name == _LEAF for call in derivation.steps):
            return
        given = next((v for column in derivation.sources if (v := self._derived.value(row, column)) is not None), None)
        for position, call in enumerate(derivation.steps if given is not None else ()):
            if call.name == _LEAF:
                for path in texts_of(apply_steps(given, derivation.steps[:position], _ignore)):
                    self._remember(name, position, path, call.argument)

    def _read_flags(self, row: dict[str, Json]) -> None:
        if not self._name_columns:
            return
        pattern = glob_pattern(self._name_columns)
        for column in matching_columns(row, self._name_columns):
            if (match := pattern.fullmatch(column)) and (name := row.get(column)):
                for glob in self._beside:
                    flag = row.get(glob.replace(WILDCARD, match[1]))
                    if isinstance(flag, str) and flag:
                        self._flags[fold(str(name)), glob][flag] += 1

    def _count_separators(self, column: str, text: Json, separator: str) -> None:
        """Count how a cell writes a separator."""
        if isinstance(text, str) and separator in text:
            self._separators[column][f"{separator} " if f"{separator} " in text else separator] += 1

    def _remember(self, name: str, position: int, path: str, separator: str) -> None:
        leaf = path.rsplit(separator, 1)[-1].strip()
        paths = self._paths[name, position].setdefault(leaf, set())
        if path not in paths and len(paths) < 2 and (paths or self._remembered < _MOST_PATHS):
            paths.add(path)
            self._remembered += 1


def texts_of(value: Json) -> list[str]:
    """Return the texts of a label, or of a value or list of values."""
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    return [str(value)] if isinstance(value, str | int | float) and not isinstance(value, bool) else []


def _ignore(_: Unread) -> None:
    """Leave out a value that a step cannot read: the import reports it."""
