"""Reader of JSON lines, one object per line. Unreadable lines pass through byte for byte; validate reports the reason."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TypeAlias

from jobs.importing.formats.observations import Observations, StructureError, shown
from jobs.importing.formats.sniffing import describe_text, describe_undecodable
from jobs.importing.formats.sources import LINE_START, MAX_LINE, Source
from jobs.records.json_objects import NameTwiceError, unique
from jobs.records.rejected_lines import RejectedLine

Json: TypeAlias = Any

_BLANK: Final = re.compile(r"[ \t\r\n\x1e]*")  # including the record separator of RFC 7464
_MARKS: Final = b"\xef\xbb\xbf"


def finite(text: str) -> float | str:
    """Return the number, or its text if it overflows to infinity, which JSON cannot represent."""
    number = float(text)
    return text if number in (float("inf"), float("-inf")) else number


def decoder_of(constant: Callable[[str], None]) -> json.JSONDecoder:
    """Return a decoder that rejects objects with a duplicate name, whose meant value is unknown.

    NaN, Infinity and -Infinity, which are not JSON, decode to None; `constant` is called with each.
    """
    return json.JSONDecoder(object_pairs_hook=unique, parse_float=finite, parse_constant=constant)


DECODER: Final = decoder_of(lambda _: None)


def read_json_lines(
    file: BinaryIO, source: Source, observations: Observations
) -> Iterator[dict[str, Json] | bytes | RejectedLine]:
    """Yield each line's object, or the line itself if it is not text, JSON or an object. Skip blank lines.

    Raises:
        StructureError: the file is in another format or encoding.
    """
    if kind := describe_text(source.sample):
        raise StructureError(f"{kind}; nothing was imported: correct `format` in the mapping, or leave it out")
    decoder = decoder_of(lambda _: observations.note("NaN or Infinity, read as not given"))
    foreign, native, example = 0, 0, ""
    for number, line, length in _lines(file, source.encoding):
        observations.line = number
        if length > MAX_LINE:
            observations.count_row()
            yield observations.reject("line_too_long", f"a line of more than {MAX_LINE:,} bytes", line)
            continue
        stripped = line.removeprefix(_MARKS)
        if not stripped.strip():
            continue
        try:
            text = stripped.decode()
        except UnicodeDecodeError:
            foreign += 1
            problem = describe_undecodable(source.encoding, line)
            example = example or f"{problem} (line {number:,}: {shown(line)})"
            observations.count_row()
            observations.count_rejected(problem, line)
            yield line.rstrip(b"\r\n")
            continue
        native += not text.isascii()
        objects = _objects(text, decoder, observations)
        for record in objects if isinstance(objects, list) else [line.rstrip(b"\r\n")]:
            observations.count_row()
            yield record
        if isinstance(objects, str):
            observations.count_rejected(objects, line)
    if foreign > 2 and foreign > native:
        raise StructureError(f"{foreign:,} lines are {example}; nothing was imported: set `encoding` in the mapping")


def _lines(file: BinaryIO, encoding: str) -> Iterator[tuple[int, bytes, int]]:
    """Yield each line's number, its UTF-8 bytes (only the start of a line that is too long) and its length in bytes."""
    if encoding != "utf-8":
        file = _Utf8(file, encoding)  # type: ignore[assignment]
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        length = len(line)
        if length > MAX_LINE and not line.endswith(b"\n"):
            line = line[:LINE_START]
            while more := file.readline(MAX_LINE):
                length += len(more)
                if more.endswith(b"\n"):
                    break
        yield number, line[: LINE_START if length > MAX_LINE else None], length


class _Utf8:
    """Lines of a file in another encoding, converted to UTF-8. Undecodable bytes stay, so their lines are not valid UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="\n")

    def readline(self, limit: int) -> bytes:
        return self._text.readline(limit).encode(errors="surrogateescape")


def _objects(text: str, decoder: json.JSONDecoder, observations: Observations) -> list[dict[str, Json]] | str:
    """Return the objects that a line holds, usually one, or the reason why it holds none."""
    try:
        record = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        if objects := _several(text):
            commas = len(objects) == 1
            observations.note("lines that end in a comma" if commas else "records on a line with others", len(objects))
            return objects
        return _reason(error)
    return [record] if isinstance(record, dict) else "JSON, but not an object"


def describe_error(text: str) -> str:
    """Return why a text is not a record."""
    try:
        DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return _reason(error)
    return "not JSON"


def _reason(error: Exception) -> str:
    # Also numbers that are too long and brackets that are nested too deeply.
    return "a name occurs twice" if isinstance(error, NameTwiceError) else "not JSON"


def _several(text: str) -> list[dict[str, Json]]:
    """Return the objects of a line that end in a comma or follow each other; none if the line has anything else."""
    end = text.rstrip()
    objects: list[dict[str, Json]] = []
    position = 0
    try:
        while True:
            position = _skip(end, position)
            if position == len(end):
                return objects
            record, position = DECODER.raw_decode(end, position)
            if not isinstance(record, dict):
                return []
            objects.append(record)
            position = _skip(end, position)
            if end[position : position + 1] == ",":
                position += 1
    except (ValueError, RecursionError):
        return []


def _skip(text: str, position: int) -> int:
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position


def find_wrapper(record: dict[str, Json]) -> str | None:
    """Return the name under which an object holds a list of objects, which may be the records; None if it has none."""
    for name, value in record.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value[:5]):
            return name
    return None
