"""Error messages of one sentence for full disks, missing permissions and damaged files, from any library."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Final

from jobs.errors import JobError, TransientError
from jobs.lake import storage

# The messages of the C library, which Python, the JVM, Arrow and DuckDB all pass on.
_NO_ROOM: Final = re.compile(
    r"No space left on device|Disk quota exceeded|disk full|No usable temporary directory", re.IGNORECASE
)
_READ_ONLY: Final = re.compile(r"Read-only file system", re.IGNORECASE)
_NO_PERMISSION: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_OURS: Final = re.compile(r"^(?:jobs|cma_clip_core|schemas)\.[a-z_.]+\.([A-Z][A-Za-z]*Error): (.+)$", re.MULTILINE)
# Spark's error classes and messages for files that it cannot read.
_UNREADABLE: Final = re.compile(
    r"FAILED_READ_FILE|PATH_NOT_FOUND|CANNOT_READ_FILE_FOOTER|is not a Parquet file|could not verify (?:dictionary )?page integrity"
)
_FILE: Final = re.compile(r"(?:file|s3a):/[^\s'\"]+")
# Not the path in a Java stack frame, such as java.base/java.io.FileOutputStream.
_PATH: Final = re.compile(r"(?<![\w./])(/[^\s'\":()]+)")
_SHOWN: Final = 300  # characters of another library's message


def explain(error: BaseException) -> JobError | None:
    """Return the error to report for a fault of a disk or damaged data, or None for any other error.

    The causes of the error are examined too, and Spark's text of an error in one of its workers.
    """
    for each in _chain(error):
        if isinstance(each, JobError):
            return each
        if (explained := _explain(each)) is not None:
            return explained
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = set[int]()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _explain(error: BaseException) -> JobError | None:
    text = str(error)
    if (own := _OURS.search(text)) is not None:  # the text of an error in a Spark worker
        return (TransientError if own[1] == TransientError.__name__ else JobError)(own[2])
    number = error.errno if isinstance(error, OSError) else None
    where = _where(error, text)
    if number in storage.NO_ROOM or _NO_ROOM.search(text):
        return TransientError(f"{where}: no room on its disk; {storage.MAKE_ROOM}")
    if number in _NO_PERMISSION or _READ_ONLY.search(text):
        why = error.strerror if isinstance(error, OSError) and error.strerror else "read-only file system"
        return JobError(
            f"{where}: it cannot be written or read: {why}; give this user permission, or mount it for writing"
        )
    if _UNREADABLE.search(text):
        return JobError(
            f"{where}: it is missing or damaged: {_short(text)}; run the step that writes it again, or put it back from a "
            "copy of the lake"
        )
    return None


def _where(error: BaseException, text: str) -> str:
    """Return the file that an error is about, or a description of the possible folders if it is unknown."""
    if isinstance(error, OSError) and error.filename is not None:
        return str(error.filename)
    if (match := _FILE.search(text)) is not None:
        return re.sub(r"^file:/+", "/", match[0]).rstrip(".,;")
    if (match := _PATH.search(text)) is not None:
        return match[1].rstrip(".,;")
    return f"a file of this step, in the lake or in {os.environ.get('TMPDIR', '/tmp')} (TMPDIR)"


def _short(text: str) -> str:
    line = next((line for line in text.splitlines() if _UNREADABLE.search(line)), text)
    return line.strip()[:_SHOWN]
