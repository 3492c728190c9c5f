"""Store an export's pictures in the lake, each one once, under the hash of its content."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from cma_clip_core.content.pictures import PictureError
from jobs.errors import JobError, TransientError
from jobs.importing.pictures import picture_names
from jobs.importing.pictures.picture_names import PictureName
from jobs.importing.pictures.picture_sources import Source, find_archives, find_unused
from jobs.importing.web.addresses import is_web
from jobs.importing.web.downloader import PictureDownloads, PictureWriter, WebPicture
from jobs.lake import s3_preflight, storage
from jobs.lake.layout import MISSING, Lake
from jobs.lake.storage import AnyPath
from schemas.documents import LostPicture

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

_AT_ONCE: Final = 32  # concurrent requests to S3
_EXTENSION: Final = re.compile(r"\.([A-Za-z0-9]{1,5})$")
_UNUSUAL: Final = re.compile(r"[^A-Za-z0-9._/-]|\.\.")
_COMPARED: Final = 8  # pictures of similar names whose bytes are compared
_WARNED: Final = 5  # pictures of each status that the log names
_SHOWN: Final = 200  # characters of a name in a message
_MOST: Final = 1_000  # pictures of one product
_HOSTS: Final = 1_000  # hosts that are counted
_USABLE: Final = ("added", "known", "kept")  # statuses of pictures that the lake holds


@dataclass(frozen=True, slots=True)
class PendingPicture:
    """A picture on the web that is being downloaded."""

    name: str
    future: Future[WebPicture]


RequestedPicture: TypeAlias = "tuple[str, str | None] | PendingPicture"


@dataclass(slots=True)
class PictureStore:
    """Store of pictures by the hash of their content: ``<two digits>/<SHA-1>.<extension>``.

    Each name is first looked up exactly as written. The first name that does not exist triggers an index of all names in the
    export. From then on, a name that is spelled differently is matched through the index if it matches only one picture.
    """

    writer: PictureWriter
    sources: Sequence[Source]
    counts: Counter[str] = field(default_factory=Counter)
    open_downloads: Callable[[threading.Lock], PictureDownloads] | None = None  # called for the first web address
    downloads: PictureDownloads | None = None
    _writing: threading.Lock = field(default_factory=threading.Lock)
    _hosts: Counter[str] = field(default_factory=Counter)  # hosts that are not allowed
    _index: _AllNames | None = None
    _variants: int = 0  # pictures that were found under a different spelling
    _claims: dict[int, PictureName] = field(
        default_factory=dict
    )  # position in the index -> the lossy name matched to it
    _contested: set[int] = field(default_factory=set)  # positions that two different lossy names match
    _contested_before: int = 0
    _lost: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # status -> the first few names and details

    def request(self, names: Sequence[str]) -> list[RequestedPicture]:
        """Store the pictures `names`, each of which may be a list in one text; begin the download of those on the web."""
        return [self._request(name) for each in names for name in self._parts(each)][:_MOST]

    def resolve(self, requested: Sequence[RequestedPicture]) -> list[tuple[str, str | None]]:
        """Return the path and hash of each requested picture, as `add` does. Wait for those on the web."""
        return [each if isinstance(each, tuple) else self._downloaded(each) for each in requested]

    def _parts(self, name: str) -> list[str]:
        parts = picture_names.parts_of_list(name)
        if not parts:
            return [name]
        whole = not is_web(name) and not picture_names.is_unsafe(name) and self._read_exact(name) is not None
        return [name] if whole else parts

    def _request(self, name: str) -> RequestedPicture:
        name = name.strip() if is_web(name.lstrip()) else name
        if not is_web(name) or self.open_downloads is None:
            return self.add(name)
        if self.downloads is None:
            self.downloads = self.open_downloads(self._writing)
        return PendingPicture(name, self.downloads.request(name))

    def _downloaded(self, pending: PendingPicture) -> tuple[str, str | None]:
        try:
            picture = pending.future.result()
        except PictureError as error:
            if error.status == "host_not_allowed" and (error.detail in self._hosts or len(self._hosts) < _HOSTS):
                self._hosts[error.detail] += 1
            self._record_loss(pending.name, error)
            return _missing_path(pending.name), None
        if picture.outcome != "stored":
            self.counts[picture.outcome] += 1
        return picture.path, picture.digest

    def add(self, name: str) -> tuple[str, str | None]:
        """Copy the picture `name` into the store if it is not there yet.

        Returns:
            The picture's path relative to the store, and its hash. If the picture is unavailable: a path that does not exist,
            which preprocess reports, and None. A name that leads out of the export is neither read nor written.

        Raises:
            JobError: the export could not be read because of its disk or mount.
        """
        try:
            exact = None if picture_names.is_unsafe(name) else self._read_exact(name)
            data, export_name = (exact, name) if exact is not None else self._read_variant(name)
        except PictureError as error:
            self._record_loss(name, error)
            return _missing_path(name), None
        except OSError as error:  # the disk or the network failed; this says nothing about the picture
            raise JobError(
                f"picture {name[:_SHOWN]!r} could not be read ({error}); nothing was imported: check that its disk or mount "
                "works, and import again"
            ) from error
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        ending = _EXTENSION.search(export_name)
        path = f"{digest[:2]}/{digest}.{ending.group(1).lower() if ending else 'img'}"
        with self._writing:
            self.writer.add(path, data)
        return path, digest

    def settle(self) -> bool:
        """Return whether every picture of the records is final. If not, reset the store; the caller must add all again.

        Two different names, such as ``men/1.jpg`` and ``women/1.jpg``, may both match one picture, ``1.jpg``. It is unknown
        which of them means it, so on the next pass neither gets it.
        """
        if len(self._contested) == self._contested_before:
            return True
        with self._writing:
            self.writer.finish()
        self._hosts.clear()
        self._contested_before = len(self._contested)
        self._claims.clear()
        self._lost.clear()
        self.counts.clear()
        self._variants = 0
        return False

    def finish(self, export: Path) -> tuple[LostPicture, ...]:
        """Wait until all pictures are written, log their counts, and return a few unavailable ones as examples.

        Raises:
            JobError: some pictures are links that leave the export, and no other picture was stored.
        """
        if self.downloads is not None:
            self.downloads.finish()
        self.writer.finish()
        log.info("import-catalog: pictures %s", dict(self.counts))
        if self._variants:
            log.info(
                "import-catalog: %s pictures were found under a different spelling of their name", f"{self._variants:,}"
            )
        lost = sum(n for status, n in self.counts.items() if status not in _USABLE)
        if not lost:
            return ()
        if links := self.counts["link"]:
            message = (
                f"{links:,} pictures are links, such as {self._lost['link'][0][0]!r}: {self._lost['link'][0][1]}. Links that "
                "leave the export are not followed: put the pictures themselves into it"
            )
            if not self.counts["added"] + self.counts["known"]:
                raise JobError(f"{export}: {message}. Nothing was imported")
            log.warning("import-catalog: %s", message)
        examples = self._examples()
        log.warning(
            "import-catalog: %s of %s pictures could not be imported (%s)%s. %s",
            f"{lost:,}",
            f"{self.counts.total():,}",
            ", ".join(f"{n:,} {status}" for status, n in self.counts.most_common() if status not in _USABLE),
            "".join(f"; {each.in_words()}" for each in examples),
            self._remedy(export),
        )
        return examples

    def _read_exact(self, name: str) -> bytes | None:
        return next((data for source in self.sources if (data := source.read(name)) is not None), None)

    def _read_variant(self, name: str) -> tuple[bytes, str]:
        """Return the picture that `name` means, or the first one if it is a list, with its name in the export.

        Raises:
            PictureError: no picture matches, or it cannot be used.
        """
        try:
            return self._read_match(name)
        except PictureError as error:
            parts = picture_names.parts_of_list(name) if error.status in ("missing", "url") else []
            first = parts[0] if parts else None
            if first is None:
                raise
            if not picture_names.is_unsafe(first) and (data := self._read_exact(first)) is not None:
                return data, first
            return self._read_match(first)

    def _read_match(self, name: str) -> tuple[bytes, str]:
        if picture_names.leads_out(name):
            raise PictureError("forbidden", "the name leads out of the export")
        if picture_names.is_url(name):
            raise PictureError("url", "a URL of another kind than http:// and https://")
        self._index = self._index or _AllNames(self.sources)
        folded = [path for reading in picture_names.readings(name) if (path := picture_names.fold(reading)) is not None]
        for path in folded:
            if same := self._index.find_same(path):
                return self._read_only_match(same)
        for path in folded:
            if similar := self._index.find_similar(path):
                return self._read_only_match(similar, path)
        raise PictureError("missing", "no picture has this name or a similar one")

    def _read_only_match(self, positions: list[int], wanted: PictureName | None = None) -> tuple[bytes, str]:
        """Return the picture at the only one of `positions`, with its name in the export.

        Args:
            positions: positions in the index, at least one.
            wanted: the name that is similar to the picture's; None if they are the same.

        Raises:
            PictureError: several pictures match, another record's name matches the picture too, or it cannot be used.
        """
        assert self._index is not None
        names = [self._index.name(position) for position in positions]
        position = positions[0]
        if len(positions) > 1 and not self._are_equal(positions):
            raise PictureError("ambiguous", f"{names[0]!r} and {names[1]!r} are both similar to it")
        if wanted is not None and wanted.is_lossy(self._index.folded(position)):
            claimed = self._claims.setdefault(position, wanted)
            if claimed != wanted:
                self._contested.add(position)
            if position in self._contested:
                raise PictureError("ambiguous", f"{names[0]!r} is similar to it and to another record's picture name")
        source, name = self._index.locate(position)
        data = source.read(name)
        if data is None:  # a dangling link, or removed in the meantime
            raise PictureError("missing", f"{names[0]!r} is gone")
        self._variants += 1
        return data, name

    def _are_equal(self, positions: Sequence[int]) -> bool:
        """Return whether the pictures at `positions` have the same bytes, so that any of them may be taken."""
        assert self._index is not None
        if len(positions) > _COMPARED:
            return False
        sources = [self._index.locate(position) for position in positions]
        first, *others = (source.read(name) for source, name in sources)
        return first is not None and all(other == first for other in others)

    def _record_loss(self, name: str, error: PictureError) -> None:
        status = error.status
        self.counts[status] += 1
        some = self._lost.setdefault(status, [])
        if len(some) < 3:
            some.append((name[:_SHOWN], error.detail))
        if self.counts[status] <= _WARNED:
            log.warning("import-catalog: picture %r: %s", name[:_SHOWN], error)

    def _examples(self) -> tuple[LostPicture, ...]:
        """Return up to three unavailable pictures, those with the most frequent statuses first."""
        statuses = sorted(self._lost, key=lambda status: -self.counts[status])
        examples = [(status, *each) for status in statuses for each in self._lost[status]][:3]
        return tuple(
            LostPicture(
                name=name, why=f"{status}: {detail}", nearest=self._nearest(name) if status == "missing" else ()
            )
            for status, name, detail in examples
        )

    def _nearest(self, name: str) -> tuple[str, ...]:
        self._index = self._index or _AllNames(self.sources)
        return picture_names.nearest(name, self._index.readable)

    def _remedy(self, export: Path) -> str:
        """Return advice on what to do about the unavailable pictures."""
        hints = []
        if self.counts["url"]:
            hints.append("Only http:// and https:// addresses are downloaded: put other pictures into the export")
        if self._hosts:
            seen = ", ".join(f"{host} ({n:,})" for host, n in self._hosts.most_common(5))
            hints.append(f"Pictures are downloaded only from hosts that TAGGING_PICTURE_HOSTS names; seen: {seen}")
        if self.counts["missing"] and self.sources:
            searched = ", ".join(source.path.name for source in self.sources)
            hints.append(f"Pictures were looked for in {searched}")
            if inner := [name for source in self.sources for name in find_archives(source)][:3]:
                hints.append(f"It holds archives, which are not opened: {', '.join(map(repr, inner))}; unpack them")
            if unused := find_unused(export, self.sources):
                hints.append(
                    f"The export also has {', '.join(map(repr, unused))}; if it holds pictures, name it in the mapping under `pictures`"
                )
        return "; ".join(hints) + "." if hints else ""


def _missing_path(name: str) -> str:
    """Return a path that does not exist but still shows the name that the record gave."""
    steps = [step for step in _UNUSUAL.sub("_", name).split("/") if step not in ("", ".")]
    return f"{MISSING}/{'/'.join(steps)[-_SHOWN:].lstrip('./') or '_'}"


class _AllNames:
    """Index of the picture names of all sources. A position counts through the sources in order."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._names: list[str] = []
        self.readable: list[str] = []
        self._starts: list[int] = []  # the first position of each source
        for source in sources:
            self._starts.append(len(self._names))
            for name, readable in source.names():
                self._names.append(name)
                self.readable.append(readable)
        self._index = picture_names.NameIndex(self.readable)

    def find_same(self, path: PictureName) -> list[int]:
        """Return the positions of the names that are the same as `path`, in the first source that has any."""
        return self._in_first_source(self._index.find_same(path))

    def find_similar(self, path: PictureName) -> list[int]:
        """Return the positions of similar names in all sources; of a name that several sources have, only the first."""
        positions = {self.folded(position): position for position in reversed(self._index.find_similar(path))}
        return list(positions.values())

    def name(self, position: int) -> str:
        return self.readable[position][:_SHOWN]

    def folded(self, position: int) -> PictureName:
        path = picture_names.fold(self.readable[position])
        assert path is not None
        return path

    def locate(self, position: int) -> tuple[Source, str]:
        return self._sources[self._source_of(position)], self._names[position]

    def _source_of(self, position: int) -> int:
        return bisect.bisect_right(self._starts, position) - 1

    def _in_first_source(self, positions: list[int]) -> list[int]:
        first = min(map(self._source_of, positions), default=0)
        return [position for position in positions if self._source_of(position) == first]


def picture_writer(lake: Lake, day: AnyPath, counts: Counter[str], stack: contextlib.ExitStack) -> PictureWriter:
    """Return a writer of pictures into the lake, usable while `stack` is open.

    It counts existing pictures as "known" and new ones as "added". A picture exists only if its content is complete: a
    truncated or damaged one is written again.
    """
    if not storage.on_disk(lake.pictures):
        return stack.enter_context(PicturesToS3(lake.pictures, counts))
    scratch = lake.pictures / f".{day.name}"
    storage.remove_folder(scratch)  # left by a killed import
    stack.callback(storage.remove_folder, scratch)
    scratch.mkdir(parents=True)
    return PicturesToDisk(lake.pictures, scratch, counts)


@dataclass(frozen=True, slots=True)
class PicturesToDisk:
    """Writer to a disk, by rename, so that a picture is complete or absent.

    It does not use `storage.whole_file`, whose fsync per picture would take minutes in total.
    """

    folder: Path
    scratch: Path  # for pictures that are being written; on the same disk as `folder`
    counts: Counter[str]

    def add(self, path: str, data: bytes) -> None:
        target = self.folder / path
        # The bytes are already in memory, so comparing them costs only the read, and less than a hash.
        known = storage.size(target) == len(data) and target.read_bytes() == data
        self.counts["known" if known else "added"] += 1
        if known:
            return
        temporary = self.scratch / target.name
        temporary.write_bytes(data)
        target.parent.mkdir(exist_ok=True)
        temporary.replace(target)

    def finish(self) -> None:
        os.sync()  # one flush for all pictures


class PicturesToS3:
    """Writer to S3 that handles many pictures concurrently, because each takes one or two requests that mostly wait.

    Raises, from `add` and `finish`:
        JobError: the server denies access.
        TransientError: the server, or the network to it, fails.
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
        if len(self._running) >= 2 * _AT_ONCE:  # bounds the pictures in memory
            self._collect(FIRST_COMPLETED)
        self._running.add(self._pool.submit(self._write, f"{self._folder}/{path}", data))

    def finish(self) -> None:
        self._collect(ALL_COMPLETED)

    def _write(self, path: str, data: bytes) -> str:
        from cma_clip_core.content import s3_objects  # loads obstore, which a lake on a disk does not need

        try:
            if self._exists(path, data):
                return "known"
            s3_objects.write(self._fs, path, data)
        except s3_objects.ObjectError as error:
            explained = s3_preflight.explain(error, f"s3://{path}")
            raise explained or TransientError(
                f"{error}; nothing was imported: import again when its server can be reached"
            ) from error
        return "added"

    def _exists(self, path: str, data: bytes) -> bool:
        from cma_clip_core.content import s3_objects

        stored = s3_objects.head(self._fs, path)
        if stored is None or stored.size != len(data):
            return False
        if stored.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
            return True
        # The ETag of an object that the server encrypts is not an MD5.
        return s3_objects.read(self._fs, path, len(data)) == data

    def _collect(self, until: str) -> None:
        done, self._running = wait(self._running, return_when=until)
        self._counts.update(future.result() for future in done)
