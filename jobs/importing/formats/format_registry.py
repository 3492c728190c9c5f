"""Registry of the formats of an export's records. To add one, write a module that reads it and add it to `FORMATS`."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeAlias

from jobs.errors import JobError
from jobs.importing.formats.csv_dialect import detect, physical_lines
from jobs.importing.formats.csv_rows import read_csv
from jobs.importing.formats.json_lines import read_json_lines
from jobs.importing.formats.observations import Observations, StructureError, shown
from jobs.importing.formats.sniffing import describe_text
from jobs.importing.formats.sources import Source, describe_unreadable
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


FORMATS: Final[dict[str, Format]] = {"jsonl": JsonLines(), "csv": Csv()}
_NO_RECORDS: Final = (".", "~$")  # prefixes of hidden files and of an office program's lock files
_CSV_ENDINGS: Final = (".csv", ".tsv", ".tab", ".psv", ".txt")


def format_of(source: Source, mapping: Mapping) -> str:
    """Return the format of a file, from the mapping or from its content. Raises StructureError if it is unknown."""
    if mapping.format != "auto":
        return mapping.format
    lines = [
        stripped for line in physical_lines(source.sample[:100_000]) if (stripped := line.strip("\ufeff\x1e \t\r\n"))
    ]
    by_name = source.path.name.lower().removesuffix(".gz")
    if not lines:
        return "csv" if by_name.endswith(_CSV_ENDINGS) else "jsonl"
    if lines[0].startswith("{"):
        return "jsonl"
    dialect = detect(source.sample, source.whole, mapping)
    header: list[str] = []
    with contextlib.suppress(csv.Error):  # the reader will report what is wrong
        header = next(dialect.parse(lines[dialect.skipped :]), [])
    if not set(mapping.id_columns).isdisjoint(name.strip() for name in header):
        return "csv"
    if 2 * sum(line.startswith("{") for line in lines[:20]) >= len(lines[:20]):
        return "jsonl"  # the first lines are damaged
    if kind := describe_text(source.sample):
        raise StructureError(f"{kind}; nothing was imported: export the records as JSON lines or CSV")
    if by_name.endswith(_CSV_ENDINGS):
        return "csv"
    raise StructureError(
        f"neither JSON lines nor CSV with the column {mapping.product_id!r}; it begins with {shown(lines[0])}; nothing was "
        "imported: correct the export or the mapping"
    )


def find_records(folder: Path, mapping: Mapping) -> tuple[list[Path], list[Path]]:
    """Return the files of the first pattern that matches, and the files that only later patterns match.

    Raises:
        JobError: no pattern matches a file, or a file is a link that leads out of `folder`.
    """
    if not folder.is_dir():
        raise JobError(f"{folder}: no such folder; give the folder of the shop's export")
    by_pattern: list[list[Path]] = []
    for pattern in mapping.records:
        try:
            matches = sorted(
                path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(_NO_RECORDS)
            )
        except (NotImplementedError, ValueError, IndexError) as error:
            raise JobError(
                f"{pattern!r} of the mapping's `records` is not a pattern within the export: {error}"
            ) from error
        if matches:
            by_pattern.append(matches)
    if not by_pattern:
        seen = sorted(path.name for path in folder.iterdir())[:20]
        raise JobError(f"{folder}: no records; looked for {', '.join(mapping.records)}; the folder has {seen}")
    files = by_pattern[0]
    root = folder.resolve()
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise JobError(
                f"{path} leads out of the export, to {path.resolve()}; copy the file into the export instead"
            )
    return files, sorted({path for matches in by_pattern[1:] for path in matches} - set(files))


def read_records(source: Source, mapping: Mapping, observations: Observations, progress: bool) -> Iterator[Row]:
    """Yield the rows of a file. Raises JobError if it is damaged or most of its rows are not records."""
    observations.begin_file(source.path.name)
    count = 0
    try:
        with source.open(progress) as file:
            for row in FORMATS[format_of(source, mapping)].read(file, source, mapping, observations):
                count += 1
                yield row
        observations.check_file()
    except OSError as error:
        raise JobError(describe_unreadable(source.path, error)) from error
    except UnicodeDecodeError as error:
        raise JobError(
            f"{source.path}: after {count:,} records: not {source.encoding.upper()} ({error.reason}); nothing was imported: "
            "export the file again, or set `encoding` in the mapping"
        ) from error
    except StructureError as error:
        raise JobError(f"{source.path}: {f'after {count:,} records: ' if count else ''}{error}") from error
