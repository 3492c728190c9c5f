"""Reader of XLSX and XLS by calamine: cached values of formulas, dates as ISO 8601, whole numbers as such.

Measured on 100,000 rows of 15 columns: calamine 4 s and 155 MB, openpyxl (streaming) 225 s and 54 MB. Calamine holds a sheet as
a rectangle of about 100 bytes a cell, so the rectangle is measured first and bounded.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from python_calamine import CalamineError, CalamineSheet, CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

from jobs.importing.formats.observations import Observations, StructureError, shown
from jobs.importing.formats.sniffing import HAS_ID, column_score
from jobs.importing.formats.sources import LINE_START, MAX_LINE, Source
from jobs.records.json_values import json_value
from jobs.records.rejected_lines import RejectedLine
from schemas.mapping import Mapping

Json: TypeAlias = Any

_BEFORE_HEADER: Final = 20  # rows that are searched for the header
_CELLS: Final = 20_000_000  # cells of a sheet's rectangle
_UNPACKED: Final = 2**31  # bytes of the workbook's tables
_CHUNK: Final = 2**20
_REFERENCE: Final = re.compile(rb"""\br=["']([A-Za-z]{1,3})(\d{1,7})["']""")
_DAMAGED: Final = (CalamineError, zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError, OSError)
_BIG: Final = "nothing was imported: export the records as CSV or Parquet"


def read_workbook(
    source: Source, mapping: Mapping, observations: Observations
) -> Iterator[dict[str, Json] | RejectedLine]:
    """Yield each row below the header of one sheet as a record.

    Raises:
        StructureError: the file is no workbook, is damaged or too large, or no sheet has the mapping's columns.
        JobError: it unpacks to too many bytes.
    """
    with source.seekable() as path:
        book = open_workbook(path, source, observations)
        sheet, skipped = choose_sheet(book, mapping)
        others = len(book.sheet_names) - 1
        if others and not mapping.sheet:
            observations.note(f"sheets beside {sheet.name[:60]!r}, not read", others)
        if skipped:
            observations.note("lines before the header, skipped", skipped)
        yield from _Rows(sheet, skipped, mapping, observations).read()


def open_workbook(path: Path, source: Source, observations: Observations) -> CalamineWorkbook:
    """Open the workbook at `path`, the unpacked content of `source`. Count its cells with errors, which calamine leaves out.

    Raises:
        StructureError: it is no workbook, is damaged, or a sheet is too large.
        JobError: it unpacks to too many bytes.
    """
    with _translated_errors():
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if member.filename.lower().endswith(".xml")]
                packed = sum(member.compress_size for member in members)
                unpacked = sum(member.file_size for member in members)
                source.bounds.check(source.path, packed, unpacked)
                if unpacked > _UNPACKED:
                    raise StructureError(f"a workbook with {unpacked:,} bytes of tables; {_BIG}")
                for member in members:
                    if "worksheets/" in member.filename.lower():
                        errors = _check_size(archive, member)
                        if errors:
                            observations.note("cells with an error such as #N/A, read as not given", errors)
        return CalamineWorkbook.from_path(path)


def _check_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Return how many cells of a sheet hold errors. Raises StructureError if its rectangle of cells is too large for memory."""
    rows = columns = 1
    errors = 0
    rest = b""
    with archive.open(member) as file:
        while chunk := file.read(_CHUNK):  # not more than the size that the member states
            errors += chunk.count(b't="e"')
            found = _REFERENCE.findall(rest + chunk)
            rest = chunk[-20:]
            if found:
                rows = max(rows, *(int(row) for _, row in found), 1)
                columns = max(columns, *map(_column_number, {letters for letters, _ in found}), 1)
    if rows * columns > _CELLS:
        raise StructureError(
            f"a sheet ({member.filename}) of {rows:,} rows and {columns:,} columns, more than {_CELLS:,} cells; {_BIG}"
        )
    return errors


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters.upper():
        number = number * 26 + letter - 64
    return number


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        reason = " ".join(f"{error}".split())[:200] or type(error).__name__
        raise StructureError(
            f"no workbook, or one that is truncated, damaged or has a password ({reason}); nothing was imported: copy the "
            "file again, or save it as XLSX without a password"
        ) from error


def _names(book: CalamineWorkbook) -> list[str]:
    """Return the names of the sheets of cells, those that are shown first."""
    tables = [sheet for sheet in book.sheets_metadata if sheet.typ == SheetTypeEnum.WorkSheet]
    return [sheet.name for sheet in sorted(tables, key=lambda sheet: sheet.visible != SheetVisibleEnum.Visible)]


def choose_sheet(book: CalamineWorkbook, mapping: Mapping) -> tuple[CalamineSheet, int]:
    """Return the sheet with the records, and the number of its used rows before the header.

    Raises:
        StructureError: no sheet has the mapping's columns, or the mapping's sheet does not exist.
    """
    names = [name for name in _names(book) if not mapping.sheet or name == mapping.sheet]
    if not names:
        known = ", ".join(shown(name) for name in book.sheet_names[:20])
        raise StructureError(f"no sheet {mapping.sheet!r}; the sheets are {known}; correct `sheet` in the mapping")
    best: tuple[int, CalamineSheet, int] | None = None
    headers: list[str] = []
    for name in names:
        with _translated_errors():
            sheet = book.get_sheet_by_name(name)
        if mapping.header:
            return sheet, 0
        score, index, header = _find_header(sheet, mapping)
        if header:
            headers.append(f"{name[:60]!r}: {shown(', '.join(header))}")
        if score and (best is None or score > best[0]):
            best = score, sheet, index
        if score >= HAS_ID and mapping.columns:
            break
    if best is not None:
        return best[1], best[2]
    if not headers:
        return sheet, 0
    raise StructureError(
        f"no sheet has the mapping's columns, such as {mapping.product_id!r}; their first rows are {'; '.join(headers[:10])}; "
        "nothing was imported: correct the mapping, or set its `header`"
    )


def _find_header(sheet: CalamineSheet, mapping: Mapping) -> tuple[int, int, list[str]]:
    """Return how well a sheet's header fits the mapping (0: not at all), the number of rows before it, and its names.

    Without a mapping's columns the largest sheet fits best; its header is the first row that is wider than half of the widest.
    """
    rows: list[list[str]] = []
    for row in sheet.iter_rows():
        rows.append([text for cell in row if (text := str(cell).strip())])
        if len(rows) == _BEFORE_HEADER:
            break
    if not any(rows):
        return 0, 0, []
    if not mapping.columns:
        width = max(map(len, rows))
        index = next(i for i, row in enumerate(rows) if 2 * len(row) > width)
        return width * sheet.total_height, index, rows[index]
    scores = [column_score(row, mapping) for row in rows]
    index = scores.index(max(scores))
    return scores[index], index, rows[index] if scores[index] else next(row for row in rows if row)


class _Rows:
    """Converter of a sheet's rows to records."""

    def __init__(self, sheet: CalamineSheet, skipped: int, mapping: Mapping, observations: Observations) -> None:
        self._sheet, self._skipped, self._mapping, self._observations = sheet, skipped, mapping, observations

    def read(self) -> Iterator[dict[str, Json] | RejectedLine]:
        observations, header = self._observations, list(self._mapping.header)
        first = self._sheet.start[0] + 1 if self._sheet.start else 1  # rows are counted from 1; empty ones are left out
        for number, row in enumerate(self._sheet.iter_rows(), first):
            if number - first < self._skipped:
                continue
            if not header:
                header = self._names(row)
                continue
            if not any(cell.strip() if isinstance(cell, str) else True for cell in row):
                continue
            observations.line = number
            observations.count_row()
            yield self._record(header, row)

    def _names(self, row: Sequence[object]) -> list[str]:
        names: list[str] = []
        for cell in row:
            name = str(json_value(cell, self._observations.note)).strip()
            if name and name in names:
                self._observations.note("columns with the name of an earlier column, not read")
                name = ""
            names.append(name)
        return names

    def _record(self, header: list[str], row: Sequence[object]) -> dict[str, Json] | RejectedLine:
        observations = self._observations
        if sum(len(cell) for cell in row if isinstance(cell, str)) > MAX_LINE:
            start = ", ".join(str(cell)[:100] for cell in row if cell != "")[:LINE_START]
            detail = f"a row of more than {MAX_LINE:,} characters"
            return observations.reject("line_too_long", detail, start.encode(errors="replace"))
        record: dict[str, Json] = dict.fromkeys((name for name in header if name), None)
        for index, cell in enumerate(row):
            if cell == "":
                continue
            if index < len(header) and header[index]:
                record[header[index]] = json_value(cell, observations.note)
            else:
                observations.note("cells beside the columns, not read")
        return record
