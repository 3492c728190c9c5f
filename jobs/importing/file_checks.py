"""Checks of an export, file by file: its columns against the mapping, its ids, and its decimal mark in prices."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from jobs.errors import JobError
from jobs.importing.columns import ABSENT, get_column, has_column
from jobs.importing.formats.format_registry import Json, Row
from jobs.importing.formats.json_lines import find_wrapper
from jobs.importing.formats.observations import Observations
from jobs.importing.formats.sources import MAX_LINE
from jobs.records.rejected_lines import RejectedLine
from jobs.records.values import DecimalMark, decimal_mark, has_lost_digits, is_total, price
from schemas.mapping import Mapping

log = logging.getLogger(__name__)

_NAMES: Final = 50  # column names in a message
_NAME: Final = 60  # characters of each column name in a message
_PRICES: Final = 1_000  # rows that are read ahead to find a file's decimal mark
_HELD: Final = 16 * 2**20  # characters of those rows that may be in memory


class FileChecks:
    """Checks of all files of one export, including columns that only some of the files have."""

    def __init__(self, mapping: Mapping, observations: Observations) -> None:
        self._mapping, self._observations = mapping, observations
        self._lacking: dict[Path, set[str]] = {}  # missing optional columns, by file that has records
        self._rows = 0
        self._empty: list[Path] = []  # files without a row
        self._folded = {column.casefold(): column for column in mapping.columns}
        self._case_variants: dict[
            str, str
        ] = {}  # the mapping's column -> a column of some record that differs only in case

    def rows(self, rows: Iterable[Row], path: Path) -> Iterator[Row]:
        """Yield the rows of the file at `path`, with each price as a number if it can be read.

        Raises:
            JobError: the file has records but lacks the mapping's columns.
        """
        source = map(self._check_row, rows)
        first = list(self._read_ahead(source))
        mark = self._detect_mark(first)
        unseen, columns, record = set(self._mapping.columns), dict[str, None](), None
        checked_columns, nested = dict[str, Json]().keys(), False
        columns_of_row, case_variant = checked_columns, None
        before = self._rows
        for row in itertools.chain(first, source):
            self._rows += 1
            if isinstance(row, dict):
                record = row if record is None else record
                # Most rows have the same columns, so unseen columns are looked for only when a row's columns change.
                if unseen and (nested or row.keys() != checked_columns):
                    checked_columns, nested = row.keys(), any("." in column or "[" in column for column in unseen)
                    unseen = {column for column in unseen if not has_column(row, column)}
                    if len(columns) < _NAMES:
                        columns.update(dict.fromkeys(name[:_NAME] for name in itertools.islice(row, _NAMES)))
                if row.keys() != columns_of_row:
                    self._check_derived(path, row)
                    columns_of_row, case_variant = row.keys(), self._find_other_case(row)
                if case_variant is not None:
                    self._observations.note(
                        "records with a column that differs from the mapping's only in case, not read"
                    )
                row = self._with_price(row, mark)
            yield row
        if self._rows == before:
            self._empty.append(path)
        if record is not None:
            self._check_columns(path, unseen, list(columns), record)

    def check(self, files: Iterable[Path]) -> None:
        """Raise JobError if no file had a row. Log the files without rows, and optional columns that only some files have."""
        if not self._rows:
            raise JobError(f"{', '.join(map(str, files))}: no records in it; nothing was imported")
        if self._empty:
            log.warning("import-catalog: no records in %s", ", ".join(path.name for path in self._empty[:_NAMES]))
            self._observations.note("files without records", len(self._empty))
        for column, name in self._case_variants.items():
            log.warning("import-catalog: some records have %r instead of %r; it is not read", name, column)
        present = [set(self._mapping.columns) - lacking for lacking in self._lacking.values()]
        somewhere = {column for columns in present for column in columns}
        for path, lacking in self._lacking.items():
            if missed := lacking & somewhere:
                log.warning("import-catalog: %s lacks the columns %s, which other files have", path, sorted(missed))
                self._observations.note("files without optional columns that other files have")

    def _find_other_case(self, row: dict[str, Json]) -> str | None:
        """Return a column of `row` that differs only in case from a column of the mapping that `row` lacks."""
        for name in row:
            column = self._folded.get(name.casefold())
            if column is not None and column not in row and name not in self._mapping.columns:
                self._case_variants[column] = name[:_NAME]
                return name
        return None

    def _read_ahead(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Yield the first rows, which show how the file writes prices; none if the decimal mark is known."""
        if not self._mapping.price or self._mapping.decimal:
            return
        held = 0
        for row in itertools.islice(rows, _PRICES):
            yield row
            held += len(json.dumps(row)) if isinstance(row, dict) else 0
            if held > _HELD:
                return

    def _detect_mark(self, first: list[Row]) -> DecimalMark:
        if self._mapping.decimal:
            return self._mapping.decimal
        return decimal_mark(
            get_column(row, column) for column in self._mapping.price_columns for row in first if isinstance(row, dict)
        )

    def _check_row(self, row: Row) -> Row:
        """Return `row`, or a rejected line if `row` is not a product or its id has lost digits."""
        if not isinstance(row, dict):
            return row
        column, given = self._given_id(row)
        if has_lost_digits(given):
            notation = (
                "in scientific notation, such as 1.23E+12"
                if isinstance(given, str)
                else "with a point and too many digits"
            )
            return self._reject("rounded_id", f"the id is a number {notation}: its last digits are lost", row)
        if given == column and sum(name == value for name, value in row.items()) > 1:
            return self._reject("header", "a header among the records", row)
        if is_total(given, (value for value in row.values() if value is not given), len(row)):
            return self._reject("total", "a row of totals, not a product", row)
        return row

    def _given_id(self, row: dict[str, Json]) -> tuple[str, Json]:
        """Return the first column that gives the row's id, and its value; `ABSENT` if none does."""
        for column in self._mapping.id_columns:
            given = get_column(row, column)
            if given is not ABSENT and given is not None and given != "":
                return column, given
        return self._mapping.product_id, ABSENT

    def _check_derived(self, path: Path, row: dict[str, Json]) -> None:
        """Raise JobError if the file has a column of the name of a derived one."""
        for column in self._mapping.derive:
            if column in row:
                raise JobError(
                    f"{path}: column {column!r} exists, and `derive` of the mapping makes another of that name; nothing was "
                    "imported: give the derived column another name"
                )

    def _reject(self, reason: str, detail: str, row: dict[str, Json]) -> RejectedLine:
        return self._observations.reject(reason, detail, json.dumps(row).encode()[:MAX_LINE])

    def _with_price(self, row: dict[str, Json], mark: DecimalMark) -> dict[str, Json]:
        """Return `row` with its price as a number if it can be read as one."""
        for column in self._mapping.price_columns:
            if isinstance(value := get_column(row, column), str):
                number = price(value, mark)
                if not isinstance(number, str):
                    row = row | {column: number}
        return row

    def _check_columns(self, path: Path, unseen: set[str], columns: list[str], record: dict[str, Json]) -> None:
        mapping = self._mapping
        texts = set(mapping.source_columns(*mapping.title, *mapping.description))
        capitals = {column.casefold() for column in columns if column not in mapping.columns}
        lacking = {column for column in unseen if not mapping.is_optional(column) or column.casefold() in capitals}
        if unseen.issuperset(mapping.id_columns):
            lacking.update(mapping.id_columns)
        if not lacking and texts and texts <= unseen:
            raise JobError(
                f"{path}: no record has any of the text columns {sorted(texts)}, although they are optional; the columns are "
                f"{sorted(columns)}; nothing was imported. Correct `title` and `description` in the mapping"
            )
        if lacking:
            lacking |= texts if texts <= unseen else set()
            if lacking.intersection(mapping.id_columns) and (name := find_wrapper(record)):
                raise JobError(
                    f"{path}: a JSON object that holds its records under {name[:_NAME]!r}; nothing was imported: set "
                    f"`records_at: {name[:_NAME]}` in the mapping"
                )
            way_out = "Correct the mapping, or list them under `optional`"
            if {column.casefold() for column in lacking} <= capitals:
                way_out = "They differ only in case: write them as the file does"
            raise JobError(
                f"{path}: no record has the columns {sorted(lacking)} that the mapping names; the columns are "
                f"{sorted(columns)}; nothing was imported. {way_out}"
            )
        self._lacking[path] = unseen
