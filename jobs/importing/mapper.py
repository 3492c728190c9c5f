"""Map a shop's rows to lines of the raw catalog, with our column names."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from jobs.errors import JobError
from jobs.importing.columns import ABSENT, Nulls, get_column, listed, matching_columns, unique
from jobs.importing.derived_columns import DerivedColumns, fill
from jobs.importing.formats.format_registry import Json, Row
from jobs.importing.formats.observations import Observations, shown
from jobs.importing.formats.sources import LINE_START, MAX_LINE
from jobs.importing.picture_index import PictureIndex
from jobs.importing.pictures.picture_store import RequestedPicture
from jobs.importing.row_filter import RowFilter, condition_texts, folded
from jobs.records.label_forms import UnreadableError, decoded, read_object, read_value
from jobs.records.rejected_lines import RejectedLine
from jobs.records.values import identity, instant, is_no_id
from schemas.derivations import WILDCARD
from schemas.mapping import Mapping

log = logging.getLogger(__name__)

_EXAMPLES: Final = 3  # values in a message
_UNREAD: Final = 100  # names of unreadable labels with a count of their own
_OTHERS: Final = "other names"  # the count of all further names
_SHOWN: Final = 120  # characters of a name or value in a message
_PICTURES: Final = 1_000  # pictures of one product
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))  # made once: `json.dumps` makes one for each record
REQUESTED: Final = ""  # key of a begun record's requested pictures; no column of ours has this name


class Pictures(Protocol):
    """Store of pictures by name, such as `PictureStore`."""

    def request(self, names: Sequence[str]) -> list[RequestedPicture]:
        """Store the pictures `names`, or begin their download."""

    def resolve(self, requested: Sequence[RequestedPicture]) -> list[tuple[str, str | None]]:
        """Return the path and hash of each requested picture."""


class Mapper:
    """Converter of a shop's rows to lines of the raw catalog."""

    def __init__(
        self,
        mapping: Mapping,
        pictures: Pictures | None,
        observations: Observations,
        index: PictureIndex | None = None,
    ) -> None:
        self._mapping, self._pictures, self._observations = mapping, pictures, observations
        self._index = index
        self._nulls = Nulls(mapping.null_values)
        self._is_null = self._nulls.is_null
        self._derived = DerivedColumns(mapping, self._nulls, observations)
        self._filter = RowFilter(mapping, self._derived, observations)
        self._globs = any(WILDCARD in column for column in mapping.labels)
        self._first_rows = {column: folded(texts) for column, texts in mapping.group_first.items()}
        self._times = self._unread_times = 0
        self._time_examples: list[str] = []
        self.unread: Counter[str] = Counter()  # labels in no known form, by name
        self._example: dict[str, Json] = {}
        self._objects: Counter[str] = Counter()  # values given, by column of `label_objects`
        self._no_objects: Counter[str] = Counter()  # those of them that are not label objects, by column

    def line(self, row: Row) -> bytes:
        """Return `row` as a line of the raw catalog, including the line end."""
        if isinstance(row, RejectedLine):
            line = row.encoded()
            return (line if len(line) <= MAX_LINE else replace(row, raw=row.raw[:LINE_START]).encoded()) + b"\n"
        if isinstance(row, bytes):
            # The only change to an unreadable line: many readers take a lone carriage return for a line end.
            return row.replace(b"\r", b" ") + b"\n"
        return self.finished_line(self.begun_record(row))

    def finished_line(self, record: dict[str, Json]) -> bytes:
        """Return a begun record as a line, with its pictures. Wait for those on the web."""
        record = self._with_pictures(record)
        # ASCII with escapes, so that the record stays one line of valid UTF-8 whatever characters the shop used.
        line = _ENCODER.encode(record).encode()
        if len(line) > MAX_LINE:
            detail = f"a record of more than {MAX_LINE:,} bytes as ASCII JSON"
            return self._observations.reject("line_too_long", detail, line[:LINE_START]).encoded() + b"\n"
        return line + b"\n"

    def record(self, row: dict[str, Json]) -> dict[str, Json]:
        """Return `row` with our own column names. Values of a wrong type stay as they are: import does not validate."""
        return self._with_pictures(self.begun_record(row))

    def _with_pictures(self, record: dict[str, Json]) -> dict[str, Json]:
        requested = record.pop(REQUESTED, None)
        if self._pictures is None or requested is None:
            return record
        pictures = self._pictures.resolve(requested)
        # The first that import has. A missing one is named only if there is no other.
        record["image_uri"], record["image_version"] = next(
            (each for each in pictures if each[1] is not None), pictures[0]
        )
        if len(pictures) > 1:
            record["image_uris"] = [path for path, _ in pictures]
        return record

    def begun_record(self, row: dict[str, Json]) -> dict[str, Json]:
        """Return the record of `row`, whose pictures on the web are being downloaded; `finished_line` waits for them."""
        mapping = self._mapping
        if mapping.derive:
            row = self._derived.extend(row)
        titles = (self._single(row, column) for column in mapping.title)
        record = {
            "product_id": identity(self._single(row, mapping.product_id)),
            "title": next((title for title in titles if title is not None), None),
            "brand": self._single(row, mapping.brand),
            "description": _join([self._text(row, column) for column in mapping.description]),
            "price": self._single(row, mapping.price),
            "image_uri": self._single(row, mapping.image_uri),
            "image_version": self._single(row, mapping.image_version),
            "updated_at": self._time(row),
            "attributes": self._labels(row),
        }
        if self._pictures is not None:
            names = self.picture_names(row)
            if isinstance(names, list):
                if names:
                    record[REQUESTED] = self._pictures.request(names)
            else:
                record["image_uri"] = names
        return record

    def keeps(self, row: Row) -> bool:
        """Return whether the mapping's `where` and `where_not` let `row` be read. Rejected lines always are."""
        return not isinstance(row, dict) or self._filter.keeps(row)

    def merge(self, rows: list[dict[str, Json]]) -> dict[str, Json]:
        """Merge the rows of one product into one row.

        Each column takes its first value given. Columns of labels and pictures take all different values as a list.
        """
        rows = self._with_first(rows)
        merged: dict[str, Json] = {}
        for row in rows:
            for column, value in row.items():
                if self._nulls.is_empty(merged.get(column)):
                    merged[column] = value
        several = self._mapping.source_columns(*self._mapping.several_values)
        if any(WILDCARD in column for column in several):
            several = tuple(dict.fromkeys(name for glob in several for name in matching_columns(merged, glob)))
        for column in several:  # a list of label objects may name an attribute several times
            given: dict[str, Json] = {}
            for row in rows:
                value = get_column(row, column)
                for each in listed(value):
                    if each is not ABSENT and not self._nulls.is_empty(each):
                        given.setdefault(json.dumps(each), each)
            if len(given) > 1:
                merged[column] = list(given.values())
        for column in self._mapping.columns if len(rows) > 1 else ():  # a path that the first row lacks
            if column not in merged and get_column(merged, column) is ABSENT:
                values = (get_column(row, column) for row in rows)
                if (value := next((each for each in values if each is not ABSENT), ABSENT)) is not ABSENT:
                    merged[column] = value
        return merged | self._derived.pairs_of(rows)

    def _with_first(self, rows: list[dict[str, Json]]) -> list[dict[str, Json]]:
        """Return the rows of a product, those that `group_first` describes before the others."""
        if not self._first_rows:
            return rows
        first = [
            all(condition_texts(self._derived.value(row, column)) & texts for column, texts in self._first_rows.items())
            for row in rows
        ]
        if not any(first):
            self._observations.note("products without a row that `group_first` describes, such as their parent's")
        return [row for row, is_first in zip(rows, first, strict=True) if is_first] + [
            row for row, is_first in zip(rows, first, strict=True) if not is_first
        ]

    def key(self, row: dict[str, Json]) -> str | None:
        """Return the key that all rows of this row's product share; None if the row has none."""
        value = self._derived.value(row, self._mapping.group_by)
        key = identity(value[0] if isinstance(value, list) and value else value)
        return None if key is None or key == "" or is_no_id(key) else str(key)

    def check(self) -> None:
        """Log the unreadable labels and times.

        Raises:
            JobError: the mapping's `where` left out all rows, more than a few times in `updated_at` cannot be read, or most
                values of a `label_objects` column are not label objects.
        """
        self.log_unread()
        if values := self._filter.left_out_everything():
            raise JobError(
                f"`where` and `where_not` of the mapping leave out every row: {values}; nothing was imported: correct them"
            )
        for column, count in self._no_objects.items():
            if count > 2 and 2 * count > self._objects[column]:
                raise JobError(
                    f"{count:,} of {self._objects[column]:,} values of {column!r} are not label objects, such as "
                    f"{shown(json.dumps(self._example.get(column)))}; nothing was imported: the shop's own labels would count as "
                    "missing. Name the column under `labels` where it holds one label, or leave it out of `label_objects`"
                )
        unread, given = self._unread_times, self._times
        if unread > max(2, given // 100) or 2 * unread > given:
            written = self._mapping.updated_at_format
            raise JobError(
                f"{unread:,} of {given:,} values ({100 * unread / given:.1f} %) of {self._mapping.updated_at!r} are not "
                f"{f'times of the form {written!r}' if written else 'unambiguous times'}, such as "
                f"{', '.join(self._time_examples)}; nothing was imported: the newer of two records could not be determined. "
                'Set `updated_at_format` in the mapping, such as "%d/%m/%Y %H:%M", list words that mean "no time" under '
                "`null_values`, or leave `updated_at` out"
            )
        if unread:
            log.warning(
                "import-catalog: %s of %s values of %r are not times, such as %s",
                *(f"{unread:,}", f"{given:,}", self._mapping.updated_at, ", ".join(self._time_examples)),
            )

    def _value(self, row: dict[str, Json], column: str) -> Json:
        value = get_column(row, column) if column else None
        return None if value is ABSENT or self._is_null(value) else value

    def _single(self, row: dict[str, Json], column: str) -> Json:
        """Return the value of a column that has one. Of the values of a derived or merged column it is the first."""
        value = self._value(row, column)
        if isinstance(value, list) and self._mapping.may_hold_list(column):
            return next((item for item in value if not self._nulls.is_empty(item)), None)
        return value

    def _text(self, row: dict[str, Json], column: str) -> Json:
        """Return the value of a column of texts. Several texts of a derived column become paragraphs."""
        value = self._value(row, column)
        return _join(value) if isinstance(value, list) and self._mapping.may_hold_list(column) else value

    def _time(self, row: dict[str, Json]) -> Json:
        """Return the row's time in ISO 8601, UTC. Count a time that cannot be read and return it unchanged."""
        value = self._single(row, self._mapping.updated_at)
        if value is None:
            return None
        self._times += 1
        if (time := instant(value, self._mapping.updated_at_format)) is not None:
            return time
        self._unread_times += 1
        if len(self._time_examples) < _EXAMPLES:
            self._time_examples.append(shown(value))
        return value

    def _labels(self, row: dict[str, Json]) -> dict[str, Json]:
        """Return the row's labels by name, each a text or a list of texts.

        A label in no known form keeps its value, and the validate step reports it.
        """
        known: dict[str, list[str]] = {}
        unread: dict[str, Json] = {}
        for column in self._label_columns(row):
            value = self._value(row, column)
            try:
                texts = read_value(decoded(value) if isinstance(value, str) else value, column)
            except UnreadableError:
                if isinstance(value, str):
                    texts = [value]
                else:
                    unread[column], texts = value, []
            known.setdefault(column, []).extend(texts)
        for column in self._mapping.label_objects:
            given = self._value(row, column)
            labels, rest = read_object(given)
            for name, texts in labels.items():
                known[name] = list(dict.fromkeys([*known.get(name, ()), *texts]))
            unread |= {name: value for name, value in rest.items() if name}
            self._objects[column] += given is not None
            if "" in rest:
                self._no_objects[column] += 1
                unread[column] = given
        for name, value in unread.items():
            self._count_unread(name, value)
        labels = {name: parts for name, texts in known.items() if (parts := self._split(texts))}
        unread = {name: _wrap_unread(value, name) for name, value in unread.items()}
        return unread | {name: parts[0] if len(parts) == 1 else parts for name, parts in labels.items()}

    def _label_columns(self, row: dict[str, Json]) -> Iterable[str]:
        """Return the columns of labels, with each glob replaced by the columns of the row that it matches."""
        if not self._globs:
            return self._mapping.labels
        return dict.fromkeys(name for glob in self._mapping.labels for name in matching_columns(row, glob))

    def _split(self, texts: list[str]) -> list[Json]:
        """Split a label's texts at the mapping's separator, and drop the parts that mean "not given"."""
        separator = self._mapping.list_separator
        parts: list[str] = []
        for text in texts:
            parts += (part.strip() for part in text.split(separator)) if separator and separator in text else [text]
        return [part for part in parts if not self._is_null(part)]

    def _count_unread(self, name: str, value: Json) -> None:
        self._observations.note("labels that cannot be read")
        if name in self.unread or len(self.unread) < _UNREAD:
            self.unread[name] += 1
            self._example.setdefault(name, value)
        else:
            self.unread[_OTHERS] += 1

    def log_unread(self) -> None:
        """Log the unreadable labels by name, each with one example."""
        for name, count in self.unread.most_common():
            example = json.dumps(self._example[name])[:_SHOWN] if name in self._example else ""
            log.warning(
                "import-catalog: %s labels of %r cannot be read, such as %s", f"{count:,}", name[:_SHOWN], example
            )

    def picture_names(self, row: dict[str, Json]) -> Json:
        """Return the names of the row's pictures in the shop's order; a value that cannot be a name unchanged."""
        parts: dict[str, list[Json]] = {}
        for column in self._mapping.picture_columns:
            value = self._value(row, column)
            names = [name for name in value if not self._nulls.is_empty(name)] if isinstance(value, list) else [value]
            if names in ([], [None]):
                return []
            if (wrong := next((name for name in names if not _is_name(name)), None)) is not None:
                return wrong
            parts[column] = [str(identity(name)) for name in names]
        longest = min(max(map(len, parts.values()), default=0), _PICTURES)
        names = [fill(self._mapping.picture_name, parts, position) for position in range(longest)]
        if self._index is not None:
            (ids,) = parts.values()
            names = [self._index.path(each) or name for each, name in zip(ids, names, strict=False)]
        return unique(names)


def _is_name(value: Json) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _wrap_unread(value: Json, name: str) -> Json:
    """Wrap an unreadable object if `read_value` would read it once it stands alone under its name.

    For example, `read_value` would read {"name": "hue", "content": "Teal"} as the value "hue".
    """
    if not isinstance(value, dict):
        return value
    try:
        read_value(value, name)
    except UnreadableError:
        return value
    return {"unread": value}


def _join(values: list[Json]) -> Json:
    given = [value for value in values if value is not None]
    if len(given) <= 1:
        return given[0] if given else None
    return "\n\n".join(given) if all(isinstance(value, str) for value in given) else given
