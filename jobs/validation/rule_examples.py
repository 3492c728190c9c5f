"""What a day's records became, counted and shown: a few rows for each rule that some break. No table is loaded whole."""

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

SHOWN: Final = 3  # examples of a rule
_BYTES: Final = 200  # of a line that leave a file
_NAMES, _NAME = 20, 100  # names of labels that are told, and characters of each


@dataclass(frozen=True, slots=True)
class Example:
    """A row that breaks a rule. Its texts are the shop's: escape them."""

    product_id: str | None
    note: str | None  # on the field that the rule is about, or on the line
    start: bytes | None  # of the raw line; None: the row is valid all the same
    source: str  # raw file; '' where the row is valid


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
        """Return how many rejected lines are of each kind."""
        return self._counts("select kind as key from quarantine")

    def reasons(self) -> dict[str, int]:
        """Return how many rejected lines broke each rule, the most frequent first."""
        return self._counts("select unnest(reasons) as key from quarantine where kind <> 'superseded'")

    def line_errors(self) -> dict[str, int]:
        """Return how many lines are no record, by why."""
        return self._counts("select split_part(notes['line'], ':', 1) as key from quarantine where kind = 'unparsable'")

    def notes(self) -> dict[str, int]:
        """Return how many valid records have a note, by the rule that it names."""
        notes = "select unnest(map_values(notes)) as note from valid where cardinality(notes) > 0"
        return self._counts(f"select split_part(note, ':', 1) as key from ({notes})")

    def unread_labels(self) -> dict[str, int]:
        """Return how many valid records have a label of a form that is not known, by the label's name: the commonest names."""
        names = f"select left(unnest(map_keys(mistyped_labels)), {_NAME}) as key from valid"
        return dict(list(self._counts(names).items())[:_NAMES])

    def examples(self, outcome: Outcome) -> tuple[Example, ...]:
        """Return a few of the rows that break a rule; none of a rule that is about the whole batch."""
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
            # One of each cause first.
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
