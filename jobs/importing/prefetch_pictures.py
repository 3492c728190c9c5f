"""Downloads ahead of the rows: a window of records whose pictures on the web are on their way."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final

from jobs.importing.formats.format_registry import Row
from jobs.importing.mapper import REQUESTED, Mapper
from jobs.importing.pictures.picture_store import PendingPicture

_RECORDS: Final = 5_000  # records of the window
_PICTURES: Final = 5_000  # pictures of the window
_BYTES: Final = 64 * 2**20  # of the window's records as JSON


def lines(rows: Iterable[Row], mapper: Mapper) -> Iterator[bytes]:
    """Yield a line of the raw catalog for each row, in order, while pictures of later rows are downloaded.

    Records wait only if a picture is awaited. The window bounds memory, whatever the size of the catalog.
    """
    window: deque[tuple[bytes | dict[str, Any], int, int]] = deque()  # each with its pictures and bytes
    pictures = size = 0
    for row in rows:
        entry: bytes | dict[str, Any] = mapper.begun_record(row) if isinstance(row, dict) else mapper.line(row)
        pending, length = 0, 0
        if isinstance(entry, dict):
            requested = entry.get(REQUESTED, ())
            pending = sum(isinstance(each, PendingPicture) for each in requested)
            if not pending and not window:
                yield mapper.finished_line(entry)
                continue
            length = len(json.dumps({name: value for name, value in entry.items() if name != REQUESTED}))
        elif not window:
            yield entry
            continue
        else:
            length = len(entry)
        window.append((entry, pending, length))
        pictures, size = pictures + pending, size + length
        while window and (len(window) > _RECORDS or pictures > _PICTURES or size > _BYTES or _is_done(window[0][0])):
            entry, pending, length = window.popleft()
            pictures, size = pictures - pending, size - length
            yield entry if isinstance(entry, bytes) else mapper.finished_line(entry)
    for entry, _, _ in window:
        yield entry if isinstance(entry, bytes) else mapper.finished_line(entry)


def _is_done(entry: bytes | dict[str, Any]) -> bool:
    if isinstance(entry, bytes):
        return True
    return all(each.future.done() for each in entry.get(REQUESTED, ()) if isinstance(each, PendingPicture))
