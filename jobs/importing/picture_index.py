"""Index of an export's pictures: a table in the export that gives the path of each picture by its id."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from jobs.errors import JobError
from jobs.importing.files.record_files import find_records
from jobs.importing.files.unpacking import Bounds
from jobs.importing.formats.format_registry import open_records, read_records
from jobs.importing.formats.observations import Observations
from jobs.records.values import identity
from schemas.mapping import Mapping

_CACHE: Final = 65_536  # kilobytes of the database in memory


class PictureIndex:
    """Paths of pictures by id, in an SQLite file, so that memory does not grow with their number."""

    def __init__(self, folder: Path, mapping: Mapping, bounds: Bounds, stack: contextlib.ExitStack) -> None:
        """Read the table that `mapping.picture_index` names. `stack` closes and removes the index.

        Raises:
            JobError: the table is missing, damaged, or lacks the columns.
        """
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="import-"))
        self._database = stack.enter_context(contextlib.closing(sqlite3.connect(f"{scratch}/pictures.sqlite")))
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE pictures (id TEXT PRIMARY KEY, path TEXT) WITHOUT ROWID")
        try:
            self._database.executemany("INSERT OR IGNORE INTO pictures VALUES (?, ?)", _rows(folder, mapping, bounds))
        except sqlite3.Error as error:
            raise JobError(
                f"{scratch}: the index of pictures could not be stored ({error}); nothing was imported: free some space, or "
                "set TMPDIR to a folder that has enough"
            ) from error

    def path(self, picture: str) -> str | None:
        """Return the path of the picture with this id; None if the table does not have it."""
        row = self._database.execute("SELECT path FROM pictures WHERE id = ?", [picture]).fetchone()
        return row[0] if row else None


def _rows(folder: Path, mapping: Mapping, bounds: Bounds) -> Iterator[tuple[str, str]]:
    index = mapping.picture_index
    assert index is not None
    table = Mapping(records=index.file, product_id=index.id, labels=(index.path,))
    files, _ = find_records(folder, table)
    for source in (source for file in files for source in open_records(file, folder, table, bounds)):
        count = 0
        for row in read_records(source, table, Observations(), progress=False):
            if isinstance(row, dict):
                picture, path = (identity(row.get(column)) for column in (index.id, index.path))
                if isinstance(picture, str) and isinstance(path, str) and picture and path:
                    count += 1
                    yield picture, path
        if not count:
            raise JobError(
                f"{source.label}: no row has both {index.id!r} and {index.path!r}, which `picture_index` names; nothing was "
                "imported: correct the mapping"
            )


def open_index(folder: Path, mapping: Mapping, bounds: Bounds, stack: contextlib.ExitStack) -> PictureIndex | None:
    """Return the index of pictures; None if the mapping names none, or none of its files exists."""
    if mapping.picture_index is None or not _any(folder, mapping.picture_index.file):
        return None
    return PictureIndex(folder, mapping, bounds, stack)


def _any(folder: Path, patterns: Iterable[str]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))
