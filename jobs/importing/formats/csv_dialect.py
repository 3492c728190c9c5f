"""Detection of a CSV file's dialect: the mapping's settings, completed from the start of the file."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from schemas.mapping import Mapping

DELIMITERS: Final = (",", ";", "\t", "|")
ESCAPED: Final = "\udffe"  # stands for an escaped quote while a line is parsed; never occurs in a text
_SEPARATOR: Final = re.compile(r"\ufeff*\"?sep=(.)\"?[\r\n]*", re.IGNORECASE)
_BEFORE_HEADER: Final = 10  # lines that are searched for the header
_ROWS: Final = 200  # rows that are compared to find the delimiter
_OPEN_LINES: Final = 100  # a quote still open after more lines at the end of the sample is an error


@dataclass(frozen=True, slots=True)
class Dialect:
    """The dialect of a CSV file: delimiter, quote and escape characters, and where the header is."""

    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    skipped: int = 0  # lines before the header
    skips_blanks: bool = False  # ignores blanks before a cell: a, "b, c"

    def reader_options(self) -> dict[str, Any]:
        """Return this dialect's options for csv.reader and csv.writer."""
        if self.quote is None:
            return {"delimiter": self.delimiter, "quoting": csv.QUOTE_NONE}
        return {"delimiter": self.delimiter, "quotechar": self.quote, "skipinitialspace": self.skips_blanks}

    def translate(self, line: str) -> str:
        """Return `line` with its escapes resolved for csv.reader, and placeholders for escaped quotes."""
        if self.escape is None or self.escape not in line:
            return line
        pattern = re.escape(self.escape)
        quote = self.quote or ""
        return re.sub(f"{pattern}([{pattern}{re.escape(quote)}])", lambda m: ESCAPED if m[1] == quote else m[1], line)

    def restore(self, cells: list[str]) -> list[str]:
        """Return `cells` with quotes in place of the placeholders that `translate` left."""
        if self.escape is None or self.quote is None:
            return cells
        return [cell.replace(ESCAPED, self.quote) for cell in cells]

    def split(self, line: str) -> list[str]:
        """Return the cells of a single line, with quotes as ordinary characters."""
        return line.rstrip("\r\n").split(self.delimiter)

    def parse(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Yield the rows of `lines`.

        Raises:
            csv.Error: the quotes of a row are wrong. Iteration can continue with the next row.
        """
        return map(self.restore, csv.reader(map(self.translate, lines), strict=True, **self.reader_options()))


def physical_lines(text: str) -> list[str]:
    """Return the lines of `text` including their ends: LF, CR or CRLF."""
    return list(io.StringIO(text, newline=""))


def detect(sample: str, whole: bool, mapping: Mapping) -> Dialect:
    """Return the dialect that the mapping sets, with unset parts detected from the start of the file.

    Args:
        sample: the start of the file, in whole lines.
        whole: True if the sample is the entire file.
        mapping: settings that override detection.
    """
    lines = [line.lstrip("\ufeff") for line in physical_lines(sample)]
    dialect = Dialect(quote=mapping.quote_character, escape=mapping.escape or None)
    skipped = 0
    if lines and (separator := _SEPARATOR.fullmatch(lines[0])):
        dialect, skipped = replace(dialect, delimiter=separator[1]), 1
    candidates = (mapping.delimiter,) if mapping.delimiter else (dialect.delimiter,) if skipped else DELIMITERS
    delimiter, before = _find_header(
        lines[skipped:], [replace(dialect, delimiter=each) for each in candidates], mapping
    )
    dialect = replace(dialect, delimiter=delimiter, skipped=skipped + before)
    return (
        dialect
        if mapping.quote
        else _detect_quoting(lines[dialect.skipped :], whole, dialect, escape=not mapping.escape)
    )


def _find_header(lines: Sequence[str], candidates: Sequence[Dialect], mapping: Mapping) -> tuple[str, int]:
    """Return the delimiter, and the number of lines before the header, the line with the most columns of the mapping."""
    if mapping.header:
        return max(candidates, key=lambda dialect: _fits_width(dialect, lines, len(mapping.header))).delimiter, 0
    best, header = 0, (candidates[0].delimiter, 0)
    wanted = {column.strip() for column in mapping.columns}
    ids = {column.strip() for column in mapping.id_columns}
    for dialect in candidates:
        for index in range(min(len(lines), _BEFORE_HEADER)):
            names = {name.strip() for name in _first_row(dialect, lines[index:])}
            score = len(names & wanted)
            if ids & names and score > best:
                best, header = score, (dialect.delimiter, index)
    return header if best else (max(candidates, key=lambda dialect: consistency(dialect, lines)).delimiter, 0)


def _fits_width(dialect: Dialect, lines: Sequence[str], width: int) -> int:
    """Return how many of the first rows have `width` cells."""
    with contextlib.suppress(csv.Error):
        return sum(len(row) == width for row in dialect.parse(lines[:_ROWS]))
    return 0


def _first_row(dialect: Dialect, lines: Sequence[str]) -> list[str]:
    try:
        return next(dialect.parse(lines[:_BEFORE_HEADER]), [])
    except csv.Error:
        return []


def consistency(dialect: Dialect, lines: Sequence[str]) -> tuple[float, int]:
    """Return the share of rows that are as long as the header, and that length; zeros if the header has one cell.

    Only the first rows of `lines` are compared.
    """
    lengths: list[int] = []
    try:
        for row in dialect.parse(lines[:_ROWS]):
            lengths.append(len(row))
    except csv.Error:
        pass
    if not lengths or lengths[0] < 2:
        return 0.0, 0
    return Counter(lengths)[lengths[0]] / len(lengths), lengths[0]


def _detect_quoting(lines: Sequence[str], whole: bool, dialect: Dialect, *, escape: bool) -> Dialect:
    """Return `dialect` if it can read the sample, otherwise a variant that can: with escapes, or without quotes.

    If quotes often follow a blank after the delimiter, the variant that ignores such blanks is tried first.
    """
    quote = dialect.quote or ""
    if not any(quote in line for line in lines):
        return dialect
    after_blank = re.compile(rf"{re.escape(dialect.delimiter)} +{re.escape(quote)}")
    if 2 * sum(after_blank.search(line) is not None for line in lines) >= len(lines):
        blanks = replace(dialect, skips_blanks=True)
        if not _has_faults(lines, whole, blanks):
            return blanks
    if not _has_faults(lines, whole, dialect):
        return dialect
    if escape and any(f"\\{quote}" in line for line in lines):
        escaped = replace(dialect, escape="\\")
        if not _has_faults(lines, whole, escaped):
            return escaped
    literal = replace(dialect, quote=None)
    rows = [row for line in lines if line.strip() and (row := literal.split(line))]
    quoted = any(len(cell) > 1 and cell[0] == cell[-1] == quote for row in rows for cell in map(str.strip, row))
    if not quoted and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows):
        return literal
    return dialect


def _has_faults(lines: Sequence[str], whole: bool, dialect: Dialect) -> bool:
    """Return whether quotes are wrong in `lines` when they are read in `dialect`."""
    read, start = 0, 0

    def counted() -> Iterator[str]:
        nonlocal read
        for line in lines:
            read += 1
            yield line

    try:
        for _ in dialect.parse(counted()):
            start = read
    except csv.Error:
        # No fault if the sample may just end inside a quoted cell.
        return whole or read < len(lines) or read - start > _OPEN_LINES
    return False
