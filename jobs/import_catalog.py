"""Bring a shop's export into the lake: its records as JSON lines in our names, its pictures by their content.

Nothing is judged here. What a record says wrongly is kept as it is, and a line that cannot be read is passed on byte
for byte, so that validate can quarantine it with its reason and its raw text.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gzip
import hashlib
import io
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, Self, TypeAlias, cast

from tqdm import tqdm

from cma_clip_core.pictures import MAX_BYTES, PictureError, fetch
from jobs import object_store, storage
from jobs.errors import JobError, TransientError
from jobs.lake import Lake, check_day
from jobs.records import unique
from jobs.settings import Settings
from jobs.steps import measure
from jobs.storage import Place
from schemas.documents import RawFile, RawManifest
from schemas.mapping import Mapping, load_mapping

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

Json: TypeAlias = Any
Row: TypeAlias = "dict[str, Json] | bytes"  # a record by the shop's column names, or a line that is none, verbatim

PART_ROWS: Final = 10_000
_AT_ONCE: Final = 32  # requests to S3
MAX_LINE: Final = 64 * 2**20  # bytes; a longer line is no record but a file without line ends
MAX_FIELD: Final = 16 * 2**20  # characters of a CSV field; a longer one is a quote that is never closed
MISSING: Final = "missing"  # no folder of the lake: preprocess reports what points into it as missing

# Of bzip2 and LZMA zipfile unpacks whatever some packed bytes hold: gigabytes, of a few thousand.
_UNPACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_NUMBER: Final = re.compile(r"\s*[+-]?(\d{1,300}(\.\d{0,300})?|\.\d{1,300})([eE][+-]?\d{1,3})?\s*")
_BRACES: Final = re.compile(r"\{([^{}]+)\}")
_UNSAFE: Final = re.compile(r"^/|^[A-Za-z][A-Za-z0-9+.-]*:|(^|/)\.\.(/|$)|[\x00-\x1f\x7f\\\ud800-\udfff]")
_EXTENSION: Final = re.compile(r"\.([A-Za-z0-9]{1,5})$")


def import_catalog(settings: Settings, folder: Path, ds: str, mapping: str) -> RawManifest:
    """Write the export in `folder` as the raw catalog of the day `ds`, in place of what the day had before.

    The day appears in one step, whole: a failure or a kill leaves the day as it was, or (in the instant of the swap)
    absent. Pictures are added to ``catalog/pictures`` under the hash of their content.

    Args:
        settings: where the lake is.
        folder: the shop's export, laid out as the mapping says.
        ds: day of the catalog, YYYY-MM-DD.
        mapping: a shipped mapping's name, or the path of a YAML file.

    Returns:
        The day's manifest; its `rows` counts the lines written, which are all of the export but blank ones.

    Raises:
        JobError: the export is missing or damaged, or its columns are not those of the mapping.
        ContractError: the mapping is wrong.
    """
    lake = Lake(settings.root)
    day, columns = lake.raw(check_day(ds)), load_mapping(mapping)
    files, is_csv = find_records(folder, columns)
    alone = storage.locked(day, busy="another import of this day is running; wait for it")
    with measure("import-catalog") as measured, alone, contextlib.ExitStack() as stack:
        target = DayOnDisk(day, stack) if storage.on_disk(day) else DayOnS3(day, stack)
        pictures = None
        if columns.pictures:
            sources, counts = open_sources(folder, columns, stack), Counter[str]()
            pictures = PictureStore(picture_writer(lake, day, counts, stack), sources, counts)
        mapper = Mapper(columns, pictures, numbers_are_text=is_csv)
        rows = itertools.chain.from_iterable(_read(file, is_csv, settings.progress) for file in files)
        parts = write_parts(target.add, (line for row in rows if (line := mapper.line(row))))
        mapper.check(files)
        if pictures is not None:
            pictures.writer.finish()  # the day may name only what is there
        manifest = RawManifest(
            ds=ds,
            source=str(folder.resolve()),
            files=parts,
            rows=sum(part.rows for part in parts),
            created_at=datetime.now(UTC),
        )
        target.publish(manifest)
        measured.rows = manifest.rows
    if pictures is not None:
        log.info("import-catalog: pictures %s", dict(pictures.counts))
    return manifest


# --- reading


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


def _read(path: Path, is_csv: bool, progress: bool) -> Iterator[Row]:
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
        record = _DECODER.decode(line.decode())
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a name twice, numbers without end, brackets without end
        return line
    return record if isinstance(record, dict) else line


def _finite(text: str) -> float | str:
    """Return the number, or its text where it is too large for one: no JSON that we write may say Infinity."""
    number = float(text)
    return text if number in (float("inf"), float("-inf")) else number


# Of a name that is there twice, which value is meant is not known: the line goes to validate as it is.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=unique, parse_float=_finite, parse_constant=str)


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


# --- mapping


class Mapper:
    """Turns the shop's rows into lines of the raw catalog."""

    def __init__(self, mapping: Mapping, pictures: PictureStore | None, *, numbers_are_text: bool) -> None:
        self._mapping = mapping
        self._pictures = pictures
        self._numbers_are_text = numbers_are_text  # CSV
        self._nulls = frozenset(text.strip() for text in mapping.null_values)
        self._unseen = set(mapping.columns)  # columns that no record had so far
        self._columns: dict[str, None] = {}  # columns that records had, for the error's message
        self._records = self._lines = 0

    def line(self, row: Row) -> bytes:
        """Return `row` as a line of the raw catalog, its end included."""
        self._lines += 1
        if isinstance(row, bytes):
            # The one change to a line that cannot be read: many readers take a lone carriage return for a line end.
            return row.replace(b"\r", b" ") + b"\n"
        self._records += 1
        if self._unseen:
            self._unseen = {column for column in self._unseen if get_column(row, column) is ABSENT}
            if len(self._columns) < 200:
                self._columns.update(dict.fromkeys(row))
        # ASCII, with escapes: whatever characters the shop used, a line stays one line and is valid UTF-8.
        return json.dumps(self.record(row), separators=(",", ":")).encode() + b"\n"

    def record(self, row: dict[str, Json]) -> dict[str, Json]:
        """Return `row` by our own names. Nothing is judged: values of a wrong type stay as they are."""
        mapping = self._mapping
        titles = (self._value(row, column) for column in mapping.title)
        record = {
            "product_id": _identity(self._value(row, mapping.product_id)),
            "title": next((title for title in titles if title is not None), None),
            "brand": self._value(row, mapping.brand),
            "description": _joined([self._value(row, column) for column in mapping.description]),
            "price": self._value(row, mapping.price),
            "image_uri": self._value(row, mapping.image_uri),
            "image_version": self._value(row, mapping.image_version),
            "updated_at": self._value(row, mapping.updated_at),
            "attributes": self._labels(row),
        }
        if self._numbers_are_text:
            record["price"] = _number(record["price"])
        if self._pictures is not None and not mapping.image_uri:
            name = self.picture_name(row)
            if isinstance(name, str):
                record["image_uri"], record["image_version"] = self._pictures.add(name)
            else:
                record["image_uri"] = name
        return record

    def check(self, files: Sequence[Path]) -> None:
        """Raise JobError where the files had no record at all, or lack columns that the mapping names."""
        names = ", ".join(str(file) for file in files)
        if not self._lines:
            raise JobError(f"{names}: no records in it; nothing was imported")
        if not self._records:
            return  # not one line could be read: validate says so, with the lines
        lacking = self._unseen - set(self._mapping.optional)
        if not any(column not in self._unseen for column in (*self._mapping.title, *self._mapping.description)):
            lacking |= {*self._mapping.title, *self._mapping.description}
        if lacking:
            raise JobError(
                f"{names}: no record has the columns {sorted(lacking)} that the mapping names; the columns are "
                f"{sorted(self._columns)}. Correct the mapping, or list them under `optional`"
            )

    def _value(self, row: dict[str, Json], column: str) -> Json:
        value = get_column(row, column) if column else None
        return None if value is ABSENT or self._is_null(value) else value

    def _is_null(self, value: Json) -> bool:
        return value is None or (isinstance(value, str) and value.strip() in self._nulls)

    def _labels(self, row: dict[str, Json]) -> dict[str, Json]:
        labels: dict[str, Json] = {}
        for column in self._mapping.labels:
            if (label := self._label(self._value(row, column))) is not None:
                labels[column] = label
        for column in self._mapping.label_objects:
            found = self._value(row, column)
            if self._numbers_are_text and isinstance(found, str):
                with contextlib.suppress(ValueError, RecursionError):  # an object in a CSV cell
                    found = _DECODER.decode(found)
            if isinstance(found, dict):
                for name, value in found.items():
                    labels.setdefault(name, self._label(value))
            else:
                labels.setdefault(column, found)  # no object: kept under the column's name, for validate to report
        return {name: value for name, value in labels.items() if value is not None}

    def _label(self, value: Json) -> Json:
        separator = self._mapping.list_separator
        if isinstance(value, str) and separator and separator in value:
            value = [part.strip() for part in value.split(separator)]
        if isinstance(value, list):
            value = [item for item in value if not self._is_null(item)] or None
        return None if self._is_null(value) else value

    def picture_name(self, row: dict[str, Json]) -> Json:
        """Return the name of the row's picture; None where it has none; a value that is no name as it is."""
        parts = {column: self._value(row, column) for column in self._mapping.picture_columns}
        for column, value in parts.items():
            if value is None or not isinstance(value, str | int | float) or isinstance(value, bool):
                return value
            parts[column] = _identity(value)
        return _BRACES.sub(lambda match: parts[match.group(1)], self._mapping.picture_name)


ABSENT: Final = object()


def is_unsafe(name: str) -> bool:
    """Whether the picture name could lead out of a folder: it is neither read nor written, wherever it leads."""
    return _UNSAFE.search(name) is not None


def get_column(row: dict[str, Json], column: str) -> Json:
    """Return the value of `column`, through nested objects by dots; `ABSENT` where there is none."""
    if column in row:
        return row[column]
    node: Json = row
    for step in column.split("."):
        if not isinstance(node, dict) or step not in node:
            return ABSENT
        node = node[step]
    return node


def _identity(value: Json) -> Json:
    """Return a number as the text it is known by (1163.0, as spreadsheets write ids, as 1163); all else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if value == int(value) else str(value)


def _joined(values: list[Json]) -> Json:
    given = [value for value in values if value is not None]
    if len(given) <= 1:
        return given[0] if given else None
    return "\n\n".join(given) if all(isinstance(value, str) for value in given) else given


def _number(value: Json) -> Json:
    """Return the number that a CSV cell writes, or the cell as it is where that is none."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        number = _finite(value.strip())
        return int(number) if isinstance(number, float) and number.is_integer() and "." not in value else number
    return value


# --- pictures

# Name to bytes; None: not in it. Raises PictureError, and OSError where not the picture but its disk is at fault.
Source: TypeAlias = Callable[[str], "bytes | None"]


def open_sources(folder: Path, mapping: Mapping, stack: contextlib.ExitStack) -> list[Source]:
    """Return the export's zips and folders of pictures. Raises JobError for none, or for a zip that is broken."""
    sources: list[Source] = []
    for name in mapping.pictures:
        path = folder / name
        if path.is_dir():
            sources.append(_folder_source(path))
        elif path.is_file():
            try:
                sources.append(_zip_source(stack.enter_context(zipfile.ZipFile(path))))
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise JobError(
                    f"{path}: not a zip, or a truncated one ({error}); nothing was imported: copy it again"
                ) from error
    if not sources:
        raise JobError(f"{folder}: no pictures; looked for {', '.join(mapping.pictures)}")
    return sources


def _zip_source(archive: zipfile.ZipFile) -> Source:
    def read(name: str) -> bytes | None:
        try:
            member = archive.getinfo(name)
        except KeyError:
            return None
        if member.file_size > MAX_BYTES:
            raise PictureError("too_large", f"{member.file_size:,} bytes")
        if member.compress_type not in _UNPACKED:
            raise PictureError("broken", f"packed by method {member.compress_type}; zip it by deflate or unpacked")
        try:
            with archive.open(member) as file:
                return file.read(member.file_size)  # without a size, all that is packed would be in memory at once
        except OSError as error:
            if error.errno != errno.EINVAL:  # the zip names a place that no file has
                raise OSError(error.errno, error.strerror, archive.filename) from error
            raise PictureError("broken", str(error)) from error
        # A wrong checksum, a damaged stream, a password: on hostile bytes zipfile raises nearly anything.
        except Exception as error:
            raise PictureError("broken", f"{type(error).__name__}: {error}"[:300]) from error

    return read


def _folder_source(folder: Path) -> Source:
    prefix = str(folder)

    def read(name: str) -> bytes | None:
        # A zip of the folder `images` holds `images/1.jpg`, and so may the mapping name it.
        names = dict.fromkeys((name, name.removeprefix(f"{folder.name}/")))
        found = next((each for each in names if os.path.lexists(f"{prefix}/{each}")), None)
        if found is None:
            return None
        try:
            return fetch(found, [folder])
        except PictureError as error:
            if error.status != "empty":
                raise
            return b""

    return read


@dataclass(slots=True)
class PictureStore:
    """Pictures by the hash of their content: ``<two digits>/<SHA-1>.<ending>``."""

    writer: PictureWriter
    sources: Sequence[Source]
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str) -> tuple[str, str | None]:
        """Copy the picture `name` into the store, if it is not there yet.

        Returns:
            its path relative to the store, and its hash. A name that leads out of the export is neither read nor
            written but returned as it is, for validate to refuse; for a picture that cannot be had, a path that is
            not there, for preprocess to report.

        Raises:
            JobError: the export could not be read, by a fault of its disk or mount.
        """
        if is_unsafe(name):
            self.counts["forbidden"] += 1
            return name, None
        try:
            data = next((data for source in self.sources if (data := source(name)) is not None), None)
            status = "missing"
        except PictureError as error:
            data, status = None, error.status
            if self.counts[status] < 10:
                log.warning("import-catalog: picture %.200r: %s", name, error)
        except OSError as error:  # of the disk or the network: no word on the picture
            raise JobError(
                f"picture {name!r} could not be read ({error}); nothing was imported: see that its disk or mount works, "
                "and import again"
            ) from error
        if data is None:
            self.counts[status] += 1
            return f"{MISSING}/{re.sub(r'[^A-Za-z0-9._/-]', '_', name)[-200:].lstrip('/')}", None
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        ending = _EXTENSION.search(name)
        path = f"{digest[:2]}/{digest}.{ending.group(1).lower() if ending else 'img'}"
        self.writer.add(path, data)
        return path, digest


class PictureWriter(Protocol):
    """Writes pictures that are not there yet, and counts those that were ("known") and those that were not ("added")."""

    def add(self, path: str, data: bytes) -> None:
        """Write a picture, now or before `finish` returns."""

    def finish(self) -> None:
        """Return when all are written, for good. Raises OSError where one could not be."""


def picture_writer(lake: Lake, day: Place, counts: Counter[str], stack: contextlib.ExitStack) -> PictureWriter:
    """Return what writes pictures into the lake, while `stack` is open."""
    if not storage.on_disk(lake.pictures):
        return stack.enter_context(PicturesToS3(lake.pictures, counts))
    scratch = lake.pictures / f".{day.name}"
    storage.remove_folder(scratch)  # of a killed import
    stack.callback(storage.remove_folder, scratch)
    scratch.mkdir(parents=True)
    return PicturesToDisk(lake.pictures, scratch, counts)


@dataclass(frozen=True, slots=True)
class PicturesToDisk:
    """Writes whole, by rename; without `storage.whole_file`, whose fsync for each picture takes minutes."""

    folder: Path
    scratch: Path  # on the same disk, for pictures that are being written
    counts: Counter[str]

    def add(self, path: str, data: bytes) -> None:
        target = self.folder / path
        known = storage.size(target) == len(data)
        self.counts["known" if known else "added"] += 1
        if known:
            return
        temporary = self.scratch / target.name
        temporary.write_bytes(data)
        target.parent.mkdir(exist_ok=True)
        temporary.replace(target)

    def finish(self) -> None:
        os.sync()  # all at once


class PicturesToS3:
    """Asks and writes many at a time: each is a request or two that mostly waits.

    Raises JobError where the server does not let us in, TransientError where it, or the network to it, fails.
    """

    def __init__(self, folder: UPath, counts: Counter[str]) -> None:
        self._folder, self._fs, self._counts = folder.path, folder.fs, counts
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="picture")
        self._running: set[Future[str]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, path: str, data: bytes) -> None:
        if len(self._running) >= 2 * _AT_ONCE:  # so that few are held in memory
            self._collect(FIRST_COMPLETED)
        self._running.add(self._pool.submit(self._write, f"{self._folder}/{path}", data))

    def finish(self) -> None:
        self._collect(ALL_COMPLETED)

    def _write(self, path: str, data: bytes) -> str:
        from cma_clip_core import objects
        from jobs import s3_check

        try:
            if objects.size(self._fs, path) == len(data):
                return "known"
            objects.write(self._fs, path, data)
        except objects.ObjectError as error:
            why = s3_check.explain(error, f"s3://{path}")
            raise why or TransientError(
                f"{error}; nothing was imported: import again when its server can be reached"
            ) from error
        return "added"

    def _collect(self, until: str) -> None:
        done, self._running = wait(self._running, return_when=until)
        self._counts.update(future.result() for future in done)


# --- writing


class DayOnDisk:
    """A day's raw files in a folder that takes the day's place in one step."""

    def __init__(self, day: Path, stack: contextlib.ExitStack) -> None:
        self._day = day
        self._fresh, self._old = (day.with_name(f".{day.name}.{what}") for what in ("fresh", "old"))
        for leftover in (self._fresh, self._old):
            storage.remove_folder(leftover)  # of a killed import
            stack.callback(storage.remove_folder, leftover)  # of this one, where it fails
        self._fresh.mkdir(parents=True)

    def add(self, name: str, written: Path, digest: str) -> str:  # noqa: ARG002 - of `DayOnS3`
        """Take over a file; return its name."""
        with storage.whole_file(self._fresh / name) as temporary:
            shutil.move(written, temporary)
        return name

    def publish(self, manifest: RawManifest) -> None:
        storage.write_document(self._fresh / "_manifest.json", manifest)
        if self._day.exists():
            self._day.rename(self._old)
        self._fresh.rename(self._day)


class DayOnS3:
    """A day's raw files beside those that it had before, until the manifest names them."""

    def __init__(self, day: UPath, stack: contextlib.ExitStack) -> None:
        self._day, self._names = day, set[str]()
        stack.callback(self._remove_others)

    def add(self, name: str, written: Path, digest: str) -> str:
        """Take over a file; return its name, by its content: none that the day has is written over."""
        stem, _, ending = name.partition(".")
        own = f"{stem}-{digest[:12]}.{ending}"
        object_store.upload(written, self._day / own)
        return own

    def publish(self, manifest: RawManifest) -> None:
        storage.write_document(self._day / "_manifest.json", manifest)

    def _remove_others(self) -> None:
        """Remove what the manifest does not name: what the day had before, or what a failed import wrote."""
        found = storage.read_document(self._day / "_manifest.json", RawManifest)
        named = {"_manifest.json", *(file.name for file in (found.files if found else ()))}
        object_store.remove([path for path in object_store.children(self._day) if path.name not in named])


def write_parts(add: Callable[[str, Path, str], str], lines: Iterable[bytes]) -> tuple[RawFile, ...]:
    """Write `lines` to files ``part-00000.jsonl.gz`` and so on, and `add` each; the same lines give the same bytes."""
    source = iter(lines)
    parts: list[RawFile] = []
    with tempfile.TemporaryDirectory(prefix="import-") as folder:
        while (first := next(source, None)) is not None:
            path, rows = Path(folder) / f"part-{len(parts):05d}.jsonl.gz", 0
            with (
                path.open("wb") as file,
                gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
                io.BufferedWriter(cast(io.RawIOBase, packed), 2**18) as buffer,
            ):
                for line in itertools.chain([first], itertools.islice(source, PART_ROWS - 1)):
                    buffer.write(line)
                    rows += 1
            size, digest = path.stat().st_size, storage.sha256(path)
            parts.append(RawFile(name=add(path.name, path, digest), bytes=size, rows=rows, sha256=digest))
            path.unlink(missing_ok=True)
    return tuple(parts)
