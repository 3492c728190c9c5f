"""CSV reader that turns each row into a record or a rejected line with its reason; no row swallows another."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from jobs.importing.formats.csv_dialect import Dialect, detect
from jobs.importing.formats.observations import Observations, StructureError, shown
from jobs.importing.formats.row_profile import HEADERS, RowProfile, profile_of
from jobs.importing.formats.sniffing import describe_text, describe_undecodable
from jobs.importing.formats.sources import LINE_START, MAX_LINE, Source
from jobs.records.rejected_lines import RejectedLine
from jobs.records.values import is_total
from schemas.mapping import Mapping

_ROW_LINES: Final = 100_000  # physical lines of one row; more mean a quote that is never closed
_HINT: Final = "nothing was imported: correct the line, or export the file again; if"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the file: its cells and its text."""

    cells: list[str] | None  # None if its quotes are wrong or its line is too long
    text: str  # including the line end; undecodable bytes are surrogates
    line: int  # number of its first line in the file, counted from 1
    lines: tuple[str, ...]  # its physical lines
    too_long: int = 0  # characters of its line if they are too many; `text` is then only the line's start


class _TooLong(Exception):
    """Signal for a line longer than MAX_LINE; holds the line's start and its length."""

    def __init__(self, start: str, length: int) -> None:
        super().__init__(start, length)
        self.start, self.length = start, length


@dataclass(slots=True)
class _Lines:
    """Iterator over the physical lines of a file that keeps the lines of the current row."""

    text: io.TextIOWrapper
    dialect: Dialect
    number: int = 0  # of the last line read, counted from 1
    size: int = 0  # characters of the current row
    row: list[str] = field(default_factory=list)  # lines of the current row

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.text.readline(MAX_LINE)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) == MAX_LINE and not line.endswith(("\n", "\r")):
            raise _TooLong(line[:LINE_START], len(line) + self._skip())
        self.size += len(line)
        self.row.append(line)
        if self.size > 2 * MAX_LINE or len(self.row) > _ROW_LINES:
            raise StructureError(
                f"line {self.number - len(self.row) + 1}: a quote is never closed; {_HINT} {_way_out(line)}"
            )
        return self.dialect.translate(line.lstrip("\ufeff"))

    def _skip(self) -> int:
        """Read up to the end of the line; return the number of characters skipped."""
        skipped = 0
        while more := self.text.readline(MAX_LINE):
            skipped += len(more)
            if more.endswith(("\n", "\r")):
                break
        return skipped

    def begin_row(self) -> None:
        self.row.clear()
        self.size = 0


class CsvRows:
    """Iterator over the rows of a CSV file below its header.

    Raises, from the constructor and from iteration:
        StructureError: the header is unusable, quotes are wrong across several lines, or a quoted cell seems to contain
            other records.
    """

    def __init__(self, file: BinaryIO, source: Source, mapping: Mapping) -> None:
        self._source, self._mapping = source, mapping
        self.dialect = detect(source.sample, source.whole, mapping)
        csv.field_size_limit(2 * MAX_LINE)  # for the whole process; the default limit rejects long but valid cells
        self._text = io.TextIOWrapper(file, encoding=source.encoding, errors="surrogateescape", newline="")
        self._lines = _Lines(self._text, self.dialect)
        before = [line for _ in range(self.dialect.skipped) if (line := self._text.readline(MAX_LINE))]
        self._lines.number = len(before)
        self._reader = csv.reader(self._lines, strict=True, **self.dialect.reader_options())
        if mapping.header:
            self.heading, self.header = "".join(before), list(mapping.header)
        else:
            first = self._next()
            self.heading = "".join(before) + (first.text if first else "")
            self.header = self._read_header(first)
        wanted = (mapping.group_by, *mapping.id_columns)
        id_name = next((name for name in wanted if name in self.header), "")
        self.profile: RowProfile = profile_of(source.sample, self.dialect, self.header, id_name)

    def close(self) -> None:
        """Detach from the file without closing it; the caller owns it."""
        self._text.detach()

    def __iter__(self) -> Iterator[Row]:
        guessed = self.dialect.quote is None and not self._mapping.quote
        while (row := self._next()) is not None:
            if len(row.lines) > 1 and self._mapping.multiline == "check":
                self._check_lines(row)
            if guessed and '"' in row.text and row.cells is not None and any(map(_is_quoted, row.cells)):
                raise StructureError(
                    f"line {row.line}: a cell in quotes ({shown(row.text)}), although quotes are ordinary characters at the "
                    "start of the file; nothing was imported: set `quote` in the mapping, to none if they are ordinary "
                    "characters here too"
                )
            yield row

    def _next(self) -> Row | None:
        self._lines.begin_row()
        cells: list[str] | None = None
        try:
            cells = self.dialect.restore(next(self._reader))
        except StopIteration:
            return None
        except _TooLong as error:
            if self._lines.row:
                opened = self._lines.number - len(self._lines.row)
                raise StructureError(
                    f"line {opened}: a quote is never closed; {_HINT} {_way_out(error.start)}"
                ) from error
            return Row(None, error.start, self._lines.number, (error.start,), error.length)
        except csv.Error as error:
            if len(self._lines.row) > 1:
                raise StructureError(
                    f"line {self._first_line}: a quote is never closed, or a quote within a text is not doubled ({error}); "
                    f"{_HINT} {_way_out(''.join(self._lines.row))}"
                ) from error
        return Row(cells, "".join(self._lines.row), self._first_line, tuple(self._lines.row))

    @property
    def _first_line(self) -> int:
        return self._lines.number - len(self._lines.row) + 1

    def _read_header(self, row: Row | None) -> list[str]:
        if row is None:
            return []
        if row.cells is None:
            problem = f"a line of {row.too_long:,} characters" if row.too_long else "the quotes of the header are wrong"
            raise StructureError(f"line {row.line}: {problem}; nothing was imported: correct it")
        if not is_text(row.text):
            raw = row.text.encode(self._source.encoding, errors="surrogateescape")
            problem = describe_undecodable(self._source.encoding, raw)
            raise StructureError(
                f"line {row.line}, the header: {problem}{_as_cp1252(raw, problem)}; nothing was imported: set `encoding` in "
                "the mapping"
            )
        header = [name if name in self._mapping.columns else name.strip(" \t\u00a0\ufeff") for name in row.cells]
        # Duplicates of a column that nothing reads do no harm.
        if duplicates := sorted(name for name, n in Counter(header).items() if n > 1 and name in self._mapping.columns):
            raise StructureError(f"the header has the columns {duplicates} more than once; rename or remove the others")
        return header

    def _check_lines(self, row: Row) -> None:
        like = self.profile.like_records(row.lines, row.cells, self.dialect)
        if like:
            records = f"{len(like):,} other record{'s' if len(like) > 1 else ''}"
            raise StructureError(
                f"line {row.line}: a quote opens there, and the text up to line {row.line + len(row.lines) - 1} looks like "
                f"{records} (line {row.line + like[0]}: {shown(row.lines[like[0]])}); {_HINT} {_way_out(row.text)}; "
                "if all of it is one text, set `multiline: allow`"
            )


def _way_out(text: str) -> str:
    escape = '; if a backslash escapes it, set `escape: "\\\\"`' if '\\"' in text else ""
    return f"quotes are ordinary characters in this file, set `quote: none` in the mapping{escape}"


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _cell_count(count: int) -> str:
    return f"{count} cell{'s' if count != 1 else ''}"


def is_text(text: str) -> bool:
    """Return whether every byte of the line could be decoded."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_cp1252(raw: bytes, problem: str) -> str:
    """Return `raw` as cp1252 reads it, for a message; an empty text if `problem` does not suggest cp1252."""
    return f" as {shown(raw.decode('cp1252'))}" if problem.endswith("read it") else ""


def read_csv(
    file: BinaryIO, source: Source, mapping: Mapping, observations: Observations
) -> Iterator[dict[str, str] | RejectedLine]:
    """Yield each row as a record of texts by column name, or as a rejected line if it is not a record.

    Raises:
        StructureError: the reader cannot tell which lines are records.
    """
    if not source.sample.strip() and source.whole:
        return
    try:
        rows = CsvRows(file, source, mapping)
    except StructureError as error:
        raise StructureError(_describe_other_format(source) or str(error)) from error
    try:
        _check_header(rows.header, source, mapping)
        yield from _Records(rows, source, mapping, observations).read()
    finally:
        rows.close()


def _describe_other_format(source: Source) -> str:
    """Return an error text if the start of the file shows a format other than CSV; otherwise an empty text."""
    kind = describe_text(source.sample)
    return f"{kind}; nothing was imported: correct `format` in the mapping, or leave it out" if kind else ""


def _check_header(header: list[str], source: Source, mapping: Mapping) -> None:
    """Raise StructureError if the header has no column of the mapping: it is not a header, or the file is not CSV."""
    if not mapping.columns or {name.casefold() for name in header} & {column.casefold() for column in mapping.columns}:
        return
    raise StructureError(
        _describe_other_format(source)
        or f"the first line has none of the mapping's columns, such as {mapping.product_id!r}, but "
        f"{shown(', '.join(header))}; nothing was imported: check that the file has a header, or set its `delimiter`, `quote` "
        "or `encoding` in the mapping"
    )


class _Records:
    """Converter of rows to records and rejected lines."""

    def __init__(self, rows: CsvRows, source: Source, mapping: Mapping, observations: Observations) -> None:
        self._rows, self._source, self._observations = rows, source, observations
        self._names = [name.strip() for name in rows.header]
        self._folded = frozenset(name.casefold() for name in self._names if name)
        self._id = next((rows.header.index(name) for name in mapping.id_columns if name in rows.header), None)
        self._read = 0  # rows below the header, without repeated headers
        self._foreign = 0  # lines that are not in the file's encoding
        self._native = 0  # lines that are, and have more than ASCII
        self._example = ""  # of a foreign line

    def read(self) -> Iterator[dict[str, str] | RejectedLine]:
        observations, rows = self._observations, self._rows
        if rows.dialect.skipped:
            observations.note("lines before the header, skipped", rows.dialect.skipped)
        if rows.dialect.escape or rows.dialect.quote is None:
            observations.note("files whose quotes are " + ("escaped" if rows.dialect.escape else "ordinary characters"))
        held: tuple[dict[str, str], Row] | None = None  # a short row; the next row shows whether it is complete
        for row in rows:
            if row.cells is not None and not any(cell.strip() for cell in row.cells):
                continue
            observations.count_row()
            observations.line = row.line
            short = row.cells is not None and len(row.cells) < len(rows.header)
            record = self._read_row(row)
            if held is not None:
                broken = short and isinstance(record, RejectedLine)
                yield self._reject_broken(held[1]) if broken else self._count_padded(held[0])
                held = None
                observations.line = row.line
            if short and isinstance(record, dict):
                held = record, row
            else:
                yield record
        if held is not None:
            yield self._count_padded(held[0])
        if self._foreign > 2 and self._foreign > self._native:
            raise StructureError(
                f"{self._foreign:,} lines are {self._example}; nothing was imported: set `encoding` in the mapping"
            )

    def _read_row(self, row: Row) -> dict[str, str] | RejectedLine:
        cells, width, profile = row.cells, len(self._rows.header), self._rows.profile
        if row.too_long:
            detail = f"a line of more than {MAX_LINE:,} characters"
            return self._reject("line_too_long", detail, row)
        if not row.text.isascii():
            if not is_text(row.text):
                return self._reject_undecodable(row)
            self._native += 1
        if len(row.lines) > 1:
            self._observations.note("records that span lines")
            self._observations.note("further lines of these records", len(row.lines) - 1)
        if cells is None:
            cells = self._split_literally(row)
            if cells is None:
                return self._reject("csv_quotes", "a quote inside a quoted text is not doubled", row)
            self._observations.note("rows whose quotes are read as characters")
        if self._is_header(cells):
            return self._reject_header(cells, row)
        self._read += 1
        if self._read <= HEADERS and len(cells) == width and profile.is_under_header(cells):
            return self._reject("csv_header", "a second line of the header", row)
        if self._is_total(cells):
            return self._reject("csv_total", "a row of totals, not a product", row)
        if len(cells) > width and not any(cell.strip() for cell in cells[width:]):
            if len(cells) == profile.usual or profile.fits(cells):
                cells = cells[:width]
                self._observations.note("rows read without empty cells beyond the header")
        elif len(cells) < width and profile.seen and not profile.ends_empty and profile.fits(cells):
            if self._has_swallowed_cells(row, width):
                detail = f"{_cell_count(len(cells))} where the header has {width}, and {width} if its quotes are ordinary characters"
                return self._reject("csv_quotes", detail, row)
            cells = cells + [""] * (width - len(cells))
        if len(cells) != width:
            return self._reject("csv_cells", f"{_cell_count(len(cells))} where the header has {width}", row)
        return dict(zip(self._rows.header, cells, strict=True))

    def _count_padded(self, record: dict[str, str]) -> dict[str, str]:
        self._observations.note("short rows, read with empty last cells")
        return record

    def _reject_broken(self, row: Row) -> RejectedLine:
        width = len(self._rows.header)
        self._observations.line = row.line
        detail = (
            f"{_cell_count(len(row.cells or ()))} where the header has {width}, and the next line is short too: perhaps one row "
            "broken in two"
        )
        return self._reject("csv_cells", detail, row)

    def _reject(self, reason: str, detail: str, row: Row) -> RejectedLine:
        raw = row.text.rstrip("\r\n").encode(self._source.encoding, errors="surrogateescape")
        return self._observations.reject(reason, detail, raw)

    def _reject_undecodable(self, row: Row) -> RejectedLine:
        self._foreign += 1
        raw = row.text.rstrip("\r\n").encode(self._source.encoding, errors="surrogateescape")
        problem = describe_undecodable(self._source.encoding, raw)
        self._example = self._example or f"{problem}{_as_cp1252(raw, problem)} (line {row.line:,})"
        return self._reject("bad_utf8", problem, row)

    def _split_literally(self, row: Row) -> list[str] | None:
        """Return the cells of a line with quotes as ordinary characters; None if that reading does not fit either."""
        dialect = self._rows.dialect
        cells = dialect.split(row.text)
        quote = dialect.quote or '"'
        if len(cells) != len(self._rows.header) or any(cell.rstrip().endswith(quote) for cell in cells):
            return None
        return cells

    def _has_swallowed_cells(self, row: Row, width: int) -> bool:
        """Return whether a short row is complete once its quotes are ordinary characters: a quote swallowed delimiters."""
        dialect = self._rows.dialect
        if not dialect.quote or dialect.quote not in row.text or len(row.lines) > 1:
            return False
        cells = [cell.strip(dialect.quote) for cell in dialect.split(row.text)]
        return len(cells) == width and self._rows.profile.fits(cells)

    def _is_header(self, cells: list[str]) -> bool:
        """Return whether more than half of a row's cells are column names, one of them in the id column."""
        given = cells[self._id] if self._id is not None and self._id < len(cells) else cells[0]
        if given.strip().casefold() not in self._folded and self._names[self._id or 0] not in cells:
            return False
        words = [word for cell in cells if (word := cell.strip().casefold())]
        names = sum(word in self._folded for word in words)
        return names >= min(2, len(self._folded)) and 2 * names > len(words)

    def _reject_header(self, cells: list[str], row: Row) -> RejectedLine:
        """Reject a header among the rows. Raises StructureError if it names other columns for the rows below it."""
        same = zip(cells, self._names, strict=False)
        if all(not (word := cell.strip()) or word.casefold() == name.casefold() for cell, name in same):
            return self._reject("csv_header", "a repeated header", row)
        raise StructureError(
            f"line {row.line}: a different header ({shown(row.text)}), so the rows below it have other columns; nothing was "
            "imported: put them into a file of their own"
        )

    def _is_total(self, cells: list[str]) -> bool:
        if self._id is None or self._id >= len(cells):
            return False
        others = (cell for index, cell in enumerate(cells) if index != self._id)
        return is_total(cells[self._id], others, len(cells))
