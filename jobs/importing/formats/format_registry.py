"""Registry of the formats of an export's records. To add one, write a module that reads it and add it to `FORMATS`."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeAlias

from tqdm import tqdm

from jobs.errors import JobError
from jobs.importing.files.record_files import PICTURES, members_of, partitions_of, parts
from jobs.importing.files.unpacking import Bounds, name_without_packing, packing_of
from jobs.importing.formats.csv_dialect import consistency, detect, physical_lines
from jobs.importing.formats.csv_rows import read_csv
from jobs.importing.formats.hdf5_files import read_hdf5
from jobs.importing.formats.json_documents import choose_array, is_document, read_json
from jobs.importing.formats.json_lines import read_json_lines
from jobs.importing.formats.observations import Observations, StructureError, shown
from jobs.importing.formats.parquet_files import read_parquet
from jobs.importing.formats.sniffing import EXPORT, describe_text
from jobs.importing.formats.sources import Source, describe_unreadable, open_source
from jobs.importing.formats.workbooks import choose_sheet, open_workbook, read_workbook
from jobs.importing.formats.xml_feeds import find_element, read_xml
from jobs.records.rejected_lines import RejectedLine
from schemas.mapping import Mapping

Json: TypeAlias = Any
# A record by the shop's column names, or a line that is not a record: verbatim, or with the reason.
Row: TypeAlias = "dict[str, Json] | bytes | RejectedLine"


class Format(Protocol):
    """A reader of one format of records."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:
        """Yield the records. Raises StructureError if the file does not consist of records."""


class Csv:
    """Reader of CSV, with any delimiter."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:
        return read_csv(file, source, mapping, observations)


class JsonLines:
    """Reader of JSON lines: one object per line."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:  # noqa: ARG002
        return read_json_lines(file, source, observations)


class JsonDocument:
    """Reader of a JSON document with an array of records, or of objects over several lines."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:
        return read_json(file, source, mapping, observations)


class Parquet:
    """Reader of Parquet."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:  # noqa: ARG002
        return read_parquet(source, observations)


class Workbook:
    """Reader of workbooks: XLSX and XLS."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:  # noqa: ARG002
        return read_workbook(source, mapping, observations)


class Xml:
    """Reader of XML with a repeated element, such as a Merchant feed."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:
        return read_xml(file, source, mapping, observations)


class Hdf5:
    """Reader of HDF5 with a dataset for each column."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, observations: Observations) -> Iterator[Row]:  # noqa: ARG002
        return read_hdf5(source, mapping, observations)


FORMATS: Final[dict[str, Format]] = {
    "jsonl": JsonLines(),
    "json": JsonDocument(),
    "csv": Csv(),
    "parquet": Parquet(),
    "xlsx": Workbook(),
    "xml": Xml(),
    "hdf5": Hdf5(),
}
_BINARY: Final = {"parquet": "a Parquet file", "xlsx": "a workbook", "hdf5": "an HDF5 file"}
_CSV_ENDINGS: Final = (".csv", ".tsv", ".tab", ".psv", ".txt")
_LEAST_CONSISTENT: Final = 0.8  # share of rows as long as the header, for CSV that only its delimiter shows
_UNMAPPED: Final = Mapping(records=("*",), product_id="")  # of a file that is looked at without a mapping
_NOT_SAMPLED: Final = (".yaml", ".yml", ".md", ".html", ".htm", ".py", ".pdf", ".log")


def format_of(source: Source, mapping: Mapping) -> str:
    """Return the format of a file, from the mapping or from its content. Raises StructureError if it is unknown."""
    if source.binary:
        if mapping.format not in ("auto", source.binary):
            raise StructureError(
                f"{_BINARY[source.binary]}, but the mapping's `format` is {mapping.format}; nothing was imported: leave it out"
            )
        return source.binary
    kind = describe_text(source.sample)
    if mapping.format in _BINARY:
        raise StructureError(
            f"{kind or 'text'}, but the mapping's `format` is {mapping.format}; nothing was imported: leave `format` out"
        )
    if mapping.format != "auto":
        return mapping.format
    lines = [
        stripped for line in physical_lines(source.sample[:100_000]) if (stripped := line.strip("\ufeff\x1e \t\r\n"))
    ]
    by_name = name_without_packing(source.name)
    if not lines:
        return "csv" if by_name.endswith(_CSV_ENDINGS) else "jsonl"
    if lines[0].startswith("{"):
        return "json" if is_document(source.sample, mapping, source.whole) else "jsonl"
    if kind == "XML":
        return "xml"
    dialect = detect(source.sample, source.whole, mapping)
    header: list[str] = []
    with contextlib.suppress(csv.Error):  # the reader will report what is wrong
        header = next(dialect.parse(lines[dialect.skipped :]), [])
    if not set(mapping.id_columns).isdisjoint(name.strip() for name in header):
        return "csv"
    if kind == "a JSON array":
        return "json"
    if 2 * sum(line.startswith("{") for line in lines[:20]) >= len(lines[:20]):
        return "jsonl"  # the first lines are damaged
    if kind:
        raise StructureError(f"{kind}; nothing was imported: {EXPORT}")
    if by_name.endswith(_CSV_ENDINGS) or mapping.header:
        return "csv"
    if (
        not mapping.columns
        and len(lines) > 2
        and len(header) > 1
        and consistency(dialect, lines)[0] > _LEAST_CONSISTENT
    ):
        return "csv"
    raise StructureError(
        f"none of the formats that are read, and not CSV with the column {mapping.product_id!r}; it begins with "
        f"{shown(lines[0])}; nothing was imported: correct the export or the mapping"
    )


def open_records(path: Path, folder: Path, mapping: Mapping, bounds: Bounds) -> list[Source]:
    """Return the file at `path` of the export in `folder`; of a zip, the files of records in it.

    Raises:
        JobError: the file is damaged, or has a format that no reader reads.
    """
    try:
        packing = packing_of(path)
    except OSError as error:
        raise JobError(describe_unreadable(path, error)) from error
    partitions = partitions_of(path, folder)
    members = members_of(path, mapping.records) if packing == "zip" else [""]
    return [open_source(path, mapping, bounds, member=member, partitions=partitions) for member in members]


def read_records(source: Source, mapping: Mapping, observations: Observations, progress: bool) -> Iterator[Row]:
    """Yield the rows of a file. Raises JobError if it is damaged or most of its rows are not records."""
    observations.begin_file(source.name)
    count = 0
    try:
        name = format_of(source, mapping)
        with source.open(progress and not source.binary) as file:
            rows = FORMATS[name].read(file, source, mapping, observations)
            for row in tqdm(rows, desc=source.name, unit=" rows", disable=not (progress and source.binary)):
                count += 1
                yield row
        observations.check_file()
    except OSError as error:
        raise JobError(describe_unreadable(source.path, error)) from error
    except UnicodeDecodeError as error:
        raise JobError(
            f"{source.label}: after {count:,} records: not {source.encoding.upper()} ({error.reason}); nothing was imported: "
            "export the file again, or set `encoding` in the mapping"
        ) from error
    except StructureError as error:
        raise JobError(f"{source.label}: {f'after {count:,} records: ' if count else ''}{error}") from error


@dataclass(frozen=True, slots=True)
class FileSample:
    """The first records of a file, and how the file is written."""

    format: str  # as a mapping names it
    encoding: str  # of a text; empty for a binary format
    delimiter: str  # of CSV; empty for any other format
    packed: str  # gzip, bzip2, xz, Zstandard or zip; empty if it is not packed
    columns: tuple[str, ...]  # names of all columns of the rows, in order
    rows: list[dict[str, Json]]
    records_at: str  # path of a JSON document's array, or name of the repeated XML element; may be empty
    sheet: str  # of a workbook; empty for any other format


def read_sample(path: Path, limit: int) -> FileSample:
    """Read the first `limit` records of a file, or of the first part of a folder of Parquet files, without a mapping.

    Lines that are not records are left out. A text that is not UTF-8 is read as cp1252 if that fits.

    Raises:
        JobError: the file is damaged, or has a format that no reader reads.
    """
    files = parts(path)
    if not files:
        raise JobError(f"{path}: no file, and no folder of Parquet files")
    folder, mapping = path.parent if path.is_file() else path, _UNMAPPED
    source = open_records(files[0], folder, mapping, Bounds())[0]
    if not source.binary and source.encoding == "utf-8" and _is_cp1252(source.start):
        mapping = mapping.model_copy(update={"encoding": "cp1252"})
        source = replace(
            source, encoding="cp1252", sample=source.sample.encode(errors="surrogateescape").decode("cp1252")
        )
    try:
        name = format_of(source, mapping)
        rows: list[dict[str, Json]] = []
        reader = read_records(source, mapping, Observations(), False)
        with contextlib.closing(reader):  # type: ignore[type-var]
            rows += itertools.islice((row for row in reader if isinstance(row, dict)), limit)
        records_at = sheet = ""
        if name == "json":
            records_at = choose_array(source, mapping) or ""
        elif name == "xml":
            records_at = find_element(source, mapping)[-1]
        elif name == "xlsx":
            with source.seekable() as unpacked:
                sheet = choose_sheet(open_workbook(unpacked, source, Observations()), mapping)[0].name
        delimiter = detect(source.sample, source.whole, mapping).delimiter if name == "csv" else ""
    except StructureError as error:
        raise JobError(f"{source.label}: {error}") from error
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    encoding = "" if source.binary else source.encoding
    return FileSample(name, encoding, delimiter, source.packing, columns, rows, records_at, sheet)


def _is_cp1252(start: bytes) -> bool:
    """Return whether the first bytes of a file are not UTF-8, but may be cp1252."""
    try:
        start[: len(start) - 4].decode()
    except UnicodeDecodeError as error:
        if error.end >= len(start) - 8:
            return False
        with contextlib.suppress(UnicodeDecodeError):
            start.decode("cp1252")
            return True
    return False


def find_candidates(folder: Path) -> list[Path]:
    """Return the files of an export that may hold records, and its folders of Parquet files. Pictures are left out.

    Raises:
        JobError: `folder` does not exist.
    """
    if not folder.is_dir():
        raise JobError(f"{folder}: no such folder; give the folder of the shop's export")
    root, candidates = folder.resolve(), dict[Path, None]()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "~$", "_")) for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or not path.resolve().is_relative_to(root):
            continue
        if path.name.lower().endswith((*PICTURES, *_NOT_SAMPLED)):
            continue
        with contextlib.suppress(JobError, StructureError):
            source = open_records(path, folder, _UNMAPPED, Bounds())[0]
            name = format_of(source, _UNMAPPED)
            candidates[_table_of(path, folder) if name == "parquet" else path] = None
    return list(candidates)


def _table_of(path: Path, folder: Path) -> Path:
    """Return the folder whose parts a Parquet file is one of; the file itself if it stands alone."""
    relative = path.relative_to(folder)
    first = next((index for index, part in enumerate(relative.parts[:-1]) if "=" in part), None)
    if first:
        return folder / Path(*relative.parts[:first])
    if path.parent != folder and (path.name.startswith("part-") or path.parent.name.endswith(".parquet")):
        return path.parent
    return path
