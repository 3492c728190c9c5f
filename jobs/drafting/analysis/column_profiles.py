"""Profiles of an export's columns: how many rows fill them, how many different values they have, and of which kind."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from jobs.records.label_forms import decoded
from jobs.records.values import instant, price

Json: TypeAlias = Any
Row: TypeAlias = dict[str, Json]

MAX_CELLS: Final = 300_000  # cells that are profiled, from the first rows on
MAX_COLUMNS: Final = 5_000  # further columns are counted, not profiled
_KEPT: Final = 5_000  # different values of a column that are counted one by one
_EXAMPLES: Final = 4
TEXT: Final = 500  # characters of a value that are looked at
_DEPTH: Final = 3  # levels of nested objects that are columns of their own
_KEYS: Final = 40  # keys of nested objects, over all rows, above which they are not columns of their own
_UNNAMED: Final = frozenset({"name", "key", "attribute", "code", "label"})  # keys of a list of named attributes
_NOTHING: Final = frozenset({"", "-", ".", "n/a", "na", "nan", "null", "none", "nil", "undefined", "#n/a"})
_ADDRESS: Final = re.compile(r"https?://\S+", re.IGNORECASE)
_PICTURE: Final = re.compile(r"\.(jpe?g|png|webp|gif|avif|bmp|tiff?)([?#]\S*)?$", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[+-]?\d{1,30}([.,]\d{1,30})?(\s?(%|cm|mm|m|kg|g|ml|l|in|inch|oz|lb|lbs|w|v|px))?", re.I)
_FLAG: Final = frozenset({"true", "false", "yes", "no", "0", "1", "ja", "nein", "oui", "non", "y", "n", "on", "off"})


@dataclass(slots=True)
class ColumnProfile:
    """Profile of a column, or of a path such as ``maker.name`` within nested objects."""

    name: str
    rows: int = 0  # rows that were profiled
    filled: int = 0
    values: Counter[str] = field(default_factory=Counter)  # texts, cut; at most `_KEPT` different ones
    hashes: set[int] = field(default_factory=set)  # hashes of all different values
    characters: int = 0
    words: int = 0
    longest: int = 0
    numbers: int = 0
    prices: int = 0
    times: int = 0
    addresses: int = 0
    pictures: int = 0  # values that end like a picture's name
    flags: int = 0
    lists: int = 0
    objects: int = 0
    markup: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        """Number of different values."""
        return len(self.hashes)

    @property
    def fill(self) -> float:
        """Share of the rows that have a value."""
        return self.filled / self.rows if self.rows else 0.0

    @property
    def uniqueness(self) -> float:
        """Different values per value given."""
        return self.distinct / self.filled if self.filled else 0.0

    @property
    def mean_words(self) -> float:
        """Mean number of words per value."""
        return self.words / self.filled if self.filled else 0.0

    @property
    def mean_length(self) -> float:
        """Mean number of characters per value, of cut values."""
        return self.characters / self.filled if self.filled else 0.0

    def share(self, count: int) -> float:
        """Return `count` as a share of the values given."""
        return count / self.filled if self.filled else 0.0

    def add(self, value: Json) -> None:
        """Count the value of one row."""
        if is_nothing(value):
            return
        self.filled += 1
        if isinstance(value, list | dict):
            self.lists += isinstance(value, list)
            self.objects += isinstance(value, dict) or any(isinstance(item, dict) for item in value[:3])
            text = _joined(value)
        else:
            text = text_of(value)
        self.hashes.add(hash(text))
        if text in self.values or len(self.values) < _KEPT:
            self.values[text] += 1
        if len(self.examples) < _EXAMPLES and text not in self.examples:
            self.examples.append(text)
        self.characters += len(text)
        self.longest = max(self.longest, len(text))
        words, number, is_price, is_time, address, picture, flag, markup = _kinds(text)
        self.words += words
        self.numbers += number
        self.prices += is_price
        self.times += is_time
        self.addresses += address
        self.pictures += picture
        self.flags += flag or isinstance(value, bool)
        self.markup += markup


@functools.lru_cache(50_000)
def _kinds(text: str) -> tuple[int, bool, bool, bool, bool, bool, bool, bool]:
    """Return the number of words, and whether a text is a number, a price, a time, an address, a picture's name, a flag, markup."""
    digit = any(map(str.isdigit, text[:40]))
    short = digit and len(text) <= 40
    number = short and _NUMBER.fullmatch(text) is not None
    is_price = short and isinstance(price(text, "."), int | float)
    is_time = short and not number and ("-" in text or "/" in text or ":" in text) and instant(text) is not None
    address = _ADDRESS.match(text) is not None
    markup = "<" in text and ">" in text and re.search(r"</?[a-zA-Z][^<>]{0,200}>", text) is not None
    picture = _PICTURE.search(text) is not None
    return len(text.split()), number, is_price, is_time, address, picture, text.casefold() in _FLAG, markup


def is_nothing(value: Json) -> bool:
    """Return whether a value means that nothing is given."""
    if value is None or value in ([], {}):
        return True
    if isinstance(value, str):
        return len(value) < 12 and value.strip().casefold() in _NOTHING
    return isinstance(value, float) and value != value


def text_of(value: Json) -> str:
    """Return a scalar as text, stripped and cut."""
    if isinstance(value, str):
        return value[:TEXT].strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return repr(value)[:TEXT]


def _joined(value: Json) -> str:
    items = value if isinstance(value, list) else [f"{key}: {item}" for key, item in list(value.items())[:20]]
    return ", ".join(text_of(item) for item in items[:20])[:TEXT]


def paths(row: Row) -> Iterator[tuple[str, Json]]:
    """Yield each column of a row, and the paths within its nested objects, with their values."""
    for name, value in row.items():
        yield name, value
        if isinstance(value, dict):
            yield from _inner(name, value, _DEPTH - 1)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value[:_KEYS]):
            yield from _items(name, value[:_KEYS])


def _items(name: str, items: list[dict[str, Json]]) -> Iterator[tuple[str, Json]]:
    """Yield the values of a list of objects that have a value but no name, such as texts in several languages."""
    if any(
        "value" not in item or isinstance(item["value"], dict | list) or not _UNNAMED.isdisjoint(item) for item in items
    ):
        return
    tags = [str(item["language_tag"]) for item in items if "language_tag" in item]
    language = next((tag[:2] for tag in tags if tag.startswith("en")), "")
    if tags and language:
        chosen = [item["value"] for item in items if str(item.get("language_tag", "")).startswith(language)]
        yield f"{name}[language_tag={language}].value", chosen[0] if len(chosen) == 1 else chosen
    elif not tags:
        values = [item["value"] for item in items]
        yield f"{name}[].value", values[0] if len(values) == 1 else values


def _inner(name: str, value: dict[str, Json], depth: int) -> Iterator[tuple[str, Json]]:
    for key, item in list(value.items())[:_KEYS]:
        path = f"{name}.{key}"
        if isinstance(item, dict):
            if depth:
                yield from _inner(path, item, depth - 1)
        else:
            yield path, item


def profile(rows: Iterable[Row]) -> tuple[dict[str, ColumnProfile], int]:
    """Return the profiles of the columns by name, in order, and the number of columns beyond `MAX_COLUMNS`.

    Columns are read until `MAX_CELLS` cells were seen. Nested objects with many different keys are one column: their keys are
    names of attributes.
    """
    profiles: dict[str, ColumnProfile] = {}
    beyond: set[str] = set()
    cells = count = 0
    for row in rows:
        if cells >= MAX_CELLS:
            break
        count += 1
        for name, value in paths(row):
            cells += 1
            column = profiles.get(name)
            if column is None:
                if len(profiles) >= MAX_COLUMNS:
                    if len(beyond) < MAX_COLUMNS:
                        beyond.add(name)
                    continue
                column = profiles[name] = ColumnProfile(name)
            column.add(decoded(value) if isinstance(value, str) and value[:1] in ("[", "{") else value)
    for column in profiles.values():
        column.rows = count
    inner = Counter(_parent(name) for name in profiles if _parent(name) != name and _parent(name) in profiles)
    crowded = {
        parent
        for parent, number in inner.items()
        if number > _KEYS or (number > 3 and profiles[parent].objects and _is_sparse(parent, profiles))
    }
    kept = {name: column for name, column in profiles.items() if name in crowded or _parent(name) not in crowded}
    return kept, len(beyond)


def _parent(name: str) -> str:
    return re.split(r"[.\[]", name, maxsplit=1)[0]


def _is_sparse(parent: str, profiles: dict[str, ColumnProfile]) -> bool:
    """Return whether most keys of a column's objects are missing in most of them: they are names of attributes."""
    inner = [column for name, column in profiles.items() if name.startswith(f"{parent}.")]
    return sum(column.fill < 0.5 for column in inner) > len(inner) / 2
