"""Bring an export's pictures into the lake, each once, under the hash of its content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeAlias

from cma_clip_core.pictures import MAX_BYTES, PictureError, fetch
from jobs import storage
from jobs.errors import JobError, TransientError
from jobs.lake import Lake
from jobs.storage import Place
from schemas.mapping import Mapping

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

_AT_ONCE: Final = 32  # requests to S3
MISSING: Final = "missing"  # no folder of the lake: preprocess reports what points into it as missing

# Of bzip2 and LZMA zipfile unpacks whatever some packed bytes hold: gigabytes, of a few thousand.
_UNPACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNSAFE: Final = re.compile(r"^/|^[A-Za-z][A-Za-z0-9+.-]*:|(^|/)\.\.(/|$)|[\x00-\x1f\x7f\\\ud800-\udfff]")
_EXTENSION: Final = re.compile(r"\.([A-Za-z0-9]{1,5})$")

# Name to bytes; None: not in it. Raises PictureError, and OSError where not the picture but its disk is at fault.
Source: TypeAlias = Callable[[str], "bytes | None"]


def is_unsafe(name: str) -> bool:
    """Whether the picture name could lead out of a folder: it is neither read nor written, wherever it leads."""
    return _UNSAFE.search(name) is not None


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
