"""Values that the pipeline filled in since a day, from the history of the attribute table, in an SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from jobs.errors import JobError
from jobs.lake import duckdb_sql, history
from jobs.lake.layout import Lake
from schemas.documents import HistoryIndex

if TYPE_CHECKING:
    import duckdb

Kind = Literal["fill", "correct", "withdraw"]

_BATCH: Final = 10_000  # products
_COLUMNS: Final = "product_id, attribute, value, source, model_value, accepted, conflict"


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one attribute of a product.

    A fill has the model's values for a gap. A correction has the model's values that conflict with the catalog's. A
    withdrawal has none: the pipeline filled the gap before, and no longer does.
    """

    attribute: str
    kind: Kind
    values: tuple[str, ...]


class Changes:
    """The changes since a day, by product. Memory does not grow with their number."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(
            "CREATE TABLE changes (product_id TEXT PRIMARY KEY, given TEXT, taken INTEGER DEFAULT 0) WITHOUT ROWID"
        )
        self.products = 0

    def fill(self, connection: duckdb.DuckDBPyConnection, lake: Lake, since: str, *, corrections: bool) -> None:
        """Read the changes that a lake's history has since the day `since`, inclusive.

        Args:
            connection: a DuckDB connection that may read the lake.
            lake: the lake.
            since: the first day, YYYY-MM-DD.
            corrections: also read accepted values that conflict with the catalog's own.

        Raises:
            JobError: nothing is published since that day, or files of the history are missing or damaged.
        """
        index = lake.read_history_index()
        after = [day for day in sorted(index.days) if day >= since]
        if not after:
            newest = max(index.days, default=None)
            known = f"the newest day is {newest}" if newest else "nothing is published yet"
            raise JobError(f"--since {since}: no day from then on is published; {known}; give an earlier day")
        query = connection.execute(_query(connection, lake, index, since, after, corrections=corrections))
        while rows := query.fetchmany(_BATCH):
            self._database.executemany(
                "INSERT INTO changes (product_id, given) VALUES (?, ?)",
                [(product, json.dumps(sorted(changes))) for product, changes in rows],
            )
            self.products += len(rows)

    def take(self, product_id: str) -> tuple[Change, ...]:
        """Return the changes of a product, and mark it as found in the shop's export. A second call returns none."""
        found = self._database.execute(
            "SELECT given FROM changes WHERE product_id = ? AND NOT taken", (product_id,)
        ).fetchone()
        if found is None:
            return ()
        self._database.execute("UPDATE changes SET taken = 1 WHERE product_id = ?", (product_id,))
        return _decoded(found[0])

    def remaining(self) -> Iterator[tuple[str, tuple[Change, ...]]]:
        """Yield the products that were not taken, by id, with their changes."""
        for product, given in self._database.execute(
            "SELECT product_id, given FROM changes WHERE NOT taken ORDER BY product_id"
        ):
            yield product, _decoded(given)

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _decoded(given: str) -> tuple[Change, ...]:
    return tuple(Change(attribute, kind, tuple(json.loads(values))) for attribute, kind, values in json.loads(given))


def _query(
    connection: duckdb.DuckDBPyConnection,
    lake: Lake,
    index: HistoryIndex,
    since: str,
    after: list[str],
    *,
    corrections: bool,
) -> str:
    """Return the SQL that gives each product with a list of (attribute, kind, values)."""
    schema = history.SCHEMAS["attributes"]
    newer = [file for day in after for file in history.day_files(lake, index, "attributes", day)]
    days_before = [day for day in index.days if day < since]
    older = history.files_until(lake, index, "attributes", max(days_before)) if days_before else []
    recent = duckdb_sql.scan(connection, newer, schema)
    past = duckdb_sql.scan(connection, older, schema)
    gained = (
        "list(distinct model_value order by model_value) filter (accepted and conflict)"
        if corrections
        else "null::varchar[]"
    )
    lost = "old_conflicts" if corrections else "null::varchar[]"
    filled = "list(distinct value order by value) filter (source = 'model' and value is not null)"
    return f"""
        with newest as (
            select * from (select {_COLUMNS}, change, change_ds, max(change_ds) over (partition by product_id, attribute)
                as newest from {recent}) where change_ds = newest
        ), present as (
            select product_id, attribute, bool_or(change = 'upsert') as present, {filled} as filled, {gained} as conflicts
            from newest group by product_id, attribute
        ), past as (
            select product_id, attribute, {filled} as old_filled,
                list(distinct model_value order by model_value) filter (accepted and conflict) as old_conflicts
            from ({history.as_of_query("attributes", past)}) as state
            semi join present using (product_id, attribute) group by product_id, attribute
        ), compared as (
            select present.*, old_filled, {lost} as old_conflicts from present left join past using (product_id, attribute)
        ), changed as (
            select product_id, attribute, 'fill' as kind, filled as given from compared
                where filled is not null and filled is distinct from old_filled
            union all select product_id, attribute, 'correct', conflicts from compared
                where conflicts is not null and conflicts is distinct from old_conflicts
            union all select product_id, attribute, 'withdraw', []::varchar[] from compared
                where present and filled is null and old_filled is not null
        )
        select product_id, list([attribute, kind, to_json(given)::varchar]) from changed
        group by product_id order by product_id
    """
