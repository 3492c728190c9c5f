"""Check an export file by file: its columns against the mapping, its ids, and how it writes prices."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from jobs.errors import JobError
from jobs.importing.formats.format_registry import Json, Row
from jobs.importing.formats.json_lines import wrapped
from jobs.importing.formats.noticed import Noticed
from jobs.importing.formats.sources import MAX_LINE
from jobs.importing.mapper import ABSENT, get_column
from jobs.records.rejected_lines import RejectedLine
from jobs.records.values import DecimalMark, decimal_mark, is_total, price, rounded
from schemas.mapping import Mapping

log = logging.getLogger(__name__)

_NAMES: Final = 50  # column names that a message shows
_NAME: Final = 60  # characters of each
_PRICES: Final = 1_000  # rows that show how a file writes prices
_HELD: Final = 16 * 2**20  # characters of those rows in memory


class FileChecks:
    """What the files of an export have in common, and what one of them lacks."""

    def __init__(self, mapping: Mapping, noticed: Noticed) -> None:
        self._mapping, self._noticed = mapping, noticed
        self._lacking: dict[Path, set[str]] = {}  # optional columns, by file with records
        self._rows = 0
        self._empty: list[Path] = []  # files without a row
        self._folded = {column.casefold(): column for column in mapping.columns}
        self._capitals: dict[str, str] = {}  # columns of some records, by the mapping's that differ in capitals alone

    def rows(self, rows: Iterable[Row], path: Path) -> Iterator[Row]:
        """Yield the rows of the file at `path` with prices as numbers, where they can be read.

        Raises JobError where the file has records, but not the mapping's columns.
        """
        source = map(self._checked, rows)
        first = list(self._first(source))
        mark = self._mark(first)
        unseen, columns, record = set(self._mapping.columns), dict[str, None](), None
        names, nested = dict[str, Json]().keys(), False
        shape, other = names, None
        before = self._rows
        for row in itertools.chain(first, source):
            self._rows += 1
            if isinstance(row, dict):
                record = row if record is None else record
                # Rows of one shape as a rule: names that no row had are not sought again in each.
                if unseen and (nested or row.keys() != names):
                    names, nested = row.keys(), any("." in column for column in unseen)
                    unseen = {column for column in unseen if get_column(row, column) is ABSENT}
                    if len(columns) < _NAMES:
                        columns.update(dict.fromkeys(name[:_NAME] for name in itertools.islice(row, _NAMES)))
                if row.keys() != shape:
                    shape, other = row.keys(), self._in_other_capitals(row)
                if other is not None:
                    self._noticed.note("records with a column in other capitals than the mapping's, not read")
                row = self._with_price(row, mark)
            yield row
        if self._rows == before:
            self._empty.append(path)
        if record is not None:
            self._check_columns(path, unseen, list(columns), record)

    def check(self, files: Iterable[Path]) -> None:
        """Raise JobError where no file had a row; log those without one, and the optional columns that some lack."""
        if not self._rows:
            raise JobError(f"{', '.join(map(str, files))}: no records in it; nothing was imported")
        if self._empty:
            log.warning("import-catalog: no records in %s", ", ".join(path.name for path in self._empty[:_NAMES]))
            self._noticed.note("files without records", len(self._empty))
        for column, name in self._capitals.items():
            log.warning("import-catalog: some records have %r, not %r, which is not read", name, column)
        found = [set(self._mapping.columns) - lacking for lacking in self._lacking.values()]
        somewhere = {column for columns in found for column in columns}
        for path, lacking in self._lacking.items():
            if missed := lacking & somewhere:
                log.warning("import-catalog: %s lacks the columns %s, which other files have", path, sorted(missed))
                self._noticed.note("files without optional columns that other files have")

    def _in_other_capitals(self, row: dict[str, Json]) -> str | None:
        """Return a column of `row` that would be the mapping's in other capitals, where `row` does not have that one."""
        for name in row:
            column = self._folded.get(name.casefold())
            if column is not None and column not in row and name not in self._mapping.columns:
                self._capitals[column] = name[:_NAME]
                return name
        return None

    def _first(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the rows that show how the file writes prices."""
        if not self._mapping.price or self._mapping.decimal:
            return
        held = 0
        for row in itertools.islice(rows, _PRICES):
            yield row
            held += len(json.dumps(row)) if isinstance(row, dict) else 0
            if held > _HELD:
                return

    def _mark(self, first: list[Row]) -> DecimalMark:
        if self._mapping.decimal:
            return self._mapping.decimal
        return decimal_mark(get_column(row, self._mapping.price) for row in first if isinstance(row, dict))

    def _checked(self, row: Row) -> Row:
        """Return `row`, or why it is no record: its id is a number whose digits are lost, or it is no product."""
        if not isinstance(row, dict):
            return row
        given = get_column(row, self._mapping.product_id)
        if rounded(given):
            how = (
                "in scientific notation, such as 1.23E+12"
                if isinstance(given, str)
                else "with a point and too many digits"
            )
            return self._reject("rounded_id", f"the id is a number {how}: its last digits are lost", row)
        if given == self._mapping.product_id and sum(name == value for name, value in row.items()) > 1:
            return self._reject("header", "a header among the records", row)
        if is_total(given, (value for value in row.values() if value is not given), len(row)):
            return self._reject("total", "a row of totals, no product", row)
        return row

    def _reject(self, reason: str, detail: str, row: dict[str, Json]) -> RejectedLine:
        return self._noticed.reject(reason, detail, json.dumps(row).encode()[:MAX_LINE])

    def _with_price(self, row: dict[str, Json], mark: DecimalMark) -> dict[str, Json]:
        """Return `row` with its price as a number, where that can be read."""
        column = self._mapping.price
        if column and isinstance(value := get_column(row, column), str):
            number = price(value, mark)
            if not isinstance(number, str):
                return row | {column: number}
        return row

    def _check_columns(self, path: Path, unseen: set[str], columns: list[str], record: dict[str, Json]) -> None:
        mapping = self._mapping
        texts = {*mapping.title, *mapping.description}
        capitals = {column.casefold() for column in columns}
        lacking = {column for column in unseen if column not in mapping.optional or column.casefold() in capitals}
        if not lacking and texts and texts <= unseen:
            raise JobError(
                f"{path}: no record has a text, in none of the columns {sorted(texts)}, optional as they are; the columns are "
                f"{sorted(columns)}; nothing was imported. Correct `title` and `description` in the mapping"
            )
        if lacking:
            lacking |= texts if texts <= unseen else set()
            if mapping.product_id in lacking and (name := wrapped(record)):
                raise JobError(
                    f"{path}: a JSON object that holds its records under {name[:_NAME]!r}; nothing was imported: JSON lines "
                    "have one object on each line, export them so"
                )
            way_out = "Correct the mapping, or list them under `optional`"
            if {column.casefold() for column in lacking} <= capitals:
                way_out = "They differ in capitals alone: write them as the file does"
            raise JobError(
                f"{path}: no record has the columns {sorted(lacking)} that the mapping names; the columns are "
                f"{sorted(columns)}; nothing was imported. {way_out}"
            )
        self._lacking[path] = unseen
