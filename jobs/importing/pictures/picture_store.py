"""Bring an export's pictures into the lake, each once, under the hash of its content."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from cma_clip_core.content.pictures import PictureError
from jobs.errors import JobError, TransientError
from jobs.importing.pictures import picture_names
from jobs.importing.pictures.picture_names import PictureName
from jobs.importing.pictures.picture_sources import Source, archives_in, others
from jobs.lake import storage
from jobs.lake.layout import MISSING, Lake
from jobs.lake.storage import AnyPath
from schemas.documents import LostPicture

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

_AT_ONCE: Final = 32  # requests to S3


_EXTENSION: Final = re.compile(r"\.([A-Za-z0-9]{1,5})$")
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9._/-]|\.\.")
_WARNED: Final = 5  # pictures of each status that the log names
_SHOWN: Final = 200  # characters of a name


@dataclass(slots=True)
class PictureStore:
    """Pictures by the hash of their content: ``<two digits>/<SHA-1>.<ending>``.

    A name is looked for as it is. Only the first that is not found makes an index of the export's names, by which it and
    the later ones are found where they are written otherwise and mean one picture alone.
    """

    writer: PictureWriter
    sources: Sequence[Source]
    counts: Counter[str] = field(default_factory=Counter)
    _index: _AllNames | None = None
    _otherwise: int = 0  # pictures that were found though their names are written otherwise
    _claims: dict[int, PictureName] = field(
        default_factory=dict
    )  # by place in the index: the name that lost something to be it
    _contested: set[int] = field(default_factory=set)  # places that two such names mean
    _contested_before: int = 0
    _lost: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # by status: names and why, the first few

    def add(self, name: str) -> tuple[str, str | None]:
        """Copy the picture `name` into the store, if it is not there yet.

        Returns:
            its path relative to the store, and its hash; for a picture that cannot be had, a path that is not there, for
            preprocess to report. A name that leads out of the export is neither read nor written.

        Raises:
            JobError: the export could not be read, by a fault of its disk or mount.
        """
        try:
            found = None if picture_names.is_unsafe(name) else self._exactly(name)
            data, found_as = (found, name) if found is not None else self._written_otherwise(name)
        except PictureError as error:
            self._lose(name, error)
            return _no_picture(name), None
        except OSError as error:  # of the disk or the network: no word on the picture
            raise JobError(
                f"picture {name[:_SHOWN]!r} could not be read ({error}); nothing was imported: see that its disk or mount "
                "works, and import again"
            ) from error
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        ending = _EXTENSION.search(found_as)
        path = f"{digest[:2]}/{digest}.{ending.group(1).lower() if ending else 'img'}"
        self.writer.add(path, data)
        return path, digest

    def settled(self) -> bool:
        """Whether the pictures of the records are what they are; if not, add all once more.

        Two names that differ, such as ``men/1.jpg`` and ``women/1.jpg``, may both be like one picture, ``1.jpg``. Which of
        them means it is not known: once more, neither is given it.
        """
        if len(self._contested) == self._contested_before:
            return True
        self.writer.finish()
        self._contested_before = len(self._contested)
        self._claims.clear()
        self._lost.clear()
        self.counts.clear()
        self._otherwise = 0
        return False

    def finish(self, export: Path) -> tuple[LostPicture, ...]:
        """Wait until all pictures are written, log what became of them, and return a few that could not be had.

        Raises:
            JobError: all that there are, are links that leave the export.
        """
        self.writer.finish()
        log.info("import-catalog: pictures %s", dict(self.counts))
        if self._otherwise:
            log.info(
                "import-catalog: %s pictures were found by names that are written otherwise", f"{self._otherwise:,}"
            )
        lost = sum(n for status, n in self.counts.items() if status not in ("added", "known"))
        if not lost:
            return ()
        if links := self.counts["link"]:
            words = (
                f"{links:,} pictures are links, such as {self._lost['link'][0][0]!r}: {self._lost['link'][0][1]}. Links that "
                "leave the export are not followed: put the pictures themselves into it"
            )
            if not self.counts["added"] + self.counts["known"]:
                raise JobError(f"{export}: {words}. Nothing was imported")
            log.warning("import-catalog: %s", words)
        examples = self._examples()
        log.warning(
            "import-catalog: %s of %s pictures could not be had (%s)%s. %s",
            f"{lost:,}",
            f"{self.counts.total():,}",
            ", ".join(f"{n:,} {status}" for status, n in self.counts.most_common() if status not in ("added", "known")),
            "".join(f"; {each.in_words()}" for each in examples),
            self._remedy(export),
        )
        return examples

    def _exactly(self, name: str) -> bytes | None:
        return next((data for source in self.sources if (data := source.read(name)) is not None), None)

    def _written_otherwise(self, name: str) -> tuple[bytes, str]:
        """Return the picture that `name` means, and its name in the export. Raises PictureError where there is none."""
        try:
            return self._meant(name)
        except PictureError as error:
            first = picture_names.first_of_list(name) if error.status in ("missing", "url") else None
            if first is None:
                raise
            if not picture_names.is_unsafe(first) and (data := self._exactly(first)) is not None:
                return data, first
            return self._meant(first)

    def _meant(self, name: str) -> tuple[bytes, str]:
        if picture_names.leads_out(name):
            raise PictureError("forbidden", "the name leads out of the export")
        if picture_names.is_url(name):
            raise PictureError("url", "an address; pictures are taken from the export alone, none is downloaded")
        self._index = self._index or _AllNames(self.sources)
        folded = [path for reading in picture_names.readings(name) if (path := picture_names.fold(reading)) is not None]
        for path in folded:
            if same := self._index.same(path):
                return self._only(same)
        for path in folded:
            if alike := self._index.alike(path):
                return self._only(alike, path)
        raise PictureError("missing", "no picture has this name, or one like it")

    def _only(self, places: list[int], lossy: PictureName | None = None) -> tuple[bytes, str]:
        assert self._index is not None
        names = [self._index.name(place) for place in places]
        if len(places) > 1:
            raise PictureError("ambiguous", f"{names[0]!r} and {names[1]!r} are both like it")
        if lossy is not None and lossy.loses(self._index.folded(places[0])):
            claimed = self._claims.setdefault(places[0], lossy)
            if claimed != lossy:
                self._contested.add(places[0])
            if places[0] in self._contested:
                raise PictureError("ambiguous", f"{names[0]!r} is like it and like another record's picture")
        source, name = self._index.where(places[0])
        data = source.read(name)
        if data is None:  # a link to nothing, or removed meanwhile
            raise PictureError("missing", f"{names[0]!r} is gone")
        self._otherwise += 1
        return data, name

    def _lose(self, name: str, error: PictureError) -> None:
        status = error.status
        self.counts[status] += 1
        some = self._lost.setdefault(status, [])
        if len(some) < 3:
            some.append((name[:_SHOWN], error.detail))
        if self.counts[status] <= _WARNED:
            log.warning("import-catalog: picture %r: %s", name[:_SHOWN], error)

    def _examples(self) -> tuple[LostPicture, ...]:
        """Return three lost pictures, of the most frequent statuses."""
        statuses = sorted(self._lost, key=lambda status: -self.counts[status])
        found = [(status, *each) for status in statuses for each in self._lost[status]][:3]
        return tuple(
            LostPicture(name=name, why=f"{status}: {why}", nearest=self._nearest(name) if status == "missing" else ())
            for status, name, why in found
        )

    def _nearest(self, name: str) -> tuple[str, ...]:
        self._index = self._index or _AllNames(self.sources)
        return picture_names.nearest(name, self._index.readable)

    def _remedy(self, export: Path) -> str:
        """Return what a person can do about pictures that could not be had."""
        words = []
        if self.counts["url"]:
            words.append("Addresses are not downloaded: put the pictures into the export")
        if self.counts["missing"]:
            places = ", ".join(source.place.name for source in self.sources)
            words.append(f"They were looked for in {places}")
            if inner := [name for source in self.sources for name in archives_in(source)][:3]:
                words.append(f"It holds archives, which are not opened: {', '.join(map(repr, inner))}; unpack them")
            if other := others(export, self.sources):
                words.append(
                    f"The export also has {', '.join(map(repr, other))}; where pictures are in it, name it in the mapping under `pictures`"
                )
        return "; ".join(words) + "." if words else ""


def _no_picture(name: str) -> str:
    """Return a path that is not there, by which a record still says what it named."""
    steps = [step for step in _UNUSUAL.sub("_", name).split("/") if step not in ("", ".")]
    return f"{MISSING}/{'/'.join(steps)[-_SHOWN:].lstrip('./') or '_'}"


class _AllNames:
    """The names of all sources, listed once."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._names: list[str] = []
        self.readable: list[str] = []
        self._starts: list[int] = []  # of each source
        for source in sources:
            self._starts.append(len(self._names))
            for name, readable in source.names():
                self._names.append(name)
                self.readable.append(readable)
        self._index = picture_names.NameIndex(self.readable)

    def same(self, path: PictureName) -> list[int]:
        """Return the places of the names that are the same as `path` in the first source that has any."""
        return self._of_first_source(self._index.same(path))

    def alike(self, path: PictureName) -> list[int]:
        """Return the places of the names that are alike in any source; of the same name in several, that in the first."""
        places = {self.folded(place): place for place in reversed(self._index.alike(path))}
        return list(places.values())

    def name(self, place: int) -> str:
        return self.readable[place][:_SHOWN]

    def folded(self, place: int) -> PictureName:
        path = picture_names.fold(self.readable[place])
        assert path is not None
        return path

    def where(self, place: int) -> tuple[Source, str]:
        return self._sources[self._source(place)], self._names[place]

    def _source(self, place: int) -> int:
        return bisect.bisect_right(self._starts, place) - 1

    def _of_first_source(self, places: list[int]) -> list[int]:
        first = min(map(self._source, places), default=0)
        return [place for place in places if self._source(place) == first]


class PictureWriter(Protocol):
    """Writes pictures that are not there yet, and counts those that were ("known") and those that were not ("added").

    One is there where its whole content is: one that was cut short or damaged since is written again.
    """

    def add(self, path: str, data: bytes) -> None:
        """Write a picture, now or before `finish` returns."""

    def finish(self) -> None:
        """Return when all are written, for good. Raises OSError where one could not be."""


def picture_writer(lake: Lake, day: AnyPath, counts: Counter[str], stack: contextlib.ExitStack) -> PictureWriter:
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
        # The bytes are at hand, so that to compare them costs no more than to read them, and less than a hash.
        known = storage.size(target) == len(data) and target.read_bytes() == data
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
        from cma_clip_core.content import s3_objects
        from jobs.lake import s3_preflight

        try:
            if self._is_there(path, data):
                return "known"
            s3_objects.write(self._fs, path, data)
        except s3_objects.ObjectError as error:
            why = s3_preflight.explain(error, f"s3://{path}")
            raise why or TransientError(
                f"{error}; nothing was imported: import again when its server can be reached"
            ) from error
        return "added"

    def _is_there(self, path: str, data: bytes) -> bool:
        from cma_clip_core.content import s3_objects

        found = s3_objects.head(self._fs, path)
        if found is None or found.size != len(data):
            return False
        if found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return True
        # Of objects that the server encrypts, the ETag is no MD5.
        return s3_objects.read(self._fs, path, len(data)) == data

    def _collect(self, until: str) -> None:
        done, self._running = wait(self._running, return_when=until)
        self._counts.update(future.result() for future in done)
