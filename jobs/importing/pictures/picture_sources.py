"""Read pictures by name from the folders and zips of an export. Nothing outside the export is read."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import h5py

from cma_clip_core.content.pictures import MAX_BYTES, PictureError, fetch_file
from jobs.errors import JobError
from jobs.importing.files.unpacking import Bounds
from jobs.importing.pictures.hdf5_pictures import MAGIC, Hdf5Pictures
from jobs.importing.pictures.picture_names import fold
from schemas.mapping import Mapping

# Not bzip2 or LZMA: zipfile does not bound their output, and a few thousand packed bytes can unpack to gigabytes.
_UNPACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1
_UTF_8: Final = 0x800
_ZIPS: Final = (".zip", ".rar", ".7z", ".tar", ".tgz", ".gz")
_SEEN: Final = 20_000  # names of a source that are searched for archives


class Source(Protocol):
    """A folder or zip of the export that holds pictures."""

    path: Path

    def read(self, name: str) -> bytes | None:
        """Return the picture with exactly this name; None if it does not exist. The name must be safe as a path.

        Raises:
            PictureError: it cannot be used; `status` is link, too_large or broken.
            OSError: the disk failed; the picture is not at fault.
        """

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield each picture's name twice: in the form that `read` takes, and in readable form."""


def open_sources(folder: Path, mapping: Mapping, bounds: Bounds, stack: contextlib.ExitStack) -> list[Source]:
    """Return the export's zips, folders and HDF5 files of pictures.

    Args:
        folder: folder of the export.
        mapping: names the zips and folders.
        bounds: bounds on the total unpacked size of the members that are read from a zip.
        stack: keeps the zips open.

    Raises:
        JobError: no zip or folder exists, a zip is broken, or one is a link that leaves the export.
    """
    sources: list[Source] = []
    for path in find_picture_paths(folder, mapping):
        _check_link(path, folder)
        if path.is_dir():
            sources.append(FolderSource(path, folder))
        elif path.is_file():
            try:
                if _starts_with(path, MAGIC):
                    sources.append(Hdf5Pictures(path, stack.enter_context(h5py.File(path, "r"))))
                    continue
                sources.append(ZipSource(path, stack.enter_context(zipfile.ZipFile(path)), bounds))
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise JobError(
                    f"{path}: {_archive_kind(path) or f'not a zip, or a truncated one ({error})'}; nothing was imported: "
                    "copy it again, or pack the pictures as a zip"
                ) from error
    if not sources:
        seen = sorted(path.name for path in folder.iterdir())[:20]
        raise JobError(
            f"{folder}: no pictures; looked for {', '.join(mapping.pictures)}; the folder has {seen}. "
            "Put the pictures there, or use a mapping without `pictures` and `picture_name`"
        )
    return sources


def find_picture_paths(folder: Path, mapping: Mapping) -> list[Path]:
    """Return the folders and zips of pictures that the mapping names and the export has, in the mapping's order.

    A name may be a pattern (``pictures*.zip``). If the export lacks a name, the one entry that differs only in case or
    Unicode composition is used instead.

    Raises:
        JobError: a pattern is invalid.
    """
    paths: dict[Path, None] = {}
    for name in mapping.pictures:
        if (folder / name).exists():
            paths[folder / name] = None
        elif any(mark in name for mark in "*?["):
            try:
                paths |= dict.fromkeys(sorted(folder.glob(name)))
            except (NotImplementedError, ValueError, IndexError) as error:
                raise JobError(
                    f"{name!r} of the mapping's `pictures` is not a pattern within the export: {error}"
                ) from error
        else:
            same = [path for path in folder.iterdir() if fold(path.name) == fold(name)]
            paths |= dict.fromkeys(same if len(same) == 1 else ())
    return list(paths)


def find_unused(folder: Path, sources: Sequence[Source]) -> list[str]:
    """Return the names of up to five folders and archives of the export that may hold pictures and are not in `sources`."""
    used = {source.path.resolve() for source in sources}
    unused = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            archive = entry.name.lower().endswith(_ZIPS[:-1]) and entry.is_file()
            if (archive or entry.is_dir()) and Path(entry.path).resolve() not in used:
                unused.append(entry.name)
    return unused[:5]


def find_archives(source: Source) -> list[str]:
    """Return the names of up to three archives inside `source`."""
    archives = []
    for seen, (_, name) in enumerate(source.names()):
        if name.lower().endswith(_ZIPS):
            archives.append(name)
        if len(archives) == 3 or seen == _SEEN:
            break
    return archives


def _check_link(path: Path, folder: Path) -> None:
    """Raise JobError if `path`, which the mapping locates in `folder`, is a link that leaves the export."""
    export, real = os.path.realpath(folder), os.path.realpath(path)
    named = os.path.normpath(os.path.join(export, os.path.relpath(path, folder)))  # noqa: PTH118
    if named.startswith(f"{export}{os.sep}") and not f"{real}{os.sep}".startswith(f"{export}{os.sep}"):
        raise JobError(
            f"{path} is a link that leaves the export, to {real}; it is not followed and nothing was imported: copy the "
            "pictures into the export, or name their real location in the mapping under `pictures`"
        )


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _archive_kind(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"Rar!"):
        return "a RAR archive"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip or tar.gz archive"
    return "a 7z archive" if start.startswith(b"7z\xbc\xaf") else None


class ZipSource:
    """A zip of pictures, whose members are read by name and never unpacked to disk.

    Many members can share the same packed bytes of a small zip, so their total unpacked size is bounded.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, bounds: Bounds) -> None:
        self.path = path
        self._archive = archive
        self._bounds = bounds
        self._size = path.stat().st_size
        self._seen: set[str] = set()
        self._unpacked = 0  # bytes of the members seen

    def read(self, name: str) -> bytes | None:
        try:
            member = self._archive.getinfo(name)
        except KeyError:
            return None
        if stat.S_ISLNK(member.external_attr >> 16):
            raise PictureError("link", "a symbolic link in the zip; zip the files that it points to (without -y)")
        if member.flag_bits & _ENCRYPTED:
            raise PictureError("broken", "encrypted; zip it without a password")
        if member.file_size > MAX_BYTES:
            raise PictureError("too_large", f"{member.file_size:,} bytes")
        if member.compress_type not in _UNPACKED:
            raise PictureError("broken", f"packed by method {member.compress_type}; zip it by deflate or unpacked")
        self._count(member)
        try:
            with self._archive.open(member) as file:
                return file.read(member.file_size)  # the size bounds memory even if the zip understates it
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: the zip names an impossible offset
                raise OSError(error.errno, error.strerror, self._archive.filename) from error
            raise PictureError("broken", str(error)) from error
        # A wrong checksum or a damaged stream: zipfile can raise almost any exception on hostile bytes.
        except Exception as error:
            raise PictureError("broken", f"{type(error).__name__}: {error}"[:300]) from error

    def _count(self, member: zipfile.ZipInfo) -> None:
        if member.filename not in self._seen:
            self._seen.add(member.filename)
            self._unpacked += member.file_size
            self._bounds.check(self.path, self._size, self._unpacked)

    def names(self) -> Iterator[tuple[str, str]]:
        for name, member in self._archive.NameToInfo.items():
            if not (name.endswith("/") or name.startswith("__MACOSX/")):
                yield name, name if name.isascii() or member.flag_bits & _UTF_8 else _as_utf_8(name)


def _as_utf_8(name: str) -> str:
    """Decode a member's name as UTF-8 if possible: many packers write UTF-8 without setting the flag for it."""
    try:
        return name.encode("cp437").decode()
    except UnicodeError:
        return name


class FolderSource:
    """A folder of pictures. Links are followed only within the export."""

    def __init__(self, path: Path, export: Path) -> None:
        self.path = path
        self._prefix = str(path)
        self._roots = [path, export]

    def read(self, name: str) -> bytes | None:
        # The mapping may name pictures as a zip of the folder would: `images/1.jpg` in the folder `images`.
        names = dict.fromkeys((name, name.removeprefix(f"{self.path.name}/")))
        path = next((path for each in names if os.path.lexists(path := f"{self._prefix}/{each}")), None)
        if path is None:
            return None
        try:
            return fetch_file(path, self._roots)
        except PictureError as error:
            if error.status == "empty":
                return b""
            if error.status == "forbidden":
                raise PictureError("link", "a link that leaves the export") from None
            raise

    def names(self) -> Iterator[tuple[str, str]]:
        for folder, _, files in os.walk(self._prefix):
            start = folder[len(self._prefix) + 1 :]
            for name in files:
                path = f"{start}/{name}" if start else name
                yield path, _as_text(path)


def _as_text(name: str) -> str:
    """Return the name of a file as text, decoded as cp1252 if it is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("cp1252", errors="replace")
    return name
