"""The few storage operations that need care, on a disk and on S3 alike: whole-file writes, create-only, compare-and-swap, lists, locks.

A reader sees a file as it was before or as it is after, never between, whatever instant a writer is killed at. Places are
paths: `pathlib` on a disk, `upath` on S3; what is not here, both have.
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

if TYPE_CHECKING:
    from upath import UPath

log = logging.getLogger(__name__)

Document = TypeVar("Document", bound=BaseModel)

USED: Final = ".used"  # in a folder on S3, where folders have no times: when it was last asked for
_NOT_IN_NAMES: Final = frozenset("*?[]{}\\,")
ASIDE: Final = ".expired-"  # before the name of what is about to be removed
_AT_ONCE: Final = 16  # requests that mostly wait
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
MAKE_ROOM: Final = (
    "make some, then run the step again: what is finished stays, and nothing half written does. "
    "`python -m jobs maintenance` says what the lake no longer needs"
)
RESTORE: Final = "put it back from a copy of the lake"  # the remedy of what cannot be made again
_CHECKSUM: Final = re.compile(rb'\A\{\n "checksum": "sha256:([0-9a-f]{64})",\n')


class SwapLostError(JobError):
    """A compare-and-swap found other content than expected: someone else swapped first."""


# --- places


def as_path(name: str) -> AnyPath:
    """Return the path that a setting or an ``s3://`` URI names."""
    if not name.startswith("s3://"):
        return Path(name)
    from jobs.lake import s3_files

    return s3_files.s3_path(name)


def forbidden(name: str) -> str | None:
    """Return why a folder of this name cannot be read and written by all that a lake is read and written by, or None.

    Spark and DuckDB take ``* ? [ ] { }`` and the backslash for patterns, so that other files than those meant are read, or
    none; Spark's list of local folders is separated by commas; a line of the pointer for readers ends with the line.
    """
    wrong = sorted({char for char in name if char in _NOT_IN_NAMES or not char.isprintable()})
    if not wrong:
        return None
    return (
        f"{name!r}: {', '.join(map(repr, wrong))} cannot be in the name of this folder: Spark and DuckDB take it for a pattern or "
        "for the end of the name; give the folder another name, or link to it by one"
    )


def spark_uri(path: AnyPath) -> str:
    """Return `path` as Spark names it: what is on S3 it reads through Hadoop's s3a."""
    return str(path) if on_disk(path) else f"s3a://{path.path}"


def below(path: AnyPath, folder: AnyPath) -> bool:
    """Whether `path` is `folder`, or in it."""
    return path == folder or str(path).startswith(f"{str(folder).rstrip('/')}/")


def own_folder(name: str) -> Path:
    """Return this user's folder on this machine for work on what is elsewhere, `name`.

    Raises:
        JobError: it is another user's.
    """
    base = Path(tempfile.gettempdir()) / f"catalog-attribute-tagger-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise JobError(f"{base} is another user's; remove it, or set TMPDIR")
    return base / hashlib.sha256(name.encode()).hexdigest()[:12]


def local_copy(folder: AnyPath, copy: Path) -> Path:
    """Return `folder` where it is on a disk, else a copy of it, made where there is none yet; for what never changes.

    Raises:
        FileNotFoundError: there is nothing in it.
    """
    if on_disk(folder):
        return folder
    if not copy.is_dir():
        from jobs.lake import s3_files

        copy.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=copy.parent, prefix=".copy-"))
        try:
            found = list(s3_files.below(folder))
            if not found:
                raise FileNotFoundError(f"{folder}: there is no such folder")
            for each in found:
                (fresh / relative(each.path, folder)).parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda each: s3_files.download(each.path, fresh / relative(each.path, folder)), found))
            with contextlib.suppress(OSError):  # another process was first
                fresh.rename(copy)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return copy


def send_folder(source: Path, folder: AnyPath, *, last: str | None = None, deep: bool = True) -> None:
    """Copy what is in the folder `source` into `folder`, whole files. On a disk they are one and the same.

    Args:
        last: name of the file that says that the others are there.
        deep: with the folders in it.
    """
    if on_disk(folder):
        if source != folder:
            raise ValueError(f"{source} is not {folder}")
        return
    from jobs.lake import s3_files

    paths = [path for path in source.glob("**/*" if deep else "*") if path.is_file()]
    for some in ([path for path in paths if path.name != last], [path for path in paths if path.name == last]):
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda path: s3_files.upload(path, folder / path.relative_to(source).as_posix()), some))


def relative(path: AnyPath, root: AnyPath) -> str:
    """Return `path` as documents name it, relative to `root`. Raises ValueError where it is not below it."""
    start = f"{str(root).rstrip('/')}/"
    if not str(path).startswith(start):
        raise ValueError(f"{path} is not in {root}")
    return str(path)[len(start) :]


# --- files


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary file; on a clean exit it becomes `path` in one step, on an error it is removed.

    On a disk it is there for good at the end: the file, its name and the folders that were made for it survive a loss of
    power. For S3 it is on this machine's disk for temporary files (TMPDIR), and is sent whole.

    Raises:
        TransientError: there is no room for it.
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
            from jobs.lake import s3_files

            s3_files.upload(temporary, path)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise TransientError(f"{path}: no room for it in {temporary.parent}: {error}; {MAKE_ROOM}") from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder where there is none, and those above it, there for good."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def settle_folder(folder: AnyPath) -> None:
    """Let the files in a folder, which others wrote, survive a loss of power. On S3 they do."""
    if on_disk(folder):
        for path in children(folder):
            assert on_disk(path)
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_folder(folder)
        sync_folder(folder.parent)


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Write `data` to `path`, replacing it whole."""
    if on_disk(path):
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    else:
        path.write_bytes(data)  # one request


def read_bytes(path: AnyPath) -> bytes | None:
    """Return the content of `path`; None where there is nothing."""
    if not on_disk(path):
        from jobs.lake import s3_files

        found = s3_files.read(path)
        return None if found is None else found.data
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_document(path: AnyPath, document: BaseModel) -> None:
    """Write `document` as JSON to `path`, replacing it whole.

    Raises:
        LeaseLostError: a lock on S3 that this process holds is somebody else's by now; nothing was written.
    """
    _confirm_leases(path)
    write_bytes(path, to_bytes(document))


def to_bytes(document: BaseModel) -> bytes:
    """Return what `write_document` writes. The first member is the SHA-256 of all that follows its line."""
    start, rest = b"{\n", document.model_dump_json(indent=1).encode().removeprefix(b"{\n") + b"\n"
    return start + b' "checksum": "sha256:%s",\n' % hashlib.sha256(rest).hexdigest().encode() + rest


def read_document(path: AnyPath, model: type[Document], remedy: str = RESTORE) -> Document | None:
    """Return the JSON document at `path`, or None where there is none.

    Args:
        path: of the document.
        model: what it is.
        remedy: what to do where it is broken; it must lose nothing.

    Raises:
        JobError: it is broken.
    """
    data = read_bytes(path)
    return None if data is None else from_bytes(path, data, model, remedy)


def find_document(path: AnyPath, model: type[Document], instead: str) -> Document | None:
    """Return the JSON document at `path`, or None where there is none or it is broken; says then what is done `instead`.

    For what the caller makes again, or can do without.
    """
    try:
        return read_document(path, model, instead)
    except JobError as error:
        log.warning("%s", error)
        return None


def from_bytes(path: AnyPath, data: bytes, model: type[Document], remedy: str = RESTORE) -> Document:
    """Return the JSON document that `path` has. Raises JobError, with the `remedy`, where it is broken.

    One that was written before documents had a checksum is read without.
    """
    try:
        checksum = _CHECKSUM.match(data)
        if checksum is not None:
            rest = data[checksum.end() :]
            if hashlib.sha256(rest).hexdigest().encode() != checksum[1]:
                raise ValueError("its content is not what its checksum says: it was changed after it was written")
            data = b"{\n" + rest
        return model.model_validate_json(data)
    except ValueError as error:
        raise JobError(f"{path}: not a {model.__name__}, or damaged: {_in_short(error)}; {remedy}") from error


def _in_short(error: ValueError) -> str:
    """Return what is wrong with a document in one line: the first thing, where there are several."""
    if not isinstance(error, ValidationError):
        return str(error)
    first, more = error.errors()[0], error.error_count() - 1
    place = ".".join(map(str, first["loc"]))
    return f"{f'{place}: ' if place else ''}{first['msg']}{f' (and {more} more)' if more else ''}"[:300]


def sha256(path: AnyPath) -> str:
    """Return the hex SHA-256 of the file at `path`."""
    if not on_disk(path):
        from jobs.lake import s3_files

        return s3_files.sha256(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(path: AnyPath, size_written: int, sha256_written: str = "") -> str | None:
    """Return how a file differs from what was written, in words, or None.

    Args:
        path: of the file.
        size_written: its bytes.
        sha256_written: its SHA-256; where it is given, the whole file is read.
    """
    found = size(path)
    if found is None:
        return "is missing"
    if found != size_written:
        return f"has {found:,} bytes, {size_written:,} were written: it is half-written or was changed"
    if sha256_written and sha256(path) != sha256_written:
        return "is not what was written (its SHA-256 differs): it was changed, or its disk fails"
    return None


def size(path: AnyPath) -> int | None:
    """Return the bytes of the file at `path`; None where there is none."""
    try:
        return int(path.stat().st_size)
    except FileNotFoundError:
        return None


def touch(folder: AnyPath) -> None:
    """Let `last_used` of a folder be now."""
    if on_disk(folder):
        os.utime(folder)
    else:
        write_bytes(folder / USED, b"")


# --- conditional writes


def compare_and_swap(path: AnyPath, expected: bytes | None, new: bytes) -> None:
    """Replace the content of `path` by `new` if it is still `expected` (None: if it does not exist).

    Raises:
        SwapLostError: the content is another; nothing was changed.
    """
    if on_disk(path):
        with locked(path):
            if read_bytes(path) != expected:
                raise SwapLostError(f"{path}: changed by someone else meanwhile")
            write_bytes(path, new)
        return
    from jobs.lake import s3_files

    found = s3_files.read(path) if expected is not None else None
    try:
        if (None if found is None else found.data) != expected:
            raise s3_files.ConditionFailedError
        s3_files.put(path, new, found)
    except s3_files.ConditionFailedError:
        raise SwapLostError(f"{path}: changed by someone else meanwhile") from None


# --- lists


class Entry(NamedTuple):
    """What a folder holds."""

    path: AnyPath
    is_folder: bool  # a link is none
    written: float  # seconds since 1970; of a folder on S3 it is not known, and 0


def entries(folder: AnyPath) -> list[Entry]:
    """Return what is in `folder`, in order; nothing where it is not there."""
    if on_disk(folder):
        found = []
        for path in children(folder):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                about = path.lstat()
                found.append(Entry(path, stat.S_ISDIR(about.st_mode), about.st_mtime))
        return found
    from jobs.lake import s3_files

    return [Entry(each.path, each.written is None, each.written or 0.0) for each in s3_files.entries(folder)]


def children(folder: AnyPath, prefix: str = "") -> list[AnyPath]:
    """Return what is in `folder`, files and folders whose name begins with `prefix`, in order; nothing where it is not there."""
    if on_disk(folder):
        try:
            with os.scandir(folder) as entries:
                return sorted(folder / entry.name for entry in entries if entry.name.startswith(prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []
    from jobs.lake import s3_files

    return list(s3_files.children(folder, prefix))


def files_below(folder: AnyPath, first: str = "") -> list[str]:
    """Return all files in `folder` and below by their paths relative to it, in order, from the name `first` on.

    On S3 that is one request for each thousand, however many folders they are in.
    """
    if not on_disk(folder):
        from jobs.lake import s3_files

        return [relative(each.path, folder) for each in s3_files.below(folder, first)]
    found = []
    for child in children(folder):
        if child.name >= first and on_disk(child):
            inside = child.rglob("*") if child.is_dir() else (child,)
            found += [path.relative_to(folder).as_posix() for path in inside if path.is_file()]
    return sorted(found)


def exists(path: AnyPath) -> bool:
    """Whether there is a file at `path`, or a folder with anything in it."""
    if on_disk(path):
        return path.exists()
    from jobs.lake import s3_files

    return any(found.name == path.name for found in s3_files.children(path.parent, path.name))


# --- removal


def remove_folder(path: AnyPath) -> None:
    """Remove the folder at `path` and all in it, if it is there.

    Raises:
        LeaseLostError: a lock on S3 that this process holds is somebody else's by now; the rest of the folder stays.
    """
    if on_disk(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        _remove_objects(path)


def _remove_objects(folder: UPath) -> None:
    """Remove all objects in a folder, first what says that it is whole."""
    from jobs.lake import s3_files

    found = [each.path for each in s3_files.below(folder)]
    marks = [path for path in found if path.suffix == ".json"]
    for some in (marks, [path for path in found if path.suffix != ".json"]):
        remove_objects(some)


def remove_objects(paths: Sequence[UPath]) -> None:
    """Remove objects on S3. Right before each request it is looked whether the locks that this process holds are its own.

    Raises:
        LeaseLostError: one is somebody else's by now; the rest stays.
    """
    from jobs.lake import leases, s3_files

    for start in range(0, len(paths), s3_files.MOST_REMOVED):
        leases.confirm()
        s3_files.remove(list(paths[start : start + s3_files.MOST_REMOVED]))


def _confirm_leases(path: AnyPath) -> None:
    """Raise LeaseLostError where a lock that this process holds on S3 is not its own any more."""
    if not on_disk(path):
        from jobs.lake import leases

        leases.confirm()


def set_aside(path: Path) -> Path:
    """Rename what is at `path`, so that in one step it is there no more for anyone; return its place, to `remove` it."""
    aside = path.with_name(f"{ASIDE}{path.name}")
    if aside.is_dir():
        remove(aside)  # of one that was killed
    path.rename(aside)
    return aside


def remove(path: Path) -> None:
    """Remove the file or the folder at `path`; where that is a link, the link alone.

    Raises:
        JobError: it cannot be removed; some of a folder may be.
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
    """Return the file that is locked for what is at `path`. Its time says when something was last at work there."""
    return path.parent / f".{path.name}.lock"


@contextlib.contextmanager
def locked(path: AnyPath, *, busy: str | None = None, shared: bool = False) -> Iterator[None]:
    """Hold the lock of what is, or will be, at `path`; a process that dies lets go of it, on S3 after half a minute.

    Args:
        path: file or folder; it need not exist.
        busy: what to say where another process holds the lock; left out, it is waited for.
        shared: let others hold it that share it too; who does not share it has it alone.

    Raises:
        JobError: another process holds the lock, and `busy` is given.
    """
    if not on_disk(path):
        from jobs.lake import leases

        lock = lock_file(path)
        assert not on_disk(lock)
        with leases.shared(lock) if shared else leases.alone(lock, busy=busy):
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
            log.info("%s: another process is at work there; it is waited for", path)
            fcntl.flock(file, kind)
        yield


@contextlib.contextmanager
def unless_busy(path: AnyPath) -> Iterator[bool]:
    """Hold the lock of `path` where nobody else does, and yield whether that is so. Its time stays what it was."""
    if not on_disk(path):
        from jobs.lake import leases

        there = lock_file(path)
        assert not on_disk(there)
        yield not leases.is_held(there)
        return
    try:
        lock = path.with_name(lock_file(path).name).open("r+")
    except FileNotFoundError:
        yield True  # nobody was ever at work there
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
