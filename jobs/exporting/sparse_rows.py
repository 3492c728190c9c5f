"""Rows with different columns, kept in a temporary file until all of their columns are known, then written as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias

Fault: TypeAlias = Callable[[str, str], str]
Drop: TypeAlias = Callable[[list[tuple[str, str]], str], None]
_COLUMNS_FIRST: Final = 10**9  # rank of a column that the shop's export does not have


class SparseRows:
    """Rows of an output file. Memory does not grow with their number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", encoding="utf-8")
        self.columns: dict[str, None] = {}
        self.count = 0

    def add(self, cells: dict[str, str], columns: Iterable[str], exported: Iterable[tuple[str, str]] = ()) -> None:
        """Add a row.

        Args:
            cells: all cells that the output may need, by column.
            columns: the columns that the output must have because of this row.
            exported: the attributes that the row brings, each with its column.
        """
        self.columns.update(dict.fromkeys(columns))
        self._file.write(json.dumps([cells, list(exported)]) + "\n")

    def write_csv(
        self, target: Path, delimiter: str, order: Iterable[str], fault: Fault | None = None, drop: Drop | None = None
    ) -> None:
        """Write the rows to `target`, with the needed columns in `order`; a column that is not in it comes last.

        Args:
            target: the file to write.
            delimiter: the delimiter of CSV.
            order: columns.
            fault: returns why a cell must not be written, from its column and text; an empty text if it may be.
            drop: receives the attributes of a row that is left out because of a cell, each with its column, and the reason.
        """
        self._file.close()
        rank = {column: position for position, column in enumerate(order)}
        columns = sorted(self.columns, key=lambda column: rank.get(column, _COLUMNS_FIRST))
        with target.open("w", encoding="utf-8", newline="") as out, self._path.open(encoding="utf-8") as rows:
            writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
            quoting = csv.writer(out, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
            writer.writerow(columns)
            for line in rows:
                cells, exported = json.loads(line)
                row = [cells.get(column, "") for column in columns]
                faults = (fault(column, text) for column, text in zip(columns, row, strict=True)) if fault else ()
                if (reason := next(filter(None, faults), "")) and drop:
                    drop([(attribute, column) for attribute, column in exported], reason)
                    continue
                # A lone carriage return ends a line for many readers, but the writer does not quote it.
                (quoting if any("\r" in text for text in row) else writer).writerow(row)
                self.count += 1

    def close(self) -> None:
        """Close the temporary file."""
        self._file.close()
