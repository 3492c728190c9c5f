"""Open a file of an export, unpacked within bounds, with a sample of its start."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from jobs.errors import JobError
from jobs.importing.files.unpacking import Bounds, packing_of, unpacked
from jobs.importing.formats.observations import StructureError
from jobs.importing.formats.sniffing import binary_format, chosen_encoding, refuse_binary
from schemas.mapping import Mapping

# Chosen to fit Spark's default heap of 2 GB. Thirty such lines in a row pass validate in batches of 64 MiB
# (`jobs.spark.sessions`); eight lines of 62 MB crash its JVM. Product texts are a thousand times shorter.
MAX_LINE: Final = 8 * 2**20  # bytes of a line, both in the export and in the raw catalog
LINE_START: Final = 1000  # bytes kept of a longer line
SAMPLE: Final = 2 * 2**20  # bytes that are examined before a file is read


@dataclass(frozen=True, slots=True)
class Source:
    """A file of records, with the properties that its start shows."""

    path: Path
    member: str  # name of the file within a zip; empty for any other file
    bounds: Bounds
    packing: str  # gzip, bzip2, xz, Zstandard, zip; empty if it is not packed
    binary: str  # parquet, xlsx or hdf5, by the first bytes; empty for text
    encoding: str
    mark: bytes  # byte-order mark; may be empty
    start: bytes  # first bytes of the file
    sample: str  # `start` as text; undecodable bytes are surrogates in UTF-8, otherwise replacement characters
    whole: bool  # True if the sample is the entire file
    partitions: dict[str, str | None] = field(default_factory=dict)  # columns that the names of its folders give

    @property
    def name(self) -> str:
        """The file's name, for messages; that of a file within a zip follows the zip's."""
        return f"{self.path.name}/{self.member}" if self.member else self.path.name

    @property
    def label(self) -> str:
        """The file's path, for messages."""
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @contextlib.contextmanager
    def open(self, progress: bool = False) -> Iterator[BinaryIO]:
        """Open the file, positioned after its byte-order mark.

        Raises:
            JobError: the packed data is damaged or unpacks to too many bytes.
        """
        with unpacked(self.path, self.packing, self.member, self.bounds, progress) as file:
            file.read(len(self.mark))
            yield file

    @contextlib.contextmanager
    def seekable(self) -> Iterator[Path]:
        """Give the path of the file's unpacked content, for a reader that seeks. A packed file is unpacked to disk.

        Raises:
            JobError: the packed data is damaged or unpacks to too many bytes.
        """
        if not self.packing:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="import-") as folder:
            target = Path(folder) / "unpacked"
            with self.open() as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file)
            yield target


def open_source(
    path: Path,
    mapping: Mapping,
    bounds: Bounds,
    *,
    member: str = "",
    partitions: dict[str, str | None] | None = None,
) -> Source:
    """Return the file at `path` with its encoding and sample.

    Args:
        path: the file.
        mapping: settings that override detection.
        bounds: bounds on the unpacked size of a packed file.
        member: name of the file within a zip.
        partitions: columns that the names of its folders give.

    Raises:
        JobError: the file is damaged, or has a format that no reader reads.
    """
    try:
        packing = packing_of(path)
        with unpacked(path, packing, member, bounds) as file:
            start = file.read(SAMPLE + 1)
    except OSError as error:
        raise JobError(describe_unreadable(path, error)) from error
    label = f"{path}/{member}" if member else path
    binary, encoding, mark = binary_format(start), "utf-8", b""
    try:
        if not binary:
            encoding, mark = chosen_encoding(start, mapping.encoding)
            if not encoding.startswith(("utf-16", "utf-32")):
                refuse_binary(start, f"{mapping.delimiter}{mapping.quote}{mapping.escape}", packing)
    except StructureError as error:
        raise JobError(f"{label}: {error}") from error
    whole = len(start) <= SAMPLE
    text = ""
    if not binary:
        text = start[len(mark) : SAMPLE].decode(encoding, "surrogateescape" if encoding == "utf-8" else "replace")
        if not whole:
            text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1] or text
    return Source(path, member, bounds, packing, binary, encoding, mark, start, text, whole, partitions or {})


def describe_unreadable(path: Path, error: OSError) -> str:
    """Return the error text for a file that cannot be read because of its disk or its permissions."""
    return (
        f"{path} could not be read ({error.strerror or error}); nothing was imported: check that its disk or mount works and "
        "that this user may read it, then import again"
    )
