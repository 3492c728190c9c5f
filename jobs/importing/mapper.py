"""Turn a shop's rows into lines of the raw catalog, in our names."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jobs.errors import JobError
from jobs.importing.formats import Json, Row, finite
from jobs.importing.picture_store import PictureStore
from jobs.label_forms import UnreadableError, decoded, read_object, read_value
from schemas.mapping import Mapping

log = logging.getLogger(__name__)

_UNREAD: Final = 100  # names of labels that cannot be read that are told apart
_OTHERS: Final = "other names"
_SHOWN: Final = 120  # characters of a name or value in a message
_NUMBER: Final = re.compile(r"\s*[+-]?(\d{1,300}(\.\d{0,300})?|\.\d{1,300})([eE][+-]?\d{1,3})?\s*")
_BRACES: Final = re.compile(r"\{([^{}]+)\}")


class Mapper:
    """Turns the shop's rows into lines of the raw catalog."""

    def __init__(self, mapping: Mapping, pictures: PictureStore | None, *, numbers_are_text: bool) -> None:
        self._mapping = mapping
        self._pictures = pictures
        self._numbers_are_text = numbers_are_text  # CSV
        self._nulls = frozenset(text.strip() for text in mapping.null_values)
        self._unseen = set(mapping.columns)  # columns that no record had so far
        self._columns: dict[str, None] = {}  # columns that records had, for the error's message
        self._records = self._lines = 0
        self.unread: Counter[str] = Counter()  # labels of no known form, by name
        self._example: dict[str, Json] = {}

    def line(self, row: Row) -> bytes:
        """Return `row` as a line of the raw catalog, its end included."""
        self._lines += 1
        if isinstance(row, bytes):
            # The one change to a line that cannot be read: many readers take a lone carriage return for a line end.
            return row.replace(b"\r", b" ") + b"\n"
        self._records += 1
        if self._unseen:
            self._unseen = {column for column in self._unseen if get_column(row, column) is ABSENT}
            if len(self._columns) < 200:
                self._columns.update(dict.fromkeys(row))
        # ASCII, with escapes: whatever characters the shop used, a line stays one line and is valid UTF-8.
        return json.dumps(self.record(row), separators=(",", ":")).encode() + b"\n"

    def record(self, row: dict[str, Json]) -> dict[str, Json]:
        """Return `row` by our own names. Nothing is judged: values of a wrong type stay as they are."""
        mapping = self._mapping
        titles = (self._value(row, column) for column in mapping.title)
        record = {
            "product_id": _identity(self._value(row, mapping.product_id)),
            "title": next((title for title in titles if title is not None), None),
            "brand": self._value(row, mapping.brand),
            "description": _joined([self._value(row, column) for column in mapping.description]),
            "price": self._value(row, mapping.price),
            "image_uri": self._value(row, mapping.image_uri),
            "image_version": self._value(row, mapping.image_version),
            "updated_at": self._value(row, mapping.updated_at),
            "attributes": self._labels(row),
        }
        if self._numbers_are_text:
            record["price"] = _number(record["price"])
        if self._pictures is not None and not mapping.image_uri:
            name = self.picture_name(row)
            if isinstance(name, str):
                record["image_uri"], record["image_version"] = self._pictures.add(name)
            else:
                record["image_uri"] = name
        return record

    def check(self, files: Sequence[Path]) -> None:
        """Raise JobError where the files had no record at all, or lack columns that the mapping names."""
        self.log_unread()
        names = ", ".join(str(file) for file in files)
        if not self._lines:
            raise JobError(f"{names}: no records in it; nothing was imported")
        if not self._records:
            return  # not one line could be read: validate says so, with the lines
        lacking = self._unseen - set(self._mapping.optional)
        if not any(column not in self._unseen for column in (*self._mapping.title, *self._mapping.description)):
            lacking |= {*self._mapping.title, *self._mapping.description}
        if lacking:
            raise JobError(
                f"{names}: no record has the columns {sorted(lacking)} that the mapping names; the columns are "
                f"{sorted(self._columns)}. Correct the mapping, or list them under `optional`"
            )

    def _value(self, row: dict[str, Json], column: str) -> Json:
        value = get_column(row, column) if column else None
        return None if value is ABSENT or self._is_null(value) else value

    def _is_null(self, value: Json) -> bool:
        return value is None or (isinstance(value, str) and value.strip() in self._nulls)

    def _labels(self, row: dict[str, Json]) -> dict[str, Json]:
        """Return the row's labels by name: a text, or a list of them; what has no known form stays for validate to report."""
        found: dict[str, list[str]] = {}
        unread: dict[str, Json] = {}
        for column in self._mapping.labels:
            value = self._value(row, column)
            try:
                texts = read_value(decoded(value) if isinstance(value, str) else value, column)
            except UnreadableError:
                if isinstance(value, str):
                    texts = [value]
                else:
                    unread[column], texts = value, []
            found.setdefault(column, []).extend(texts)
        for column in self._mapping.label_objects:
            given = self._value(row, column)
            labels, rest = read_object(given)
            for name, texts in labels.items():
                found[name] = list(dict.fromkeys([*found.get(name, ()), *texts]))
            unread |= {name: value for name, value in rest.items() if name}
            if "" in rest:
                unread[column] = given
        for name, value in unread.items():
            self._count_unread(name, value)
        labels = {name: parts for name, texts in found.items() if (parts := self._split(texts))}
        return unread | {name: parts[0] if len(parts) == 1 else parts for name, parts in labels.items()}

    def _split(self, texts: list[str]) -> list[Json]:
        """Return the texts of a label, cut at the mapping's separator, without those that mean: nothing given."""
        separator = self._mapping.list_separator
        parts: list[str] = []
        for text in texts:
            parts += (part.strip() for part in text.split(separator)) if separator and separator in text else [text]
        return [part for part in parts if not self._is_null(part)]

    def _count_unread(self, name: str, value: Json) -> None:
        if name in self.unread or len(self.unread) < _UNREAD:
            self.unread[name] += 1
            self._example.setdefault(name, value)
        else:
            self.unread[_OTHERS] += 1

    def log_unread(self) -> None:
        """Log the labels that cannot be read, by name, each with one example."""
        for name, count in self.unread.most_common():
            shown = json.dumps(self._example[name])[:_SHOWN] if name in self._example else ""
            log.warning(
                "import-catalog: %s labels of %r cannot be read, such as %s", f"{count:,}", name[:_SHOWN], shown
            )

    def picture_name(self, row: dict[str, Json]) -> Json:
        """Return the name of the row's picture; None where it has none; a value that is no name as it is."""
        parts = {column: self._value(row, column) for column in self._mapping.picture_columns}
        for column, value in parts.items():
            if value is None or not isinstance(value, str | int | float) or isinstance(value, bool):
                return value
            parts[column] = _identity(value)
        return _BRACES.sub(lambda match: parts[match.group(1)], self._mapping.picture_name)


ABSENT: Final = object()


def get_column(row: dict[str, Json], column: str) -> Json:
    """Return the value of `column`, through nested objects by dots; `ABSENT` where there is none."""
    if column in row:
        return row[column]
    node: Json = row
    for step in column.split("."):
        if not isinstance(node, dict) or step not in node:
            return ABSENT
        node = node[step]
    return node


def _identity(value: Json) -> Json:
    """Return a number as the text it is known by (1163.0, as spreadsheets write ids, as 1163); all else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if value == int(value) else str(value)


def _joined(values: list[Json]) -> Json:
    given = [value for value in values if value is not None]
    if len(given) <= 1:
        return given[0] if given else None
    return "\n\n".join(given) if all(isinstance(value, str) for value in given) else given


def _number(value: Json) -> Json:
    """Return the number that a CSV cell writes, or the cell as it is where that is none."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = finite(value.strip())
        return int(number) if isinstance(number, float) and number.is_integer() and "." not in value else number
    return value
