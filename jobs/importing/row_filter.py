"""Choose the rows of an export that are read, by the values of their columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, TypeAlias

from jobs.importing.columns import listed
from jobs.importing.derived_columns import DerivedColumns
from jobs.importing.formats.observations import Observations, shown
from jobs.records.values import identity
from schemas.mapping import Mapping

Json: TypeAlias = Any
_VALUES: Final = 20  # different values of a column that are counted
_SHOWN: Final = 10  # of them, in a message


class RowFilter:
    """Filter of rows by the mapping's `where` and `where_not`, with counts by column."""

    def __init__(self, mapping: Mapping, derived: DerivedColumns, observations: Observations) -> None:
        self._derived, self._observations = derived, observations
        self._where = {column: folded(values) for column, values in mapping.where.items()}
        self._where_not = {column: folded(values) for column, values in mapping.where_not.items()}
        # Values of rows that were left out, by column; at most _VALUES different ones.
        self._values: dict[str, Counter[str]] = {column: Counter() for column in (*self._where, *self._where_not)}
        self._kept = 0
        self._left_out = 0

    def keeps(self, row: dict[str, Json]) -> bool:
        """Return whether the row is read. Count a row that is not."""
        for conditions, wanted, key in ((self._where, True, "where"), (self._where_not, False, "where_not")):
            for column, values in conditions.items():
                texts = condition_texts(self._derived.value(row, column))
                if bool(texts & values) is not wanted:
                    seen = self._values[column]
                    seen.update(text for text in texts if text in seen or len(seen) < _VALUES)
                    self._observations.note(f"rows left out by `{key}` on column {column!r}")
                    self._left_out += 1
                    return False
        self._kept += 1
        return True

    def left_out_everything(self) -> str:
        """Return the values of the columns if no row was read because of them; otherwise an empty text."""
        if self._kept or not self._left_out:
            return ""
        return "; ".join(
            f"{column!r} has {', '.join(shown(value) for value, _ in values.most_common(_SHOWN))}"
            for column, values in self._values.items()
            if values
        )


def condition_texts(value: Json) -> set[str]:
    """Return the texts of a value that `where` compares, in lower case; an empty text if nothing is given."""
    texts = {
        str(item).strip().casefold() if isinstance(item, bool) else str(identity(item)).strip().casefold()
        for item in listed(value)
        if item is not None
    }
    return texts or {""}


def folded(values: Iterable[str]) -> set[str]:
    """Return the values of a condition as `condition_texts` compares them."""
    return {value.strip().casefold() for value in values}
