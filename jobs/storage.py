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
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from jobs.errors import JobError

log = logging.getLogger(__name__)

Document = TypeVar("Document", bound=BaseModel)


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


@contextlib.contextmanager
def locked(path: Path, *, busy: str | None = None) -> Iterator[None]:
    """Hold the lock of what is, or will be, at `path`; a process that dies lets go of it.

    Args:
        path: file or folder; it need not exist.
        busy: what to say where another process holds the lock; left out, it is waited for.

    Raises:
        JobError: another process holds the lock, and `busy` is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if busy is not None:
                raise JobError(f"{path}: {busy}") from None
            log.info("%s: another process is at work there; it is waited for", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
