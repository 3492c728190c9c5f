"""Profile of a CSV file's usual rows, to distinguish rows from text with delimiters and short rows from broken ones."""

from __future__ import annotations

import contextlib
import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from jobs.importing.formats.csv_dialect import Dialect, physical_lines

_NUMBER: Final = re.compile(
    r"[^\w\s]{0,2}\s?[A-Za-z]{0,3}\.?[^\w\s]{0,2}\s?[-+]?\d[\d.,'’ \u00a0\u202f]*[^\w\s]{0,2}\s?[A-Za-z]{0,3}\.?"
)
_CELLS: Final = 200_000  # cells of the file's start that the profile is made from
_FEW: Final = 5  # values needed to recognise a column of numbers
HEADERS: Final = 3  # rows below the header that may belong to it
_MANY: Final = 30  # values needed to recognise a column with a small vocabulary


@dataclass(frozen=True, slots=True)
class RowProfile:
    """Common properties of the usual rows at the start of a file."""

    width: int  # number of cells in the header
    usual: int  # number of cells in most rows
    seen: bool  # True if at least one row has the usual number of cells
    id_column: int | None
    needed: frozenset[str]  # kinds of characters that every id has
    allowed: frozenset[str]  # kinds of characters that at least one id has
    longest_id: int  # in characters
    numeric: frozenset[int]  # columns of numbers
    words: dict[int, frozenset[str]]  # columns with a small vocabulary, and their values
    ends_empty: bool  # True if some row has an empty last cell
    begins_blank: bool  # True if some cell begins with a blank

    def has_id(self, cells: Sequence[str]) -> bool:
        """Return whether the row's id looks like the other ids."""
        if self.id_column is None or not self.allowed:
            return True
        if self.id_column >= len(cells):
            return False
        cell = cells[self.id_column].strip('" \ufeff')
        return 0 < len(cell) <= 2 * self.longest_id and self.needed <= _kinds(cell) <= self.allowed

    def is_under_header(self, cells: Sequence[str]) -> bool:
        """Return whether a row looks like a second header line: words where the other rows have numbers."""
        words = not any(map(str.isdigit, "".join(cells)))
        return words and "9" in self.needed and not self.has_numbers(cells)

    def has_numbers(self, cells: Sequence[str]) -> bool:
        """Return whether every numeric column holds a number or is empty."""
        given = ((cells[i].strip('" ')) for i in self.numeric if i < len(cells))
        return all(not cell or _NUMBER.fullmatch(cell) for cell in given)

    def fits(self, cells: Sequence[str]) -> bool:
        """Return whether the cells seem to be in the right columns: no sign of a lost or extra delimiter."""
        return (
            self.has_id(cells)
            and self.has_numbers(cells)
            and all(not cells[i] or cells[i] in words for i, words in self.words.items() if i < len(cells))
            and (self.begins_blank or not any(cell.startswith(" ") and cell.strip() for cell in cells))
        )

    def like_records(self, lines: Sequence[str], cells: Sequence[str] | None, dialect: Dialect) -> list[int]:
        """Return the indexes of those lines of one row that look like separate rows; none if they look like its text.

        Args:
            lines: the physical lines of the row, two or more.
            cells: the row's cells; None if its quotes are wrong.
            dialect: the file's dialect.
        """
        if self.width < 2:
            return []
        others = [i for i, line in enumerate(lines) if i and line.strip()]
        like = [i for i in others if self._like_record(lines[i], dialect)]
        if self.id_column == 0 and len(self.needed) > 1:  # short rows whose ids are unlikely to occur in a text
            full = set(like)
            short = [i for i in others if i in full or self._begins_like_record(lines[i], dialect)]
            like = short if len(short) > 2 else like
        if not like or 2 * len(like) < len(others):
            return []
        # If the quote is an ordinary character, the line that opens it is a separate row too.
        alone = len(dialect.split(lines[0])) if cells is None else _cells_of_first_line(cells, dialect)
        return like if alone in (self.width, self.usual) or len(like) > 2 else []

    def _like_record(self, line: str, dialect: Dialect) -> bool:
        readings = [dialect.split(line)]
        with contextlib.suppress(csv.Error):
            readings.append(next(dialect.parse([line]), []))
        return any(
            len(cells) in (self.width, self.usual)
            and (self.has_id(cells) or self._has_values(cells))
            and self.has_numbers(cells)
            and (self.begins_blank or not all(cell.startswith(" ") for cell in cells[1:]))
            for cells in readings
        )

    def _begins_like_record(self, line: str, dialect: Dialect) -> bool:
        cells = dialect.split(line)
        return 1 < len(cells) < self.width and self.has_id(cells) and not cells[1].startswith(" ")

    def _has_values(self, cells: Sequence[str]) -> bool:
        """Return whether a numeric or small-vocabulary column has a value, and all small-vocabulary values are known."""
        numbers = any(cell.strip('" ') for i in self.numeric if i < len(cells) and (cell := cells[i]))
        given = [(cells[i], words) for i, words in self.words.items() if i < len(cells) and cells[i].strip()]
        return (numbers or bool(given)) and all(cell in words for cell, words in given)


def _cells_of_first_line(cells: Sequence[str], dialect: Dialect) -> int:
    for index, cell in enumerate(cells):
        if "\n" in cell or "\r" in cell:
            return index + len(dialect.split(re.split(r"[\r\n]", cell, maxsplit=1)[0]))
    return len(cells)


def _kinds(text: str) -> frozenset[str]:
    """Return the kinds of characters in `text`: digits, capital letters, other letters, and each other character."""
    return frozenset("9" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c for c in text)


def _rows(sample: str, dialect: Dialect) -> Iterator[list[str]]:
    """Yield the readable rows of `sample` below the header."""
    reader = dialect.parse(physical_lines(sample)[dialect.skipped + 1 :])
    while True:
        try:
            yield next(reader)
        except csv.Error:
            continue
        except StopIteration:
            return


def profile_of(sample: str, dialect: Dialect, header: Sequence[str], id_name: str) -> RowProfile:
    """Return the profile of the rows in `sample`, the start of a file."""
    width = len(header)
    rows: list[list[str]] = []
    for row in _rows(sample, dialect):
        if any(row) and row != list(header):
            rows.append(row)
        if len(rows) * width >= _CELLS:
            break
    common, count = Counter(map(len, rows)).most_common(1)[0] if rows else (width, 0)
    usual = common if 2 * count > len(rows) else width
    rows = [row for row in rows if len(row) == usual]
    below = rows[HEADERS:] if len(rows) > HEADERS + _FEW else rows
    id_column = header.index(id_name) if id_name in header else None
    ids = [cell for row in below if id_column is not None and id_column < len(row) and (cell := row[id_column].strip())]
    ids = ids[:1000] if len(ids) > 2 else []
    kinds = [_kinds(each) for each in ids]
    numeric, words = set[int](), dict[int, frozenset[str]]()
    for index in range(min(width, usual)):
        given = [cell for row in below if (cell := row[index].strip())]
        if index == id_column:
            continue
        if len(given) >= _FEW and all(_NUMBER.fullmatch(cell[:100]) for cell in given):
            numeric.add(index)
        elif len(given) >= _MANY:
            different = frozenset(row[index] for row in rows)
            if len(different) * 10 <= len(given):
                words[index] = different
    return RowProfile(
        width=width,
        usual=usual,
        seen=bool(rows),
        id_column=id_column,
        needed=frozenset.intersection(*kinds) if kinds else frozenset(),
        allowed=frozenset.union(*kinds) if kinds else frozenset(),
        longest_id=max(map(len, ids), default=0),
        numeric=frozenset(numeric),
        words=words,
        ends_empty=any(len(row) >= width and not row[width - 1].strip() for row in rows),
        begins_blank=any(cell.startswith(" ") and cell.strip() for row in rows for cell in row),
    )
