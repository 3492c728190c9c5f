"""Read an export's files of records: JSON lines and CSV, gzipped or not. Nothing is judged here."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, cast

from tqdm import tqdm

from jobs.errors import JobError
from jobs.records import unique
from schemas.mapping import Mapping

Json: TypeAlias = Any
Row: TypeAlias = "dict[str, Json] | bytes"  # a record by the shop's column names, or a line that is none, verbatim

MAX_LINE: Final = 64 * 2**20  # bytes; a longer line is no record but a file without line ends
MAX_FIELD: Final = 16 * 2**20  # characters of a CSV field; a longer one is a quote that is never closed


def find_records(folder: Path, mapping: Mapping) -> tuple[list[Path], bool]:
    """Return the files of the first pattern that matches, and whether they are CSV. Raises JobError for none."""
    if not folder.is_dir():
        raise JobError(f"{folder}: no such folder; give the folder of the shop's export")
    for pattern in mapping.records:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            by_name = found[0].name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
            return found, mapping.format == "csv" or (mapping.format == "auto" and by_name)
    seen = sorted(path.name for path in folder.iterdir())[:20]
    raise JobError(f"{folder}: no records; looked for {', '.join(mapping.records)}; the folder has {seen}")


def read_records(path: Path, is_csv: bool, progress: bool) -> Iterator[Row]:
    """Yield the rows of the file at `path`, gzipped or not. Raises JobError where it is damaged."""
    count = 0
    with (
        path.open("rb") as raw,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        file = _unpacked(raw)
        try:
            for count, row in enumerate(read_csv(file) if is_csv else read_json_lines(file), 1):
                yield row
                if count % 1_000 == 0:
                    bar.update(raw.tell() - bar.n)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise JobError(
                f"{path}: truncated or damaged gzip after {count:,} records ({error}); nothing was imported: "
                "copy the file again, or export it again"
            ) from error
        except StructureError as error:
            raise JobError(f"{path}: after {count:,} records: {error}") from error
        bar.update(raw.tell() - bar.n)


def _unpacked(raw: BinaryIO) -> BinaryIO:
    """Return `raw`, or what is packed in it where it starts as a gzip does, whatever its name."""
    start = raw.read(2)
    raw.seek(0)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise JobError(f"{raw.name}: UTF-16; export it as UTF-8")
    return cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if start == b"\x1f\x8b" else raw


@contextlib.contextmanager
def open_records(path: Path) -> Iterator[BinaryIO]:
    """Open the file of records at `path` for reading, gzipped or not."""
    with path.open("rb") as raw:
        yield _unpacked(raw)


class StructureError(Exception):
    """The file is not made of records; the message says what it looks like."""


def read_json_lines(file: BinaryIO) -> Iterator[Row]:
    """Yield each line's object; a line that is no JSON, no object, or no UTF-8, as it is. Blank lines are left out."""
    first = True
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise StructureError(f"a line of more than {MAX_LINE:,} bytes; JSON lines have one object on each line")
        if first:
            line, first = line.removeprefix(b"\xef\xbb\xbf"), False
        if line.strip():
            yield _parse(line.rstrip(b"\r\n"))


def _parse(line: bytes) -> Row:
    try:
        record = DECODER.decode(line.decode())
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a name twice, numbers without end, brackets without end
        return line
    return record if isinstance(record, dict) else line


def finite(text: str) -> float | str:
    """Return the number, or its text where it is too large for one: no JSON that we write may say Infinity."""
    number = float(text)
    return text if number in (float("inf"), float("-inf")) else number


# Of a name that is there twice, which value is meant is not known: the line goes to validate as it is.
DECODER: Final = json.JSONDecoder(object_pairs_hook=unique, parse_float=finite, parse_constant=str)


def read_csv(file: BinaryIO) -> Iterator[Row]:
    """Yield each row by the header's names, every value a string.

    A row of another length than the header becomes a JSON list; one that is no UTF-8, or a line whose quotes are wrong,
    its bytes on one line: none is a record, so validate quarantines it. Quotes that go wrong over several lines are an
    error: which of the lines are records is not known, and a quote that is never closed takes in all that follow.
    """
    rows = CsvRows(file)
    for cells, raw in rows:
        if cells is None or not _is_text(raw):
            yield raw.rstrip("\r\n").replace("\r", "\\r").replace("\n", "\\n").encode(errors="surrogateescape")
        elif not any(cell.strip() for cell in cells):
            continue
        elif len(cells) != len(rows.header):
            yield json.dumps(cells).encode()
        else:
            yield dict(zip(rows.header, cells, strict=True))


class CsvRows:
    """The rows of a CSV file below its header: each one's cells, None where the quotes of its one line are wrong, and
    its text, line end included. Bytes that are no UTF-8 are there as surrogates.

    Raises, when it is made and when it is iterated over:
        StructureError: the header cannot be used, or quotes go wrong over several lines.
    """

    def __init__(self, file: BinaryIO) -> None:
        csv.field_size_limit(MAX_FIELD)  # of the process; the default refuses what is merely long
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        heading = text.readline(MAX_LINE)
        self.delimiter = max(",;\t|", key=heading.count)
        self._rows = _csv_rows(text, heading, self.delimiter)
        header, self.heading = next(self._rows, ([], ""))
        try:
            self.header = self._checked(header)
        except StructureError:
            self._rows.close()
            raise

    def __iter__(self) -> Iterator[tuple[list[str] | None, str]]:
        return self._rows

    def _checked(self, header: list[str] | None) -> list[str]:
        if header is None:
            raise StructureError("line 1: the quotes of the header are wrong; correct them")
        if twice := sorted(name for name, n in Counter(header).items() if n > 1 and name.strip()):
            raise StructureError(f"the header has the columns {twice} more than once; rename or remove the others")
        return header


def _csv_rows(
    text: io.TextIOWrapper, heading: str, delimiter: str
) -> Generator[tuple[list[str] | None, str], None, None]:
    """Yield the rows of `text`, whose first line, `heading`, is read already."""
    consumed: list[str] = []

    def lines() -> Iterator[str]:
        line = heading
        while line:
            if len(line) == MAX_LINE:
                raise StructureError(f"a line of more than {MAX_LINE:,} characters")
            consumed.append(line)
            yield line
            line = text.readline(MAX_LINE)

    # Strict: without it, a quote that the file's end leaves open takes the records after it for one long text.
    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        while True:
            consumed.clear()
            cells: list[str] | None = None
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if len(consumed) > 1:
                    raise StructureError(
                        f"line {reader.line_num - len(consumed) + 1}: a quote is never closed, or a quote within a text "
                        f"is not doubled ({error}); nothing was imported: correct the line, or export the file again"
                    ) from error
            yield cells, "".join(consumed)
    finally:
        text.detach()  # the file is whoever's who opened it


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
