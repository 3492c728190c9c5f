"""Open a file of an export, unpacked within bounds, with a sample of its start."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from tqdm import tqdm

from jobs.errors import JobError
from jobs.importing.formats.observations import StructureError
from jobs.importing.formats.sniffing import chosen_encoding, refuse_binary
from schemas.mapping import Mapping

# Chosen to fit Spark's default heap of 2 GB. Thirty such lines in a row pass validate in batches of 64 MiB
# (`jobs.spark.sessions`); eight lines of 62 MB crash its JVM. Product texts are a thousand times shorter.
MAX_LINE: Final = 8 * 2**20  # bytes of a line, both in the export and in the raw catalog
LINE_START: Final = 1000  # bytes kept of a longer line
SAMPLE: Final = 2 * 2**20  # bytes that are examined before a file is read
_FREE: Final = 2**30  # unpacked bytes below which the ratio is not checked
_CHUNK: Final = 2**20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on the unpacked size of a packed file."""

    total: int = 64 * 2**30  # unpacked bytes
    ratio: int = 200  # unpacked to packed bytes; checked above a gigabyte

    def check(self, path: Path, packed: int, unpacked: int) -> None:
        """Raise JobError if `packed` bytes of the file at `path` unpack to too many bytes."""
        if unpacked > self.total or (unpacked > _FREE and unpacked > self.ratio * max(packed, 1)):
            raise JobError(
                f"{path}: {packed:,} packed bytes unpack to more than {unpacked - 1:,}; nothing was imported: if the "
                "export is right, raise TAGGING_MAX_UNPACKED_GB or TAGGING_MAX_UNPACKED_RATIO"
            )


@dataclass(frozen=True, slots=True)
class Source:
    """A file of records, with the properties that its start shows."""

    path: Path
    bounds: Bounds
    packed: bool  # True for gzip
    encoding: str
    mark: bytes  # byte-order mark; may be empty
    sample: str  # start of the file; undecodable bytes are surrogates in UTF-8, otherwise replacement characters
    whole: bool  # True if the sample is the entire file

    @contextlib.contextmanager
    def open(self, progress: bool = False) -> Iterator[BinaryIO]:
        """Open the file, positioned after its byte-order mark.

        Raises:
            JobError: the packed data is damaged or unpacks to too many bytes.
        """
        with (
            self.path.open("rb") as raw,
            tqdm(
                total=self.path.stat().st_size, desc=self.path.name, unit="B", unit_scale=True, disable=not progress
            ) as bar,
            _translate_gzip_errors(self.path),
        ):
            file = io.BufferedReader(_Unpacked(raw, self.path, self.packed, self.bounds, bar), _CHUNK)
            file.read(len(self.mark))
            yield cast(BinaryIO, file)


def open_source(path: Path, mapping: Mapping, bounds: Bounds) -> Source:
    """Return the file at `path` with its encoding and sample. Raises JobError if it is damaged or is not text."""
    try:
        with path.open("rb") as raw, _translate_gzip_errors(path):
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            start = io.BufferedReader(_Unpacked(raw, path, packed, bounds), _CHUNK).read(SAMPLE + 1)
    except OSError as error:
        raise JobError(describe_unreadable(path, error)) from error
    try:
        encoding, mark = chosen_encoding(start, mapping.encoding)
        if not encoding.startswith(("utf-16", "utf-32")):
            refuse_binary(start, f"{mapping.delimiter}{mapping.quote}{mapping.escape}")
    except StructureError as error:
        raise JobError(f"{path}: {error}") from error
    whole = len(start) <= SAMPLE
    text = start[len(mark) : SAMPLE].decode(encoding, errors="surrogateescape" if encoding == "utf-8" else "replace")
    if not whole:
        text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1] or text
    return Source(path, bounds, packed, encoding, mark, text, whole)


def describe_unreadable(path: Path, error: OSError) -> str:
    """Return the error text for a file that cannot be read because of its disk or its permissions."""
    return (
        f"{path} could not be read ({error.strerror or error}); nothing was imported: check that its disk or mount works and "
        "that this user may read it, then import again"
    )


@contextlib.contextmanager
def _translate_gzip_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise JobError(
            f"{path}: truncated or damaged gzip ({error}); nothing was imported: copy the file again, or export it again"
        ) from error


class _Unpacked(io.RawIOBase):
    """Stream of a file's bytes, unpacked within bounds if they are packed."""

    def __init__(self, raw: BinaryIO, path: Path, packed: bool, bounds: Bounds, bar: tqdm[Any] | None = None) -> None:
        self._raw, self._path, self._bounds, self._bar, self._bytes = raw, path, bounds, bar, 0
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        self._packed = packed

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._bytes += len(data)
        read = self._raw.tell()
        if self._bar is not None:
            self._bar.update(read - self._bar.n)
        if self._packed:
            self._bounds.check(self._path, read, self._bytes)
        return len(data)
