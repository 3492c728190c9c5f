"""Put the rows of one product together, wherever in the export they are, in bounded memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from jobs.errors import JobError
from jobs.importing.formats.format_registry import Row
from jobs.importing.formats.noticed import Noticed, shown

Json: TypeAlias = Any
Merge: TypeAlias = Callable[[list[dict[str, Json]]], dict[str, Json]]

_BATCH: Final = 1_000
_CACHE: Final = 65_536  # kilobytes of the file in memory
_MOST: Final = 10_000  # rows of one product
_LARGEST: Final = 64 * 2**20  # characters of these


def grouped(
    rows: Iterable[Row], key: Callable[[dict[str, Json]], str | None], merge: Merge, folder: Path, noticed: Noticed
) -> Iterator[Row]:
    """Yield one row for all `rows` with the same key, in the order of each one's first; the others as they are.

    Rows wait in a file: any number of them, in any order, takes no memory.

    Args:
        key: what the rows of one product have in common; None for a row of its own.
        merge: makes one row of several, which come in the export's order.
        folder: where the file is written.

    Raises:
        JobError: the folder has no room for the rows, or far too many are one product.
    """
    database = sqlite3.connect(folder / "rows.sqlite")
    try:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE}", "temp_store = FILE"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("CREATE TABLE given (key TEXT, position INTEGER, row TEXT)")
        waiting: list[tuple[str, int, str]] = []
        for position, row in enumerate(rows):
            name = key(row) if isinstance(row, dict) else None
            if name is None or not isinstance(row, dict):
                yield row
                continue
            waiting.append((json.dumps(name), position, json.dumps(row)))
            if len(waiting) >= _BATCH:
                database.executemany("INSERT INTO given VALUES (?, ?, ?)", waiting)
                waiting.clear()
        database.executemany("INSERT INTO given VALUES (?, ?, ?)", waiting)
        yield from _merged(database, merge, noticed)
    except sqlite3.Error as error:
        raise JobError(
            f"{folder}: rows could not be kept there until all are read ({error}); nothing was imported: make room, or set "
            "TMPDIR to a folder that has it"
        ) from error
    finally:
        database.close()


def _merged(database: sqlite3.Connection, merge: Merge, noticed: Noticed) -> Iterator[dict[str, Json]]:
    # A join of the rows with each key's first position would scan all rows once for each of them.
    ordered = database.execute(
        "SELECT min(position) OVER (PARTITION BY key) AS first, row FROM given ORDER BY first, position"
    )
    product, rows, size = None, list[dict[str, Json]](), 0
    for first, row in ordered:
        if first != product and rows:
            yield _one(rows, merge, noticed)
            rows, size = [], 0
        product = first
        rows.append(json.loads(row))
        size += len(row)
        if len(rows) > _MOST or size > _LARGEST:
            raise JobError(
                f"{len(rows):,} rows and more are one product by the column that `group_by` names, such as {shown(row)}; nothing "
                "was imported: name the column whose values are one product's alone"
            )
    if rows:
        yield _one(rows, merge, noticed)


def _one(rows: list[dict[str, Json]], merge: Merge, noticed: Noticed) -> dict[str, Json]:
    if len(rows) > 1:
        noticed.note("rows put together with others of their product", len(rows) - 1)
    return merge(rows)
