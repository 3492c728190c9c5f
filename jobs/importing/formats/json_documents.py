"""Reader of JSON documents: an array of records, an array within an object, and objects one after another.

Each record is decoded as a line of JSON lines is. A streaming parser such as ijson stops at the first record that is not JSON,
takes the last of two values under one name, and does not bound a text.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, TypeAlias

from jobs.importing.formats.json_lines import DECODER, decoder_of, describe_error
from jobs.importing.formats.observations import Observations, StructureError, shown
from jobs.importing.formats.sniffing import HAS_ID, column_score, describe_undecodable
from jobs.importing.formats.sources import LINE_START, MAX_LINE, SAMPLE, Source
from jobs.records.rejected_lines import RejectedLine
from schemas.mapping import Mapping

Json: TypeAlias = Any

_CHUNK: Final = 2**18  # characters read at once
_DEPTH: Final = 20  # objects within objects that are searched for records
_BLANKS: Final = re.compile(r"[ \t\r\n\ufeff\x1e]*")
_TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\]]', re.DOTALL)
_STRING_TOKEN: Final = re.compile(r'"|\\.', re.DOTALL)
_SCALAR: Final = re.compile(r"[^\s,\]}]+")
_TRUNCATED: Final = (
    "the JSON document ends in the middle; nothing was imported: copy the file again, or export it again"
)


class _End(Exception):
    """Signal for the end of the text that may be examined."""


class _Text:
    """A JSON text that is read in chunks, with the reader's position."""

    def __init__(self, file: BinaryIO, encoding: str, limit: int | None = None) -> None:
        self._file = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="")
        self._limit = limit  # characters after which `_End` is raised
        self.text, self.position, self.line = "", 0, 1
        self._read = 0
        self._counted = 0  # position up to which lines are counted
        self._indent = ""  # line end and blanks before the next character; empty if it does not begin its line

    def close(self) -> None:
        """Detach from the file without closing it; the caller owns it."""
        self._file.detach()

    def more(self) -> bool:
        """Read on; drop what lies before the position. Return False at the end of the file."""
        if self._limit is not None and self._read > self._limit:
            raise _End
        kept = len(self.text) - self.position
        chunk = self._file.read(max(_CHUNK, kept))  # doubled, so that a long record is decoded few times
        self.current_line()
        self.text, self.position, self._counted = self.text[self.position :] + chunk, 0, 0
        self._read += len(chunk)
        return bool(chunk)

    def current_line(self) -> int:
        """Return the number of the line at the position, counted from 1."""
        self.line += self.text.count("\n", self._counted, self.position)
        self._counted = max(self._counted, self.position)
        return self.line

    def peek(self) -> str:
        """Return the next character that is not blank, without consuming it; an empty text at the end."""
        while True:
            blanks = _BLANKS.match(self.text, self.position)
            if blanks and blanks[0]:
                self.position, line_end = blanks.end(), blanks[0].rfind("\n")
                self._indent = blanks[0][line_end:] if line_end >= 0 else ""
            if self.position < len(self.text):
                return self.text[self.position]
            if not self.more():
                return ""

    def take(self, expected: str) -> str:
        """Consume and return the next character. Raises StructureError if it is not one of `expected`."""
        character = self.peek()
        if not character:
            raise StructureError(_TRUNCATED)
        if character not in expected:
            around = self.text[self.position : self.position + 40]
            raise StructureError(
                f"line {self.current_line()}: not JSON: {' or '.join(expected)} expected, but {shown(around)}; nothing was "
                "imported: correct the line, or export the file again"
            )
        self.position += 1
        self._indent = ""
        return character

    def value(self, decoder: json.JSONDecoder) -> tuple[Json, str, int]:
        """Consume the next value.

        Returns:
            The value (`_End` if it is not JSON or too long), its text (only the start of a long one), its length.
        """
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.position)
                if end < len(self.text) or self.text[end - 1] in '}]"' or not self.more():
                    text, self.position = self.text[self.position : end], end
                    return value, text, len(text)
                continue
            except (ValueError, RecursionError):
                if (stop := self._next_record(self._end())) is not None:
                    text, self.position = self.text[self.position : stop], stop
                    return _End, text, len(text)
            if len(self.text) - self.position > MAX_LINE:
                start = self.text[self.position : self.position + LINE_START]
                return _End, start, self.skip()
            if not self.more():
                raise StructureError(_TRUNCATED)

    def _next_record(self, end: int | None) -> int | None:
        """Return `end`, or where the next record begins its line if that is before: a broken value hides its end."""
        if not self._indent or self.text[self.position] != "{":
            return end
        following = re.compile(rf",?[ \t\r]*{re.escape(self._indent)}\{{").search(
            self.text, self.position + 1, len(self.text) if end is None else end
        )
        return following.start() if following else end

    def _end(self) -> int | None:
        """Return where the value at the position ends; None if the text read so far does not hold its end."""
        if self.text[self.position] not in '{["':
            scalar = _SCALAR.match(self.text, self.position)
            end = scalar.end() if scalar else self.position + 1
            return end if end < len(self.text) else None
        depth = 0
        for token in _TOKEN.finditer(self.text, self.position):
            mark = token[0]
            if mark == '"':
                return None
            depth += (mark in "{[") - (mark in "}]")
            if depth == 0:
                return token.end()
        return None

    def skip(self) -> int:
        """Consume the next value without keeping it; return its length."""
        if self.peek() not in ("{", "[", '"'):
            return self.value(DECODER)[2]
        depth, quoted, length = 0, False, 0
        while True:
            for token in iter(lambda: (_STRING_TOKEN if quoted else _TOKEN).search(self.text, self.position), None):  # noqa: B023
                length += token.end() - self.position
                self.position, mark = token.end(), token[0]
                if mark == '"':
                    quoted = not quoted
                elif not quoted:
                    depth += (mark in "{[") - (mark in "}]")
                if depth == 0 and not quoted:
                    return length
            rest = len(self.text) - self.position
            keep = quoted and rest > 0 and self.text.endswith("\\")  # the escape of the next chunk's first character
            length += rest - keep
            self.position = len(self.text) - keep
            if not self.more():
                raise StructureError(_TRUNCATED)


def is_document(sample: str, mapping: Mapping, whole: bool) -> bool:
    """Return whether a text that begins with a brace is a JSON document, not JSON lines."""
    if mapping.records_at:
        return True
    text = sample.lstrip("\ufeff\x1e \t\r\n")
    first, _, rest = text.partition("\n")
    second = rest.lstrip()
    if not second and not whole and "\n" not in text:
        return bool(_sampled_arrays(text))
    try:
        record = DECODER.decode(first.strip().rstrip(","))
    except (ValueError, RecursionError):
        # A damaged first line, or an object over several lines.
        return not second.startswith("{") and re.match(r'\{\s*$|\{\s*".*[\[,{]$', first.strip()) is not None
    return not second and isinstance(record, dict) and not column_score(record, mapping) and bool(_sampled_arrays(text))


def _sampled_arrays(text: str) -> list[tuple[str, dict[str, Json]]]:
    return find_arrays(_Text(io.BytesIO(text.encode(errors="surrogateescape")), "utf-8", len(text)))


def find_arrays(text: _Text) -> list[tuple[str, dict[str, Json]]]:
    """Return the path and the first record of each array of objects, in the first document of `text`, outside of others."""
    arrays: list[tuple[str, dict[str, Json]]] = []

    def search(path: tuple[str, ...]) -> None:
        character = text.peek()
        if character == "[":
            text.position += 1
            if text.peek() == "{":
                record = text.value(DECODER)[0]
                arrays.append((".".join(path), record if isinstance(record, dict) else {}))
            _finish_array(text)
        elif character == "{" and len(path) < _DEPTH:
            for name in _members(text):
                search((*path, name))
        else:
            text.skip()

    with contextlib.suppress(_End, StructureError):  # the reader says what is wrong
        search(())
    return arrays


def _finish_array(text: _Text) -> None:
    """Consume the rest of an array, from one of its values or the comma after it."""
    while (character := text.peek()) != "]":
        if not character:
            raise StructureError(_TRUNCATED)
        if character in ",:":
            text.position += 1
        else:
            text.skip()
    text.position += 1


def _members(text: _Text) -> Iterator[str]:
    """Yield the names of the object at the position. The caller consumes each value before it asks for the next name."""
    text.take("{")
    if text.peek() == "}":
        text.position += 1
        return
    while True:
        if text.peek() != '"':
            text.take('"')
        name = text.value(DECODER)[0]
        text.take(":")
        if not text.peek():
            raise StructureError(_TRUNCATED)
        yield name if isinstance(name, str) else ""
        if text.take(",}") == "}":
            return


def choose_array(source: Source, mapping: Mapping) -> str | None:
    """Return the path of the array of records, empty for the document itself; None if the objects themselves are records.

    Raises:
        StructureError: several arrays may be the records.
    """
    if mapping.records_at:
        return mapping.records_at
    with source.open() as file:
        text = _Text(file, source.encoding, SAMPLE)
        try:
            if text.peek() == "[":
                return ""
            own = _first_object(source.sample)
            if own is not None and column_score(own, mapping) >= HAS_ID:
                return None
            arrays = find_arrays(text)
        except _End:
            arrays = []
        finally:
            text.close()
    if not arrays:
        return None
    best = max(column_score(record, mapping) for _, record in arrays)
    paths = list(dict.fromkeys(path for path, record in arrays if column_score(record, mapping) == best))
    if len(paths) > 1 and mapping.columns:
        raise StructureError(
            f"a JSON document with several arrays of objects: {', '.join(path[:60] for path in paths[:10])}; nothing was "
            "imported: set `records_at` in the mapping to the one that holds the records"
        )
    return paths[0] if mapping.columns else max(arrays, key=lambda array: len(array[1]))[0]


def _first_object(sample: str) -> dict[str, Json] | None:
    try:
        value, _ = DECODER.raw_decode(sample, len(sample) - len(sample.lstrip("\ufeff\x1e \t\r\n")))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_json(
    file: BinaryIO, source: Source, mapping: Mapping, observations: Observations
) -> Iterator[dict[str, Json] | RejectedLine]:
    """Yield each record of a JSON document, or a rejected line if it is not a JSON object.

    Raises:
        StructureError: the document ends in the middle, is not JSON between its records, or has no such array.
    """
    path = choose_array(source, mapping)
    text = _Text(file, source.encoding)
    try:
        yield from _Records(text, path, source, mapping, observations).read()
    finally:
        text.close()


class _Records:
    """Reader of the records at one path of a JSON document."""

    def __init__(
        self, text: _Text, path: str | None, source: Source, mapping: Mapping, observations: Observations
    ) -> None:
        self._text, self._path, self._source, self._mapping = text, path, source, mapping
        self._observations = observations
        self._decoder = decoder_of(lambda _: observations.note("NaN or Infinity, read as not given"))
        self._arrays = 0
        self._others: dict[str, None] = {}  # names of arrays of objects beside the records

    def read(self) -> Iterator[dict[str, Json] | RejectedLine]:
        text = self._text
        while text.peek():
            if self._path is None:
                yield self._record()
            else:
                yield from self._find(tuple(self._path.split(".")) if self._path else ())
            if text.peek() == ",":
                text.position += 1
        if self._path is not None and not self._arrays:
            raise StructureError(
                f"no array at {self._path!r}, which the mapping's `records_at` names; nothing was imported: correct it"
            )
        if self._others:
            self._observations.note(
                f"arrays beside the records, not read: {', '.join(self._others)}", len(self._others)
            )

    def _find(self, path: tuple[str, ...]) -> Iterator[dict[str, Json] | RejectedLine]:
        text = self._text
        character = text.peek()
        if not path and character == "[":
            self._arrays += 1
            yield from self._array()
        elif not path and character == "{":
            self._arrays += 1
            yield self._record()
        elif path and character == "{":
            for name in _members(text):
                # A name may contain dots itself.
                steps = next((n for n in range(len(path), 0, -1) if name == ".".join(path[:n])), 0)
                if steps:
                    yield from self._find(path[steps:])
                else:
                    self._pass_over(name)
        else:
            text.skip()

    def _array(self) -> Iterator[dict[str, Json] | RejectedLine]:
        text = self._text
        text.take("[")
        if text.peek() == "]":
            text.position += 1
            return
        while True:
            yield self._record()
            if text.peek() == "{":  # no comma after a broken record
                continue
            if text.take(",]") == "]":
                return
            if text.peek() == "]":  # a comma after the last record
                text.position += 1
                return

    def _record(self) -> dict[str, Json] | RejectedLine:
        observations, text = self._observations, self._text
        if not text.peek():
            raise StructureError(_TRUNCATED)
        observations.count_row()
        observations.line = text.current_line()
        value, raw, length = text.value(self._decoder)
        if length > MAX_LINE:
            return self._reject("line_too_long", f"a record of more than {MAX_LINE:,} characters", raw[:LINE_START])
        if not raw.isascii():
            try:
                raw.encode()
            except UnicodeEncodeError:
                data = raw.encode(self._source.encoding, errors="surrogateescape")
                return self._reject("bad_utf8", describe_undecodable(self._source.encoding, data), raw)
        if value is _End:
            return self._reject("not_json", describe_error(raw), raw)
        return value if isinstance(value, dict) else self._reject("not_json", "JSON, but not an object", raw)

    def _reject(self, reason: str, detail: str, raw: str) -> RejectedLine:
        return self._observations.reject(reason, detail, raw.encode("utf-8", errors="surrogateescape"))

    def _pass_over(self, name: str) -> None:
        """Consume a value beside the records. Raises StructureError if it is another array of such records."""
        text = self._text
        if text.peek() != "[":
            text.skip()
            return
        text.position += 1
        if text.peek() == "{":
            record = text.value(DECODER)[0]
            if len(self._others) < 10:
                self._others[name[:60]] = None
            if (
                not self._mapping.records_at
                and isinstance(record, dict)
                and column_score(record, self._mapping) >= HAS_ID
            ):
                raise StructureError(
                    f"a JSON document with several arrays of records: {self._path} and {name[:60]}; nothing was imported: "
                    "set `records_at` in the mapping to the one that holds the records"
                )
        _finish_array(text)
