"""Read pictures by their names from an export's folders and zips. Nothing outside the export is reached."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from cma_clip_core.content.pictures import MAX_BYTES, PictureError, fetch_file
from jobs.errors import JobError
from jobs.importing.formats.sources import Bounds
from jobs.importing.pictures.picture_names import fold
from schemas.mapping import Mapping

# Of bzip2 and LZMA zipfile unpacks whatever some packed bytes hold: gigabytes, of a few thousand.
_UNPACKED: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1
_UTF_8: Final = 0x800
_ZIPS: Final = (".zip", ".rar", ".7z", ".tar", ".tgz", ".gz")
_SEEN: Final = 20_000  # names that are looked at for what an export holds instead of pictures


class Source(Protocol):
    """A place of the export that holds pictures."""

    place: Path

    def read(self, name: str) -> bytes | None:
        """Return the picture of exactly this name, which must not lead out of the place; None where there is none.

        Raises:
            PictureError: it cannot be used; `status` is link, too_large or broken.
            OSError: not the picture but its disk is at fault.
        """

    def names(self) -> Iterator[tuple[str, str]]:
        """Yield the name of each picture as `read` takes it, and as people read it."""


def open_sources(folder: Path, mapping: Mapping, bounds: Bounds, stack: contextlib.ExitStack) -> list[Source]:
    """Return the export's zips and folders of pictures.

    Args:
        folder: of the export.
        mapping: which names the places in it.
        bounds: on what the members that are read of a zip come to together.
        stack: keeps the zips open.

    Raises:
        JobError: there is none, a zip is broken, or one is a link that leaves the export.
    """
    sources: list[Source] = []
    for path in find_places(folder, mapping):
        _check_link(path, folder)
        if path.is_dir():
            sources.append(FolderSource(path, folder))
        elif path.is_file():
            try:
                sources.append(ZipSource(path, stack.enter_context(zipfile.ZipFile(path)), bounds))
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise JobError(
                    f"{path}: {_kind(path) or f'not a zip, or a truncated one ({error})'}; nothing was imported: "
                    "copy it again, or pack the pictures as a zip"
                ) from error
    if not sources:
        seen = sorted(path.name for path in folder.iterdir())[:20]
        raise JobError(f"{folder}: no pictures; looked for {', '.join(mapping.pictures)}; the folder has {seen}")
    return sources


def find_places(folder: Path, mapping: Mapping) -> list[Path]:
    """Return the places of pictures that the mapping names and the export has, in order.

    A name may be a pattern (``pictures*.zip``). One that the export does not have is found where one alone differs in case
    or composition.

    Raises:
        JobError: a pattern is none.
    """
    found: dict[Path, None] = {}
    for name in mapping.pictures:
        if (folder / name).exists():
            found[folder / name] = None
        elif any(mark in name for mark in "*?["):
            try:
                found |= dict.fromkeys(sorted(folder.glob(name)))
            except (NotImplementedError, ValueError, IndexError) as error:
                raise JobError(
                    f"{name!r} of the mapping's `pictures` is no pattern within the export: {error}"
                ) from error
        else:
            same = [path for path in folder.iterdir() if fold(path.name) == fold(name)]
            found |= dict.fromkeys(same if len(same) == 1 else ())
    return list(found)


def others(folder: Path, sources: Sequence[Source]) -> list[str]:
    """Return the names of up to five folders and archives of the export that are none of `sources` and may hold pictures."""
    taken = {source.place.resolve() for source in sources}
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            archive = entry.name.lower().endswith(_ZIPS[:-1]) and entry.is_file()
            if (archive or entry.is_dir()) and Path(entry.path).resolve() not in taken:
                found.append(entry.name)
    return found[:5]


def archives_in(source: Source) -> list[str]:
    """Return up to three archives that are in `source` among, or in place of, its pictures."""
    found = []
    for seen, (_, name) in enumerate(source.names()):
        if name.lower().endswith(_ZIPS):
            found.append(name)
        if len(found) == 3 or seen == _SEEN:
            break
    return found


def _check_link(path: Path, folder: Path) -> None:
    """Raise JobError where `path`, which the mapping places in `folder`, is a link to somewhere else."""
    export, real = os.path.realpath(folder), os.path.realpath(path)
    named = os.path.normpath(os.path.join(export, os.path.relpath(path, folder)))  # noqa: PTH118
    if named.startswith(f"{export}{os.sep}") and not f"{real}{os.sep}".startswith(f"{export}{os.sep}"):
        raise JobError(
            f"{path} is a link that leaves the export, to {real}; it is not followed and nothing was imported: copy the "
            "pictures into the export, or name their own place in the mapping under `pictures`"
        )


def _kind(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith(b"Rar!"):
        return "a RAR archive"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip or tar.gz archive"
    return "a 7z archive" if start.startswith(b"7z\xbc\xaf") else None


class ZipSource:
    """A zip. Members are read where they lie, by their names; none is unpacked onto a disk.

    The members of a small zip may be one and the same place in it: what they unpack to together is bounded.
    """

    def __init__(self, place: Path, archive: zipfile.ZipFile, bounds: Bounds) -> None:
        self.place = place
        self._archive = archive
        self._bounds = bounds
        self._size = place.stat().st_size
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
                return file.read(member.file_size)  # without a size, all that is packed would be in memory at once
        except OSError as error:
            if error.errno != errno.EINVAL:  # the zip names a place that no file has
                raise OSError(error.errno, error.strerror, self._archive.filename) from error
            raise PictureError("broken", str(error)) from error
        # A wrong checksum, a damaged stream: on hostile bytes zipfile raises nearly anything.
        except Exception as error:
            raise PictureError("broken", f"{type(error).__name__}: {error}"[:300]) from error

    def _count(self, member: zipfile.ZipInfo) -> None:
        if member.filename not in self._seen:
            self._seen.add(member.filename)
            self._unpacked += member.file_size
            self._bounds.check(self.place, self._size, self._unpacked)

    def names(self) -> Iterator[tuple[str, str]]:
        for name, member in self._archive.NameToInfo.items():
            if not (name.endswith("/") or name.startswith("__MACOSX/")):
                yield name, name if name.isascii() or member.flag_bits & _UTF_8 else _as_utf_8(name)


def _as_utf_8(name: str) -> str:
    """Return the name of a member that does not say that it is in UTF-8, though many packers write it so."""
    try:
        return name.encode("cp437").decode()
    except UnicodeError:
        return name


class FolderSource:
    """A folder. Links are followed within the export alone."""

    def __init__(self, place: Path, export: Path) -> None:
        self.place = place
        self._prefix = str(place)
        self._roots = [place, export]

    def read(self, name: str) -> bytes | None:
        # A zip of the folder `images` holds `images/1.jpg`, and so may the mapping name it.
        names = dict.fromkeys((name, name.removeprefix(f"{self.place.name}/")))
        found = next((path for each in names if os.path.lexists(path := f"{self._prefix}/{each}")), None)
        if found is None:
            return None
        try:
            return fetch_file(found, self._roots)
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
    """Return the name of a file as text where it is not in UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name).decode("cp1252", errors="replace")
    return name
