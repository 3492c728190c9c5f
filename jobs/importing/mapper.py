"""Turn a shop's rows into lines of the raw catalog, in our names."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jobs.errors import JobError
from jobs.importing.formats import DECODER, Json, Row, finite
from jobs.importing.picture_store import PictureStore
from schemas.mapping import Mapping

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
        labels: dict[str, Json] = {}
        for column in self._mapping.labels:
            if (label := self._label(self._value(row, column))) is not None:
                labels[column] = label
        for column in self._mapping.label_objects:
            found = self._value(row, column)
            if self._numbers_are_text and isinstance(found, str):
                with contextlib.suppress(ValueError, RecursionError):  # an object in a CSV cell
                    found = DECODER.decode(found)
            if isinstance(found, dict):
                for name, value in found.items():
                    labels.setdefault(name, self._label(value))
            else:
                labels.setdefault(column, found)  # no object: kept under the column's name, for validate to report
        return {name: value for name, value in labels.items() if value is not None}

    def _label(self, value: Json) -> Json:
        separator = self._mapping.list_separator
        if isinstance(value, str) and separator and separator in value:
            value = [part.strip() for part in value.split(separator)]
        if isinstance(value, list):
            value = [item for item in value if not self._is_null(item)] or None
        return None if self._is_null(value) else value

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
