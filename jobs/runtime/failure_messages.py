"""What the machine does to a step, a full disk or a damaged file, told in one sentence, from whichever library it comes."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import Final

from jobs.errors import JobError, TransientError
from jobs.lake import storage

# As the C library says it: Python, the JVM, Arrow and DuckDB all pass its words on.
_NO_ROOM: Final = re.compile(
    r"No space left on device|Disk quota exceeded|disk full|No usable temporary directory", re.IGNORECASE
)
_READ_ONLY: Final = re.compile(r"Read-only file system", re.IGNORECASE)
_NO_RIGHT: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_OURS: Final = re.compile(r"^(?:jobs|cma_clip_core|schemas)\.[a-z_.]+\.([A-Z][A-Za-z]*Error): (.+)$", re.MULTILINE)
# Spark's names of what is wrong with a file, and what it says of it.
_UNREADABLE: Final = re.compile(
    r"FAILED_READ_FILE|PATH_NOT_FOUND|CANNOT_READ_FILE_FOOTER|is not a Parquet file|could not verify (?:dictionary )?page integrity"
)
_FILE: Final = re.compile(r"(?:file|s3a):/[^\s'\"]+")
_PATH: Final = re.compile(
    r"(?<![\w./])(/[^\s'\":()]+)"
)  # not that of a frame of Java's: java.base/java.io.FileOutputStream
_SHOWN: Final = 300  # characters of another library's words


def explain(error: BaseException) -> JobError | None:
    """Return what is to be told of an error that came from a disk or from damaged data, or None: it is another one.

    Looks at what it was caused by, too, and at what Spark tells of an error in one of its workers.
    """
    for each in _chain(error):
        if isinstance(each, JobError):
            return each
        if (found := _explain(each)) is not None:
            return found
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
    if (own := _OURS.search(text)) is not None:  # of a worker of Spark's, as a text
        return (TransientError if own[1] == TransientError.__name__ else JobError)(own[2])
    number = error.errno if isinstance(error, OSError) else None
    where = _where(error, text)
    if number in storage.NO_ROOM or _NO_ROOM.search(text):
        return TransientError(f"{where}: no room on its disk; {storage.MAKE_ROOM}")
    if number in _NO_RIGHT or _READ_ONLY.search(text):
        why = error.strerror if isinstance(error, OSError) and error.strerror else "read-only file system"
        return JobError(
            f"{where}: it cannot be written or read: {why}; give this user the right to, or mount it for writing"
        )
    if _UNREADABLE.search(text):
        return JobError(
            f"{where}: it is missing or damaged: {_short(text)}; run the step that writes it again, or put it back from a "
            "copy of the lake"
        )
    return None


def _where(error: BaseException, text: str) -> str:
    """Return the file that an error is about, as well as it can be told."""
    if isinstance(error, OSError) and error.filename is not None:
        return str(error.filename)
    if (found := _FILE.search(text)) is not None:
        return re.sub(r"^file:/+", "/", found[0]).rstrip(".,;")
    found = _PATH.search(text)
    if found is not None:
        return found[1].rstrip(".,;")
    return f"a file of this step, in the lake or in {os.environ.get('TMPDIR', '/tmp')} (TMPDIR)"


def _short(text: str) -> str:
    line = next((line for line in text.splitlines() if _UNREADABLE.search(line)), text)
    return line.strip()[:_SHOWN]
