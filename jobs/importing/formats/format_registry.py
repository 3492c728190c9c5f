"""The formats that an export's records may have. A new one is a module that reads it, and a line in `FORMATS`."""

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
from jobs.importing.formats.noticed import Noticed, StructureError, shown
from jobs.importing.formats.sniffing import describe_text
from jobs.importing.formats.sources import Source, unreadable
from jobs.records.rejected_lines import RejectedLine
from schemas.mapping import Mapping

Json: TypeAlias = Any
# A record by the shop's column names; a line that is none, verbatim, or with the reason.
Row: TypeAlias = "dict[str, Json] | bytes | RejectedLine"


class Format(Protocol):
    """A format of records."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, noticed: Noticed) -> Iterator[Row]:
        """Yield the records. Raises StructureError where the file is not made of records."""


class Csv:
    """Comma-separated values, or others."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, noticed: Noticed) -> Iterator[Row]:
        return read_csv(file, source, mapping, noticed)


class JsonLines:
    """One JSON object a line."""

    def read(self, file: BinaryIO, source: Source, mapping: Mapping, noticed: Noticed) -> Iterator[Row]:  # noqa: ARG002
        return read_json_lines(file, source, noticed)


FORMATS: Final[dict[str, Format]] = {"jsonl": JsonLines(), "csv": Csv()}
_NO_RECORDS: Final = (".", "~$")  # hidden files, and locks of an office program
_CSV_ENDINGS: Final = (".csv", ".tsv", ".tab", ".psv", ".txt")


def format_of(source: Source, mapping: Mapping) -> str:
    """Return the format of a file: the mapping's, or what its content is. Raises StructureError for no known one."""
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
    with contextlib.suppress(csv.Error):  # reading it says what is wrong with it
        header = next(dialect.parse(lines[dialect.skipped :]), [])
    if mapping.product_id in (name.strip() for name in header):
        return "csv"
    if 2 * sum(line.startswith("{") for line in lines[:20]) >= len(lines[:20]):
        return "jsonl"  # whose first lines are damaged
    if what := describe_text(source.sample):
        raise StructureError(f"{what}; nothing was imported: export the records as JSON lines or CSV")
    if by_name.endswith(_CSV_ENDINGS):
        return "csv"
    raise StructureError(
        f"neither JSON lines nor CSV with the column {mapping.product_id!r}; it begins with {shown(lines[0])}; nothing was "
        "imported: correct the export or the mapping"
    )


def find_records(folder: Path, mapping: Mapping) -> tuple[list[Path], list[Path]]:
    """Return the files of the first pattern that matches, and those that only later ones match.

    Raises:
        JobError: there is no such file, or one is a link that leads out of `folder`.
    """
    if not folder.is_dir():
        raise JobError(f"{folder}: no such folder; give the folder of the shop's export")
    found: list[list[Path]] = []
    for pattern in mapping.records:
        try:
            matches = sorted(
                path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(_NO_RECORDS)
            )
        except (NotImplementedError, ValueError, IndexError) as error:
            raise JobError(
                f"{pattern!r} of the mapping's `records` is no pattern within the export: {error}"
            ) from error
        if matches:
            found.append(matches)
    if not found:
        seen = sorted(path.name for path in folder.iterdir())[:20]
        raise JobError(f"{folder}: no records; looked for {', '.join(mapping.records)}; the folder has {seen}")
    files = found[0]
    root = folder.resolve()
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise JobError(
                f"{path} leads out of the export, to {path.resolve()}; copy the file into the export instead"
            )
    return files, sorted({path for matches in found[1:] for path in matches} - set(files))


def read_records(source: Source, mapping: Mapping, noticed: Noticed, progress: bool) -> Iterator[Row]:
    """Yield the rows of a file. Raises JobError where it is damaged, or most of it is no records."""
    noticed.begin(source.path.name)
    count = 0
    try:
        with source.open(progress) as file:
            for row in FORMATS[format_of(source, mapping)].read(file, source, mapping, noticed):
                count += 1
                yield row
        noticed.check_file()
    except OSError as error:
        raise JobError(unreadable(source.path, error)) from error
    except UnicodeDecodeError as error:
        raise JobError(
            f"{source.path}: after {count:,} records: not {source.encoding.upper()} ({error.reason}); nothing was imported: "
            "export it again, or set `encoding` in the mapping"
        ) from error
    except StructureError as error:
        raise JobError(f"{source.path}: {f'after {count:,} records: ' if count else ''}{error}") from error
