"""Counts of a day's valid and rejected records, and a few examples of the rows that break each rule; no table is loaded whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import duckdb

from cma_clip_core.content.paths import parquet_files
from jobs.lake import duckdb_sql
from jobs.lake.layout import MISSING
from jobs.lake.storage import AnyPath
from jobs.validation.batch_rules import Outcome
from jobs.validation.duplicate_ids import SUPERSEDED
from schemas import tables
from schemas.rules import (
    LINE_ERROR,
    SEVERAL_ROWS,
    NullShare,
    PicturesFound,
    PicturesNamed,
    Readable,
    RowCount,
    Unique,
    clears,
)

SHOWN: Final = 3  # examples per rule
_BYTES: Final = 200  # bytes of a line in an example
_NAMES, _NAME = 20, 100  # names of labels in a count, and characters of a name


@dataclass(frozen=True, slots=True)
class Example:
    """A row that breaks a rule. Its texts are the shop's: escape them."""

    product_id: str | None
    note: str | None  # the note on the field that the rule is about, or on the line
    start: bytes | None  # the start of the raw line; None if the row is valid nevertheless
    source: str  # the raw file; '' if the row is valid


class DayTables:
    """A day's valid and quarantined records."""

    def __init__(self, valid: AnyPath, quarantine: AnyPath, spill: AnyPath) -> None:
        self._db = duckdb.connect(config={"memory_limit": "512MB", "temp_directory": str(spill)})
        duckdb_sql.register_storage(self._db, valid)
        for name, folder, table in (("valid", valid, tables.VALID), ("quarantine", quarantine, tables.QUARANTINE)):
            self._db.execute(f"create view {name} as from {duckdb_sql.scan(self._db, parquet_files(folder), table)}")

    def __enter__(self) -> DayTables:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._db.execute(query, list(parameters)).fetchall()

    def _counts(self, query: str) -> dict[str, int]:
        return dict(self._rows(f"select key, count(*) from ({query}) group by key order by 2 desc, 1"))

    def kinds(self) -> dict[str, int]:
        """Return the number of rejected lines by kind."""
        return self._counts("select kind as key from quarantine")

    def reasons(self) -> dict[str, int]:
        """Return the number of rejected lines by the rule that they break, the most frequent first."""
        return self._counts("select unnest(reasons) as key from quarantine where kind <> 'superseded'")

    def line_errors(self) -> dict[str, int]:
        """Return the number of lines that are not records, by cause."""
        return self._counts("select split_part(notes['line'], ':', 1) as key from quarantine where kind = 'unparsable'")

    def notes(self) -> dict[str, int]:
        """Return the number of notes on valid records, by the rule that they name."""
        notes = "select unnest(map_values(notes)) as note from valid where cardinality(notes) > 0"
        return self._counts(f"select split_part(note, ':', 1) as key from ({notes})")

    def unread_labels(self) -> dict[str, int]:
        """Return the number of valid records with a label of an unknown form, by the label's name: the most common names."""
        names = f"select left(unnest(map_keys(mistyped_labels)), {_NAME}) as key from valid"
        return dict(list(self._counts(names).items())[:_NAMES])

    def examples(self, outcome: Outcome) -> tuple[Example, ...]:
        """Return a few of the rows that break a rule; none for a rule on the whole batch."""
        rule = outcome.rule
        if not outcome.failed or isinstance(rule, RowCount | PicturesNamed):
            return ()
        start = f"array_slice(raw, 1, {_BYTES}) as start"
        rejected = f"select product_id, notes[$2] as note, {start}, source_file from quarantine where "
        valid = "select product_id, {} as note, null as start, '' as source_file from valid where "
        if isinstance(rule, PicturesFound):
            query, parameters = f"{valid.format('image_uri')} starts_with(image_uri, $1)", [f"{MISSING}/"]
        elif isinstance(rule, NullShare):
            if rule.column not in tables.VALID.names:
                return ()
            query = f"{valid.format('null')} {rule.column} is null and notes[$1] is null"
            parameters = [rule.column]
        elif isinstance(rule, Unique):
            query, parameters = f"{rejected} list_contains(reasons, $1)", [SUPERSEDED, rule.column]
        elif clears(rule) or isinstance(rule, Readable):
            noted = "starts_with(notes[$2], $1)"
            query = f"{valid.format('notes[$2]')} {noted} union all {rejected} {noted}"
            parameters = [f"{rule.name}: ", rule.column]
        elif rule.column == LINE_ERROR:
            # Each cause once, before a second line of any.
            cause = "row_number() over (partition by split_part(note, ':', 1) order by source_file, length(note), note)"
            query = f"select * from ({rejected} kind = $1) order by {cause}, note"
            parameters = ["unparsable", "line"]
        elif rule.column == SEVERAL_ROWS:
            query = """select product_id, count(*) || ' rows' as note, null as start, '' as source_file
                from quarantine where list_contains(reasons, $1) group by product_id"""
            parameters = [rule.name]
        else:
            query, parameters = f"{rejected} list_contains(reasons, $1)", [rule.name, rule.column]
        ordered = query if "order by" in query else f"select * from ({query}) order by product_id, source_file, start"
        return tuple(Example(*row) for row in self._rows(f"{ordered} limit {SHOWN}", *parameters))
