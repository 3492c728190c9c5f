"""Unpack gzip, bzip2, xz, Zstandard and zip files as a stream, within bounds on the unpacked size."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

from backports import zstd
from tqdm import tqdm

from jobs.errors import JobError

_FREE: Final = 2**30  # unpacked bytes below which the ratio is not checked
_CHUNK: Final = 2**20
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
_ENDINGS: Final = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".zip")
_ENCRYPTED: Final = 0x1
# zipfile does not bound what bzip2 and LZMA members unpack to at once.
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DOCUMENTS: Final = ("[Content_Types].xml", "mimetype")  # members that make a zip a workbook or another document
_DAMAGED: Final = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, zipfile.BadZipFile, gzip.BadGzipFile)


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


def packing_of(path: Path) -> str:
    """Return how the file at `path` is packed by its first bytes: gzip, bzip2, xz, Zstandard, zip, or empty if it is not.

    A workbook (XLSX, ODS) is a zip too, but counts as not packed. Raises OSError.
    """
    with path.open("rb") as file:
        start = file.read(8)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return name
    if not start.startswith(_ZIP):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            return "" if archive.NameToInfo.keys() & set(_DOCUMENTS) else "zip"
    except (*_DAMAGED, ValueError, NotImplementedError):
        return "zip"  # opening it says what is wrong


def name_without_packing(name: str) -> str:
    """Return a file's name without the ending of a packed file, in lower case."""
    name = name.lower()
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def zip_members(path: Path) -> list[str]:
    """Return the names of a zip's files, without folders, hidden files and those that macOS adds. Raises JobError."""
    with _translated_errors(path, "zip"), zipfile.ZipFile(path) as archive:
        return [
            name
            for name in archive.NameToInfo
            if not name.endswith("/") and not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")
        ]


@contextlib.contextmanager
def unpacked(path: Path, packing: str, member: str, bounds: Bounds, progress: bool = False) -> Iterator[BinaryIO]:
    """Open the file at `path` as a stream of its unpacked bytes.

    Args:
        path: the file.
        packing: how it is packed, from `packing_of`.
        member: name of the file within a zip; empty for any other packing.
        bounds: bounds on the unpacked bytes.
        progress: show a bar of the packed bytes read.

    Raises:
        JobError: the packed data is damaged, encrypted, or unpacks to too many bytes. Reading the stream raises it too.
    """
    with (
        path.open("rb") as raw,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar,
        _translated_errors(path, packing),
        contextlib.ExitStack() as stack,
    ):
        file = _opened(raw, path, packing, member, stack)
        stream = io.BufferedReader(_Unpacked(file, raw, path, packing, bounds, bar), _CHUNK)
        yield cast(BinaryIO, stream)


def _opened(raw: BinaryIO, path: Path, packing: str, member: str, stack: contextlib.ExitStack) -> IO[bytes]:
    if packing == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if packing == "bzip2":
        return bz2.BZ2File(raw)
    if packing == "xz":
        return lzma.LZMAFile(raw)
    if packing == "Zstandard":
        return cast(IO[bytes], zstd.ZstdFile(raw))
    if packing != "zip":
        return raw
    archive = stack.enter_context(zipfile.ZipFile(raw))
    try:
        info = archive.getinfo(member)
    except KeyError as error:
        raise JobError(f"{path}: no file {member!r} in it; the files are {zip_members(path)[:20]}") from error
    if info.flag_bits & _ENCRYPTED:
        raise JobError(f"{path}: {member!r} in it is encrypted; nothing was imported: zip it without a password")
    if info.compress_type not in _METHODS:
        raise JobError(
            f"{path}: {member!r} in it is packed by method {info.compress_type}; nothing was imported: zip it by deflate"
        )
    return stack.enter_context(archive.open(info))


@contextlib.contextmanager
def _translated_errors(path: Path, packing: str) -> Iterator[None]:
    try:
        yield
    # zipfile raises ValueError and NotImplementedError on damaged directories; bz2 raises OSError without a number.
    except (*_DAMAGED, OSError, ValueError, NotImplementedError) as error:
        damage = isinstance(error, _DAMAGED) or (packing == "bzip2" and getattr(error, "errno", 1) is None)
        if not packing or not (damage or (packing == "zip" and not isinstance(error, OSError | UnicodeError))):
            raise
        raise JobError(
            f"{path}: truncated or damaged {packing} ({error}); nothing was imported: copy the file again, or export it again"
        ) from error


class _Unpacked(io.RawIOBase):
    """Stream of a file's bytes, unpacked within bounds if they are packed."""

    def __init__(
        self, file: IO[bytes], raw: BinaryIO, path: Path, packing: str, bounds: Bounds, bar: tqdm[Any]
    ) -> None:
        self._file, self._raw, self._path, self._packing = file, raw, path, packing
        self._bounds, self._bar, self._bytes = bounds, bar, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _translated_errors(self._path, self._packing):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._bytes += len(data)
        read = self._raw.tell()
        self._bar.update(max(read - self._bar.n, 0))
        if self._packing:
            self._bounds.check(self._path, read, self._bytes)
        return len(data)
