"""Places in a shop's row where a label can be written: a cell, a derived column, a text of pairs, columns of pairs.

Each target turns the words of one label into cells, by the mapping read backwards. `write_back` then reads the cells again
and keeps only what means the new label and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from jobs.exporting.shop_words import ShopWords, texts_of
from jobs.exporting.systems import System
from jobs.importing.columns import Json, matching_columns
from jobs.importing.steps import STEPS
from schemas.characters import fold
from schemas.derivations import WILDCARD, Derivation, StepCall, template_columns
from schemas.mapping import Mapping, glob_pattern

Row = dict[str, Json]
_KEY_VALUE: Final = "key_value"


class Refusal(Exception):
    """Answer that a label cannot be written to a row; its text is the reason."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label to write: its name and words as the shop writes them.

    `replaces` is true for a word that takes the place of the shop's own. `kept` are the shop's words beside which new ones are
    added. `is_free` says whether an old text has no meaning, so that it may be replaced.
    """

    name: str
    words: tuple[str, ...]
    replaces: bool
    kept: tuple[str, ...]
    is_free: Callable[[str], bool]

    @property
    def all_words(self) -> Json:
        """All words of the label: one text, or a list."""
        words = [*self.kept, *self.words]
        return words if len(words) > 1 else words[0]

    @property
    def overwrites(self) -> bool:
        """True if the label's own pair is written again."""
        return self.replaces or bool(self.kept)


@dataclass(slots=True)
class Cells:
    """New cells of a row by column, and for cells of pairs the pair that was added."""

    cells: dict[str, str]
    pairs: dict[str, str] = field(default_factory=dict)


class Target(Protocol):
    """A place where a label can be written."""

    def write(self, row: Row, label: Label) -> Cells:
        """Return the new cells of `row`. Raises Refusal if the label cannot stand there."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A column of the shop that holds the label alone, or a list with a separator."""

    column: str
    separator: str

    def write(self, row: Row, label: Label) -> Cells:
        """Return the cell with the label's words."""
        old = _old_text(row, self.column)
        if len(label.words) > 1 and not self.separator:
            raise Refusal("several values, and the mapping has no `list_separator`")
        new = self.separator.join(label.words)
        if old and not label.replaces and not _is_free(old, self.separator, label):
            if not self.separator:
                raise Refusal(f"{self.column!r} holds another text")
            new = f"{old}{self.separator}{new}"
        return Cells({self.column: new})


@dataclass(frozen=True, slots=True)
class DerivedCell:
    """A column of the shop from which a derived column is made, by steps that have a way back."""

    name: str
    derivation: Derivation
    words: ShopWords

    def write(self, row: Row, label: Label) -> Cells:
        """Return the source column with the words after all inverse steps."""
        source = _source(row, self.derivation)
        old = _old_text(row, source)
        steps = self.derivation.steps
        if old and not label.replaces:
            split = next((n for n, call in enumerate(steps) if call.name == "split"), None)
            if split is None:
                raise Refusal(f"{source!r} holds another text")
            separator = self.words.separator(source, steps[split].argument)
            rest = [unapply(word, steps[split + 1 :], split + 1, self.name, source, self.words) for word in label.words]
            return Cells({source: separator.join([old, *rest])})
        if old and any(call.name == "split" for call in steps):
            raise Refusal("a word within a list is not replaced")
        given: Json = list(label.words) if len(label.words) > 1 else label.words[0]
        return Cells({source: unapply(given, steps, 0, self.name, source, self.words)})


@dataclass(frozen=True, slots=True)
class PairText:
    """A column with a text of pairs, such as Magento's ``color=Red,size=M``."""

    column: str
    marks: tuple[str, str]  # between pairs, within a pair
    steps: tuple[StepCall, ...]  # after the text was taken apart
    separator: str  # of several values, if no step splits them
    words: ShopWords
    name: str = ""  # of the derived column, if there is one
    skipped: int = 0  # steps before `steps`

    def write(self, row: Row, label: Label) -> Cells:
        """Return the column with one more pair, or with another value in its pair."""
        old = _old_text(row, self.column)
        between, mark = self.marks
        given = label.all_words
        if isinstance(given, list) and self.separator and not any(call.name == "split" for call in self.steps):
            given = self.separator.join(given)
        value = unapply(given, self.steps, self.skipped, self.name, self.column, self.words)
        pair = f"{label.name}{mark}{value}"
        if not label.overwrites:
            return Cells({self.column: f"{old}{between}{pair}" if old else pair}, {self.column: pair})
        own = re.compile(rf"(?<![^{re.escape(between)}]){re.escape(label.name + mark)}[^{re.escape(between)}]*")
        if len(own.findall(old)) != 1:
            raise Refusal(f"{self.column!r} does not have exactly one pair of this name")
        return Cells({self.column: own.sub(lambda _: pair, old)}, {self.column: pair})


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A column with a JSON object of labels."""

    column: str

    def write(self, row: Row, label: Label) -> Cells:
        """Return the object with the label."""
        try:
            held = json.loads(_old_text(row, self.column) or "{}")
        except ValueError:
            held = None
        if not isinstance(held, dict):
            raise Refusal(f"{self.column!r} is not a JSON object")
        held[label.name] = label.all_words
        return Cells({self.column: json.dumps(held, ensure_ascii=False)})


@dataclass(frozen=True, slots=True)
class PairColumns:
    """Columns of names and of values, such as WooCommerce's ``Attribute 1 name`` and ``Attribute 1 value(s)``."""

    names: str
    values: str
    derivation: Derivation
    system: System
    words: ShopWords

    def write(self, row: Row, label: Label) -> Cells:
        """Return a pair with the label: the one of its name, or the first one that is free."""
        if WILDCARD not in self.names:
            why = self.system.reason(self.names)
            raise Refusal(f"{self.values!r} is never written: {why}" if why else f"{self.names!r} is a fixed column")
        value = unapply(label.all_words, self.derivation.steps, 0, "", self.values, self.words)
        star = self._star(row, label)
        cells = {self.values.replace(WILDCARD, star): value}
        name_column = self.names.replace(WILDCARD, star)
        if not _old_text(row, name_column):
            cells[name_column] = label.name
            for glob, default in self.system.beside.items():
                cells[glob.replace(WILDCARD, star)] = self.words.flag(label.name, glob) or default
        return Cells(cells)

    def _star(self, row: Row, label: Label) -> str:
        """Return the text for ``*`` of the pair to write."""
        pattern, free = glob_pattern(self.names), list[str]()
        stars = [match[1] for name in matching_columns(row, self.names) if (match := pattern.fullmatch(name))]
        for star in stars:
            name = _old_text(row, self.names.replace(WILDCARD, star))
            value = _old_text(row, self.values.replace(WILDCARD, star))
            if name and fold(name) == fold(label.name):
                if value and self.system.locks_pairs(row):
                    raise Refusal("the attribute may define the product's variations")
                if value and not label.overwrites and not label.is_free(value):
                    raise Refusal(f"{self.values.replace(WILDCARD, star)!r} holds another text")
                return star
            if not name and not value:
                free.append(star)
        if label.overwrites:
            raise Refusal("no pair of columns has this name")
        if free:
            return free[0]
        numbers = [int(star) for star in stars if star.isascii() and star.isdigit()]
        return str(max(numbers, default=0) + 1)


def targets_of(
    field_name: str, mapping: Mapping, system: System, words: ShopWords
) -> tuple[list[tuple[str, Target]], str]:
    """Return the places for labels of a taxonomy's field, with the column that the table names, and why others are none."""
    found: list[tuple[str, Target]] = []
    refused = ""
    for column in _label_columns(field_name, mapping, words):
        if column not in mapping.derive:
            separator = mapping.list_separator
            found.append((column, Cell(column, words.separator(column, separator) if separator else "")))
            continue
        derivation = mapping.derive[column]
        if derivation.pairs:
            refused = f"{column!r} is made of pairs of columns"
        else:
            found.append((column, DerivedCell(column, derivation, words)))
    for column in () if found else mapping.label_objects:
        found += _object_targets(column, mapping, system, words)
    return found, refused or f"the mapping has no column for the field {field_name!r}"


def _label_columns(field_name: str, mapping: Mapping, words: ShopWords) -> list[str]:
    """Return the columns of `labels` whose label the taxonomy reads as `field_name`: of this name, or else alike."""
    names = [
        name
        for glob in mapping.labels
        for name in (matching_columns(words.columns, glob) if WILDCARD in glob else [glob])
    ]
    if field_name in names:
        return [field_name]
    return [name for name in dict.fromkeys(names) if fold(name) == fold(field_name)]


def _object_targets(column: str, mapping: Mapping, system: System, words: ShopWords) -> list[tuple[str, Target]]:
    if column not in mapping.derive:
        text = PairText(column, (",", "="), (), mapping.list_separator, words)
        return [(column, text)] if column in system.merged else [(column, JsonObject(column)), (column, text)]
    derivation = mapping.derive[column]
    if derivation.pairs:
        return [(values, PairColumns(names, values, derivation, system, words)) for names, values in derivation.pairs]
    parted = next((n for n, call in enumerate(derivation.steps) if call.name == _KEY_VALUE), None)
    if parted is None:
        return []
    steps = derivation.steps[parted + 1 :]
    marks = derivation.steps[parted].argument
    return [
        (source, PairText(source, marks, steps, mapping.list_separator, words, column, parted + 1))
        for source in derivation.sources
        if source not in mapping.derive and not template_columns(source)
    ]


def unapply(value: Json, steps: tuple[StepCall, ...], first: int, name: str, source: str, words: ShopWords) -> str:
    """Return the text from which `steps` make `value`, as the shop writes it.

    Args:
        value: a word or a list of words.
        steps: steps of a derived column.
        first: position of the first of them in the derived column.
        name: the derived column.
        source: the column that the text is for; its separators are written as elsewhere in the shop's export.
        words: what the shop's export shows.

    Raises:
        Refusal: a step has no way back.
    """
    for position, call in reversed(list(enumerate(steps, first))):
        match call.name:
            case "leaf":
                value = [_path(word, position, name, words) for word in texts_of(value)]
                value = value[0] if len(value) == 1 else value
            case "split":
                value = words.separator(source, call.argument).join(texts_of(value))
            case _:
                inverse = STEPS[call.name].inverse
                if inverse is not None:
                    items = [inverse(item, call.argument) for item in texts_of(value)]
                    value = items[0] if len(items) == 1 else items
    if isinstance(value, list):
        raise Refusal("several values, and no step splits them")
    return str(value)


def _path(word: str, position: int, name: str, words: ShopWords) -> str:
    paths = words.path(name, position, word)
    if len(paths) != 1:
        raise Refusal(
            "the shop uses several full paths for the value" if paths else "the shop uses no full path for it"
        )
    return paths[0]


def _source(row: Row, derivation: Derivation) -> str:
    """Return the column that a derived column is written to: the source that is given, or else the first one."""
    plain = [source for source in derivation.sources if source in row]
    if not plain:
        raise Refusal(f"none of its columns is in the export: {', '.join(derivation.sources)}")
    return next((each for each in plain if _old_text(row, each)), plain[0])


def _old_text(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, list | dict):
        raise Refusal(f"{column!r} holds a list or an object")
    return "" if value is None else str(value).strip()


def _is_free(old: str, separator: str, label: Label) -> bool:
    return all(label.is_free(part) for part in (old.split(separator) if separator else [old]))
