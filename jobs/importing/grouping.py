"""Group the rows of each product from anywhere in an export, in bounded memory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

from jobs.errors import JobError
from jobs.importing.formats.format_registry import Row
from jobs.importing.formats.observations import Observations, shown

Json: TypeAlias = Any
Merge: TypeAlias = Callable[[list[dict[str, Json]]], dict[str, Json]]

_BATCH: Final = 1_000
_CACHE: Final = 65_536  # kilobytes of the database in memory
_MOST: Final = 10_000  # rows of one product
_LARGEST: Final = 64 * 2**20  # characters of the rows of one product


def grouped(
    rows: Iterable[Row],
    key: Callable[[dict[str, Json]], str | None],
    merge: Merge,
    folder: Path,
    observations: Observations,
) -> Iterator[Row]:
    """Yield one merged row for each key, and unchanged every row that has no key.

    Rows without a key come first. Merged rows follow in the order of each product's first row. Rows wait in an SQLite file,
    so memory does not grow with their number.

    Args:
        rows: rows of the export in any order, and rejected lines.
        key: returns the key that the rows of one product share; None if a row stands alone.
        merge: makes one row of several, which it receives in the export's order.
        folder: folder for the SQLite file.
        observations: counts the merged rows.

    Raises:
        JobError: the folder has no room for the rows, or far too many rows have the same key.
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
        yield from _merge_products(database, merge, observations)
    except sqlite3.Error as error:
        raise JobError(
            f"{folder}: rows could not be stored there until all are read ({error}); nothing was imported: free some space, or "
            "set TMPDIR to a folder that has enough"
        ) from error
    finally:
        database.close()


def _merge_products(
    database: sqlite3.Connection, merge: Merge, observations: Observations
) -> Iterator[dict[str, Json]]:
    # A window function: a join of the rows with each key's first position would scan the whole table once per row.
    ordered = database.execute(
        "SELECT min(position) OVER (PARTITION BY key) AS first, row FROM given ORDER BY first, position"
    )
    product, rows, size = None, list[dict[str, Json]](), 0
    for first, row in ordered:
        if first != product and rows:
            yield _merge_one(rows, merge, observations)
            rows, size = [], 0
        product = first
        rows.append(json.loads(row))
        size += len(row)
        if len(rows) > _MOST or size > _LARGEST:
            raise JobError(
                f"{len(rows):,} or more rows have the same value in the column that `group_by` names, such as {shown(row)}; "
                "nothing was imported: name a column whose values identify one product"
            )
    if rows:
        yield _merge_one(rows, merge, observations)


def _merge_one(rows: list[dict[str, Json]], merge: Merge, observations: Observations) -> dict[str, Json]:
    if len(rows) > 1:
        observations.note("rows merged with another row of their product", len(rows) - 1)
    return merge(rows)
