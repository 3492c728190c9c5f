"""Read JSON lines: one object a line. What cannot be read goes on byte for byte, for validate to tell why."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, TypeAlias

from jobs.importing.formats.noticed import Noticed, StructureError, shown
from jobs.importing.formats.sniffing import describe_text, not_in
from jobs.importing.formats.sources import LINE_START, MAX_LINE, Source
from jobs.records.json_objects import unique
from jobs.records.rejected_lines import RejectedLine

Json: TypeAlias = Any

_BLANK: Final = re.compile(r"[ \t\r\n\x1e]*")
_MARKS: Final = b"\xef\xbb\xbf"


def finite(text: str) -> float | str:
    """Return the number, or its text where it is too large for one: no JSON that we write may say Infinity."""
    number = float(text)
    return text if number in (float("inf"), float("-inf")) else number


def _decoder(constant: Callable[[str], None]) -> json.JSONDecoder:
    """Return a decoder that refuses a name that is there twice: which value is meant is not known.

    NaN, Infinity and -Infinity, which JSON does not have, mean that no value is given; `constant` is told of each.
    """
    return json.JSONDecoder(object_pairs_hook=unique, parse_float=finite, parse_constant=constant)


DECODER: Final = _decoder(lambda _: None)


def read_json_lines(
    file: BinaryIO, source: Source, noticed: Noticed
) -> Iterator[dict[str, Json] | bytes | RejectedLine]:
    """Yield each line's object; a line that is no JSON, no object, or no text, as it is. Blank lines are left out.

    Raises:
        StructureError: the file is one JSON document, or is in another encoding.
    """
    if what := describe_text(source.sample) or _document(source.sample):
        raise StructureError(f"{what}; nothing was imported: JSON lines have one object on each line, export them so")
    decoder = _decoder(lambda _: noticed.note("NaN or Infinity, read as nothing given"))
    foreign, native, example = 0, 0, ""
    for number, line, length in _lines(file, source.encoding):
        noticed.line = number
        if length > MAX_LINE:
            noticed.row()
            yield noticed.reject("line_too_long", f"a line of more than {MAX_LINE:,} bytes", line)
            continue
        stripped = line.removeprefix(_MARKS)
        if not stripped.strip():
            continue
        try:
            text = stripped.decode()
        except UnicodeDecodeError:
            foreign += 1
            said = not_in(source.encoding, line)
            example = example or f"{said} (line {number:,}: {shown(line)})"
            noticed.row()
            noticed.reject_as_it_is(said, line)
            yield line.rstrip(b"\r\n")
            continue
        native += not text.isascii()
        found = _objects(text, decoder, noticed)
        for record in found if isinstance(found, list) else [line.rstrip(b"\r\n")]:
            noticed.row()
            yield record
        if isinstance(found, str):
            noticed.reject_as_it_is(found, line)
    if foreign > 2 and foreign > native:
        raise StructureError(f"{foreign:,} lines are {example}; nothing was imported: set `encoding` in the mapping")


def _lines(file: BinaryIO, encoding: str) -> Iterator[tuple[int, bytes, int]]:
    """Yield each line in UTF-8 with its number and its length in bytes; of one that is too long its start."""
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
    """The lines of a file in another encoding, in UTF-8. A byte that is not in it stays, so that its line is no UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding=encoding, errors="surrogateescape", newline="\n")

    def readline(self, limit: int) -> bytes:
        return self._text.readline(limit).encode(errors="surrogateescape")


def _objects(text: str, decoder: json.JSONDecoder, noticed: Noticed) -> list[dict[str, Json]] | str:
    """Return the objects that a line holds, one as a rule, or why it holds none."""
    try:
        record = decoder.decode(text)
    except (ValueError, RecursionError) as error:
        if found := _several(text):
            commas = len(found) == 1
            noticed.note("lines that end in a comma" if commas else "records on a line with others", len(found))
            return found
        # No JSON, a name twice, numbers without end, brackets without end.
        return "a name is there twice" if "is there twice" in str(error) else "not JSON"
    return [record] if isinstance(record, dict) else "JSON, but no object"


def _several(text: str) -> list[dict[str, Json]]:
    """Return the objects of a line that end in a comma, or follow each other; none where anything else is there."""
    end = text.rstrip()
    found: list[dict[str, Json]] = []
    position = 0
    try:
        while True:
            position = _skip(end, position)
            if position == len(end):
                return found
            record, position = DECODER.raw_decode(end, position)
            if not isinstance(record, dict):
                return []
            found.append(record)
            position = _skip(end, position)
            if end[position : position + 1] == ",":
                position += 1
    except (ValueError, RecursionError):
        return []


def _skip(text: str, position: int) -> int:
    blank = _BLANK.match(text, position)
    return blank.end() if blank else position


def _document(sample: str) -> str | None:
    """Return what a file is whose first line begins an object and does not end it, since it is written over lines."""
    lines = [line.strip() for line in sample.lstrip("\ufeff")[:100_000].split("\n", 3)[:3] if line.strip()]
    if len(lines) < 2 or not lines[0].startswith("{") or lines[1].startswith("{"):
        return None
    try:
        DECODER.decode(lines[0])
    except (ValueError, RecursionError):
        return "a JSON object over several lines" if re.match(r'\{\s*$|\{\s*".*[\[,{]$', lines[0]) else None
    return None


def wrapped(record: dict[str, Json]) -> str | None:
    """Return the name under which an object holds a list of objects: the records, perhaps."""
    for name, value in record.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value[:5]):
            return name
    return None
