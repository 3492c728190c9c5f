"""Storage operations for disks and S3: atomic writes, compare-and-swap, listings, removal, locks.

A reader sees a file either as it was before a write or as it is after, even if the writer is killed. A path is a
`pathlib.Path` on a disk and a `upath.UPath` on S3; both share the operations that are not in this module.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from cma_clip_core.content.paths import AnyPath as AnyPath
from cma_clip_core.content.paths import on_disk as on_disk
from cma_clip_core.content.paths import sync_folder
from jobs.errors import JobError, TransientError
from jobs.lake import leases, s3_files

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

Document = TypeVar("Document", bound=BaseModel)

USED: Final = ".used"  # an object whose time says when its folder was last used: folders on S3 have no times
_NOT_IN_NAMES: Final = frozenset("*?[]{}\\,")
ASIDE: Final = ".expired-"  # prefix of a name that is about to be removed
_AT_ONCE: Final = 16  # concurrent requests, which mostly wait
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM: Final = (
    "make some, then run the step again: finished work stays, and nothing is left half written. "
    "`python -m jobs maintenance` lists what the lake no longer needs"
)
RESTORE: Final = "put it back from a copy of the lake"  # the remedy for a file that cannot be made again
_CHECKSUM: Final = re.compile(rb'\A\{\n "checksum": "sha256:([0-9a-f]{64})",\n')


class SwapLostError(JobError):
    """A compare-and-swap found other content than expected: another process swapped first."""


# --- paths


def as_path(name: str) -> AnyPath:
    """Return the path for a folder name or an ``s3://`` URI."""
    if not name.startswith("s3://"):
        return Path(name)
    return s3_files.s3_path(name)


def forbidden(name: str) -> str | None:
    """Return why a lake cannot be in a folder of this name, or None if it can.

    * Spark and DuckDB treat ``* ? [ ] { }`` and the backslash as patterns, and would read other files or none.
    * Spark separates its local folders by commas.
    * The pointer for readers has one path per line.
    """
    wrong = sorted({char for char in name if char in _NOT_IN_NAMES or not char.isprintable()})
    if not wrong:
        return None
    return (
        f"{name!r}: {', '.join(map(repr, wrong))} cannot be in the name of this folder: Spark and DuckDB take it for a pattern or "
        "for the end of the name; rename the folder, or link to it under another name"
    )


def spark_uri(path: AnyPath) -> str:
    """Return `path` as Spark expects it; on S3, Spark reads through Hadoop's s3a."""
    return str(path) if on_disk(path) else f"s3a://{path.path}"


def is_below(path: AnyPath, folder: AnyPath) -> bool:
    """Return whether `path` is `folder` or below it."""
    return path == folder or str(path).startswith(f"{str(folder).rstrip('/')}/")


def own_folder(name: str) -> Path:
    """Return this user's local work folder for the remote location `name`.

    Raises:
        JobError: the folder belongs to another user.
    """
    base = Path(tempfile.gettempdir()) / f"catalog-attribute-tagger-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise JobError(f"{base} belongs to another user; remove it, or set TMPDIR")
    return base / hashlib.sha256(name.encode()).hexdigest()[:12]


def local_copy(folder: AnyPath, copy: Path) -> Path:
    """Return `folder` itself if it is on a disk, and otherwise the local copy at `copy`.

    The copy is made once, so the content of `folder` must never change.

    Raises:
        FileNotFoundError: the folder is empty or does not exist.
    """
    if on_disk(folder):
        return folder
    if not copy.is_dir():
        copy.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=copy.parent, prefix=".copy-"))
        try:
            objects = list(s3_files.below(folder))
            if not objects:
                raise FileNotFoundError(f"{folder}: the folder does not exist")
            for each in objects:
                (fresh / relative(each.path, folder)).parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda each: s3_files.download(each.path, fresh / relative(each.path, folder)), objects))
            with contextlib.suppress(OSError):  # another process was first
                fresh.rename(copy)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return copy


def send_folder(source: Path, folder: AnyPath, *, last: str | None = None, deep: bool = True) -> None:
    """Copy the files of the folder `source` into `folder`, each as a whole. On a disk both must be the same folder.

    Args:
        source: the local folder.
        folder: the target.
        last: the name of the file that marks the others as complete; it is copied last.
        deep: whether subfolders are copied too.
    """
    if on_disk(folder):
        if source != folder:
            raise ValueError(f"{source} is not {folder}")
        return
    paths = [path for path in source.glob("**/*" if deep else "*") if path.is_file()]
    for some in ([path for path in paths if path.name != last], [path for path in paths if path.name == last]):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda path: s3_files.upload(path, folder / path.relative_to(source).as_posix()), some))


def relative(path: AnyPath, root: AnyPath) -> str:
    """Return `path` relative to `root`, as it is written in documents. Raises ValueError if it is not below `root`."""
    start = f"{str(root).rstrip('/')}/"
    if not str(path).startswith(start):
        raise ValueError(f"{path} is not in {root}")
    return str(path)[len(start) :]


# --- files


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary file, which becomes `path` in one step on a clean exit and is removed on an error.

    On a disk, the file, its name and the folders made for it survive a loss of power. For S3, the temporary file is in
    TMPDIR and is uploaded whole.

    Raises:
        TransientError: the disk is full.
    """
    try:
        if on_disk(path):
            make_folder(path.parent)
        handle, name = tempfile.mkstemp(
            dir=path.parent if on_disk(path) else None, prefix=f".{path.name}.", suffix=".tmp"
        )
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise TransientError(f"{path}: no room for it: {error.strerror}; {MAKE_ROOM}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if on_disk(path):
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
            sync_folder(path.parent)
        else:
            s3_files.upload(temporary, path)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise TransientError(f"{path}: no room for it in {temporary.parent}: {error}; {MAKE_ROOM}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents if they do not exist, so that they survive a loss of power."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def flush_folder(folder: AnyPath) -> None:
    """Flush the files in a folder, which other processes wrote, to the disk, so that they survive a loss of power.

    S3 needs no flush.
    """
    if on_disk(folder):
        for path in children(folder):
            assert on_disk(path)
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_folder(folder)
        sync_folder(folder.parent)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write `data` to `path` and replace the file as a whole."""
    if on_disk(path):
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    else:
        path.write_bytes(data)  # one request


def read_bytes(path: AnyPath) -> bytes | None:
    """Return the content of `path`, or None if it does not exist."""
    if not on_disk(path):
        version = s3_files.read(path)
        return None if version is None else version.data
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_document(path: AnyPath, document: BaseModel) -> None:
    """Write `document` as JSON to `path` and replace the file as a whole.

    Raises:
        LeaseLostError: another process has taken over a lock on S3 that this process holds; nothing was written.
    """
    _confirm_leases(path)
    write_bytes(path, to_bytes(document))


def to_bytes(document: BaseModel) -> bytes:
    """Return `document` as JSON. Its first member is the SHA-256 of everything after the line of that member."""
    start, rest = b"{\n", document.model_dump_json(indent=1).encode().removeprefix(b"{\n") + b"\n"
    return start + b' "checksum": "sha256:%s",\n' % hashlib.sha256(rest).hexdigest().encode() + rest


def read_document(path: AnyPath, model: type[Document], remedy: str = RESTORE) -> Document | None:
    """Return the JSON document at `path`, or None if it does not exist.

    Args:
        path: the path of the document.
        model: its pydantic model.
        remedy: what the user can do if the document is broken; it must not lose data.

    Raises:
        JobError: the document is broken.
    """
    data = read_bytes(path)
    return None if data is None else from_bytes(path, data, model, remedy)


def find_document(path: AnyPath, model: type[Document], instead: str) -> Document | None:
    """Return the JSON document at `path`, or None if it is missing or broken.

    A broken one is logged together with `instead`, which says what happens then. For documents that the caller can make
    again or do without.
    """
    try:
        return read_document(path, model, instead)
    except JobError as error:
        log.warning("%s", error)
        return None


def from_bytes(path: AnyPath, data: bytes, model: type[Document], remedy: str = RESTORE) -> Document:
    """Return the JSON document in `data`, the content of `path`. Raises JobError, with the `remedy`, if it is broken.

    A document of an older version, which has no checksum, is read without one.
    """
    try:
        checksum = _CHECKSUM.match(data)
        if checksum is not None:
            rest = data[checksum.end() :]
            if hashlib.sha256(rest).hexdigest().encode() != checksum[1]:
                raise ValueError("its content does not match its checksum: it was changed after it was written")
            data = b"{\n" + rest
        return model.model_validate_json(data)
    except ValueError as error:
        raise JobError(f"{path}: not a {model.__name__}, or damaged: {_summary(error)}; {remedy}") from error


def _summary(error: ValueError) -> str:
    """Return the fault of a document in one line; if there are several, the first one."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, more = error.errors()[0], error.error_count() - 1
    location = ".".join(map(str, first["loc"]))
    return f"{f'{location}: ' if location else ''}{first['msg']}{f' (and {more} more)' if more else ''}"[:300]


def sha256(path: AnyPath) -> str:
    """Return the hex SHA-256 of the file at `path`."""
    if not on_disk(path):
        return s3_files.sha256(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(path: AnyPath, size_written: int, sha256_written: str = "") -> str | None:
    """Return a description of how a file differs from what was written, or None if it does not.

    Args:
        path: the path of the file.
        size_written: its size in bytes.
        sha256_written: its SHA-256; if it is given, the whole file is read.
    """
    size_now = size(path)
    if size_now is None:
        return "is missing"
    if size_now != size_written:
        return f"has {size_now:,} bytes, {size_written:,} were written: it is half-written or was changed"
    if sha256_written and sha256(path) != sha256_written:
        return "is not what was written (its SHA-256 differs): it was changed, or its disk fails"
    return None


def size(path: AnyPath) -> int | None:
    """Return the size of the file at `path` in bytes, or None if it does not exist."""
    try:
        return int(path.stat().st_size)
    except FileNotFoundError:
        return None


def touch(folder: AnyPath) -> None:
    """Record that a folder was used just now."""
    if on_disk(folder):
        os.utime(folder)
    else:
        write_bytes(folder / USED, b"")


# --- conditional writes


def compare_and_swap(path: AnyPath, expected: bytes | None, new: bytes) -> None:
    """Replace the content of `path` by `new` if it is still `expected` (None: if it does not exist).

    Raises:
        SwapLostError: the content differs; nothing was changed.
    """
    if on_disk(path):
        with locked(path):
            if read_bytes(path) != expected:
                raise SwapLostError(f"{path}: another process changed it meanwhile")
            write_bytes(path, new)
        return
    current = s3_files.read(path) if expected is not None else None
    try:
        if (None if current is None else current.data) != expected:
            raise s3_files.ConditionFailedError
        s3_files.put(path, new, current)
    except s3_files.ConditionFailedError:
        raise SwapLostError(f"{path}: another process changed it meanwhile") from None


# --- listings


class Entry(NamedTuple):
    """A file or folder in a folder."""

    path: AnyPath
    is_folder: bool  # False for a link
    written: float  # seconds since 1970; 0 for a folder on S3, whose time is unknown


def entries(folder: AnyPath) -> list[Entry]:
    """Return the files and folders in `folder`, in order; an empty list if it does not exist."""
    if on_disk(folder):
        listed = []
        for path in children(folder):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = path.lstat()
                listed.append(Entry(path, stat.S_ISDIR(status.st_mode), status.st_mtime))
        return listed
    return [Entry(each.path, each.written is None, each.written or 0.0) for each in s3_files.entries(folder)]


def children(folder: AnyPath, prefix: str = "") -> list[AnyPath]:
    """Return the files and folders in `folder` whose names begin with `prefix`, in order; none if it does not exist."""
    if on_disk(folder):
        try:
            with os.scandir(folder) as entries:
                return sorted(folder / entry.name for entry in entries if entry.name.startswith(prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []
    return list(s3_files.children(folder, prefix))


def files_below(folder: AnyPath, first: str = "") -> list[str]:
    """Return the paths, relative to `folder`, of all files below it, in order, from the name `first` on.

    On S3, each request lists a thousand files, in however many folders they are.
    """
    if not on_disk(folder):
        return [relative(each.path, folder) for each in s3_files.below(folder, first)]
    files = []
    for child in children(folder):
        if child.name >= first and on_disk(child):
            inside = child.rglob("*") if child.is_dir() else (child,)
            files += [path.relative_to(folder).as_posix() for path in inside if path.is_file()]
    return sorted(files)


def exists(path: AnyPath) -> bool:
    """Return whether a file or folder exists at `path`. On S3, a folder exists if it holds an object."""
    if on_disk(path):
        return path.exists()
    return any(child.name == path.name for child in s3_files.children(path.parent, path.name))


# --- removal


def remove_folder(path: AnyPath) -> None:
    """Remove the folder at `path` and its content, if it exists.

    Raises:
        LeaseLostError: another process has taken over a lock on S3 that this process holds; the rest of the folder
            stays.
    """
    if on_disk(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        _remove_objects(path)


def _remove_objects(folder: UPath) -> None:
    """Remove all objects in a folder. The documents that mark it as complete go first."""
    paths = [each.path for each in s3_files.below(folder)]
    marks = [path for path in paths if path.suffix == ".json"]
    for some in (marks, [path for path in paths if path.suffix != ".json"]):
        remove_objects(some)


def remove_objects(paths: Sequence[UPath]) -> None:
    """Remove objects on S3. Right before each request, the process checks that it still holds its locks.

    Raises:
        LeaseLostError: another process has taken over one of them; the remaining objects stay.
    """
    for start in range(0, len(paths), s3_files.MOST_REMOVED):
        leases.confirm()
        s3_files.remove(list(paths[start : start + s3_files.MOST_REMOVED]))


def _confirm_leases(path: AnyPath) -> None:
    """Raise LeaseLostError if `path` is on S3 and another process has taken over a lock that this process holds."""
    if not on_disk(path):
        leases.confirm()


def set_aside(path: Path) -> Path:
    """Rename the file or folder at `path`, so that it disappears in one step; return the new path, to `remove` it."""
    aside = path.with_name(f"{ASIDE}{path.name}")
    if aside.is_dir():
        remove(aside)  # left by a process that was killed
    path.rename(aside)
    return aside


def remove(path: Path) -> None:
    """Remove the file or folder at `path`; if it is a link, only the link.

    Raises:
        JobError: it cannot be removed. A part of a folder may be gone.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)  # follows no links
        else:
            path.unlink()
    except OSError as error:
        raise JobError(f"{error.filename or path}: it cannot be removed: {error.strerror}") from error


# --- locks


def lock_file(path: AnyPath) -> AnyPath:
    """Return the lock file for `path`. Its modification time says when a process last worked there."""
    return path.parent / f".{path.name}.lock"


@contextlib.contextmanager
def locked(path: AnyPath, *, busy: str | None = None, shared: bool = False) -> Iterator[None]:
    """Hold the lock of `path`. A process that dies releases it, on S3 after half a minute.

    Args:
        path: a file or folder, which need not exist.
        busy: the error text if another process holds the lock; without it, wait for the lock.
        shared: hold the lock together with other sharers; otherwise it is exclusive.

    Raises:
        JobError: another process holds the lock, and `busy` is given.
    """
    if not on_disk(path):
        lock = lock_file(path)
        assert not on_disk(lock)
        with leases.shared(lock) if shared else leases.exclusive(lock, busy=busy):
            yield
        return
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    make_folder(path.parent)
    own = lock_file(path)
    assert on_disk(own)
    with own.open("w") as file:
        os.utime(file.fileno())
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy is not None:
                raise JobError(f"{path}: {busy}") from None
            log.info("%s: another process is working there; waiting for it", path)
            fcntl.flock(file, kind)
        yield


@contextlib.contextmanager
def unless_busy(path: AnyPath) -> Iterator[bool]:
    """Yield whether no other process holds the lock of `path`. On a disk, hold it meanwhile.

    The time of the lock file does not change.
    """
    if not on_disk(path):
        lock = lock_file(path)
        assert not on_disk(lock)
        yield not leases.is_held(lock)
        return
    try:
        file = path.with_name(lock_file(path).name).open("r+")
    except FileNotFoundError:
        yield True  # no process ever worked there
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
