"""The few storage operations that need care: whole-file writes, create-only, compare-and-swap.

A reader sees a file as it was before or as it is after, never between, whatever instant a writer is killed at.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from jobs.errors import JobError

log = logging.getLogger(__name__)

Document = TypeVar("Document", bound=BaseModel)

ASIDE: Final = ".expired-"  # before the name of what is about to be removed


class SwapLostError(JobError):
    """A compare-and-swap found other content than expected: someone else swapped first."""


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it becomes `path` in one step, on an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing it whole."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_document(path: Path, document: BaseModel) -> None:
    """Write `document` as JSON to `path`, replacing it whole."""
    write_bytes(path, document.model_dump_json(indent=1).encode() + b"\n")


def read_document(path: Path, model: type[Document]) -> Document | None:
    """Return the JSON document at `path`, or None where there is none. Raises JobError where it is broken."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise JobError(
            f"{path}: not a {model.__name__}; remove it and run the step that writes it again\n{error}"
        ) from error


def lock_file(path: Path) -> Path:
    """Return the file that is locked for what is at `path`. Its time says when something was last at work there."""
    return path.parent / f".{path.name}.lock"


@contextlib.contextmanager
def locked(path: Path, *, busy: str | None = None, shared: bool = False) -> Iterator[None]:
    """Hold the lock of what is, or will be, at `path`; a process that dies lets go of it.

    Args:
        path: file or folder; it need not exist.
        busy: what to say where another process holds the lock; left out, it is waited for.
        shared: let others hold it that share it too; who does not share it has it alone.

    Raises:
        JobError: another process holds the lock, and `busy` is given.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path).open("w") as lock:
        os.utime(lock.fileno())
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy is not None:
                raise JobError(f"{path}: {busy}") from None
            log.info("%s: another process is at work there; it is waited for", path)
            fcntl.flock(lock, kind)
        yield


@contextlib.contextmanager
def unless_busy(path: Path) -> Iterator[bool]:
    """Hold the lock of `path` where nobody else does, and yield whether that is so. Its time stays what it was."""
    try:
        lock = lock_file(path).open("r+")
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


def compare_and_swap(path: Path, expected: bytes | None, new: bytes) -> None:
    """Replace the content of `path` by `new` if it is still `expected` (None: if it does not exist).

    Raises:
        SwapLostError: the content is another; nothing was changed.
    """
    with locked(path):
        found = path.read_bytes() if path.exists() else None
        if found != expected:
            raise SwapLostError(f"{path}: changed by someone else meanwhile")
        write_bytes(path, new)


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(path: Path) -> None:
    """Remove the folder at `path` and all in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


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
