"""Write the changes of a product into the shop's row, and keep only those that our own import reads as meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.exporting.changes import Change
from jobs.exporting.formulas import is_formula
from jobs.exporting.shop_words import ShopWords, texts_of
from jobs.exporting.systems import System
from jobs.exporting.targets import Cells, Label, Refusal, Row, Target, targets_of
from jobs.importing.columns import Json
from jobs.importing.mapper import Mapper
from schemas.characters import fold
from schemas.derivations import WILDCARD
from schemas.mapping import Mapping
from schemas.taxonomy import Attribute, Taxonomy


@dataclass(slots=True)
class AttributeCounts:
    """Counts of the changes of one attribute: exported by column, left out by reason."""

    changes: int = 0
    exported: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class NewRow:
    """A row of the shop with new cells; `pairs` holds only the pairs that were added to a column of pairs."""

    row: Row
    cells: dict[str, str] = field(default_factory=dict)
    pairs: dict[str, list[str]] = field(default_factory=dict)
    exported: list[tuple[str, str]] = field(default_factory=list)  # attribute, column


class WriteBack:
    """Writer of changes into the rows of products, with counts by attribute."""

    def __init__(self, mapping: Mapping, taxonomy: Taxonomy, system: System, words: ShopWords, mapper: Mapper) -> None:
        self._mapping, self._taxonomy, self._system = mapping, taxonomy, system
        self._words, self._mapper = words, mapper
        self._targets: dict[str, tuple[list[tuple[str, Target]], str]] = {}
        roles = (mapping.product_id, mapping.group_by, *mapping.where, *mapping.where_not)
        self._roles = frozenset(mapping.source_columns(*roles))
        self.counts: dict[str, AttributeCounts] = {}

    def count(self, change: Change, reason: str = "", column: str = "") -> None:
        """Count a change as exported to `column`, or as left out for `reason`."""
        counts = self.counts.setdefault(change.attribute, AttributeCounts())
        counts.changes += 1
        if reason:
            counts.left_out[reason] += 1
        else:
            counts.exported += 1
            counts.columns[column] += 1

    def drop(self, exported: list[tuple[str, str]], reason: str) -> None:
        """Count attributes that were counted as exported, each with its column, as left out instead."""
        for attribute, column in exported:
            counts = self.counts[attribute]
            counts.exported -= 1
            counts.columns[column] -= 1
            counts.left_out[reason] += 1

    def leave_out(self, changes: Iterable[Change], reason: str) -> None:
        """Count all `changes` as left out."""
        for change in changes:
            self.count(change, reason)

    def write(self, rows: list[Row], changes: tuple[Change, ...]) -> list[NewRow]:
        """Return the rows of a product that get new cells.

        Args:
            rows: all rows of the product.
            changes: its changes; each is counted.
        """
        positions = [n for n, row in enumerate(rows) if self._system.is_product(row)]
        positions = positions if self._system.every_row else positions[:1]
        if not positions:
            self.leave_out(changes, "the export has no row of the product itself")
            return []
        new = {n: NewRow(dict(rows[n])) for n in positions}
        for change in changes:
            try:
                column = self._write_change(rows, new, change)
            except Refusal as refusal:
                self.count(change, str(refusal))
            else:
                self.count(change, column=column)
                new[positions[0]].exported.append((change.attribute, column))
        return [each for each in new.values() if each.cells]

    def _write_change(self, rows: list[Row], new: dict[int, NewRow], change: Change) -> str:
        """Write a change into the rows `new` and return the column. Raises Refusal if it cannot be written."""
        if change.kind == "withdraw":
            raise Refusal("the pipeline no longer fills it; nothing is erased in the shop")
        if change.attribute not in self._taxonomy.names:
            raise Refusal("the live model's taxonomy does not have the attribute")
        attribute = self._taxonomy[change.attribute]
        current = [new[n].row if n in new else row for n, row in enumerate(rows)]
        before = self._record(current)
        expected = self._expected(attribute, change, before)
        label = Label(
            name=self._words.name(attribute.field),
            words=tuple(self._words.word(attribute.name, value) for value in change.values),
            replaces=change.kind == "correct" and not attribute.multi_valued,
            kept=self._own_words(before, attribute) if change.kind == "correct" and attribute.multi_valued else (),
            is_free=lambda text: not attribute.read(text)[0],
        )
        found, reason = self._find_targets(attribute)
        refusals: list[str] = []
        for column, target in found:
            try:
                cells = {n: self._checked(target.write(each.row, label)) for n, each in new.items()}
            except Refusal as refusal:
                refusals.append(str(refusal))
                continue
            changed = [row | cells[n].cells if n in cells else row for n, row in enumerate(current)]
            if not self._means(attribute, expected, before, self._record(changed)):
                refusals.append("our own import would not read it back")
                continue
            for n, each in new.items():
                each.row |= cells[n].cells
                each.cells |= cells[n].cells
                for pair_column, pair in cells[n].pairs.items():
                    each.pairs.setdefault(pair_column, []).append(pair)
            return column if WILDCARD in column else next(iter(cells[min(cells)].cells))
        raise Refusal(refusals[0] if refusals else reason)

    def _own_words(self, record: Row, attribute: Attribute) -> tuple[str, ...]:
        """Return the shop's own words of an attribute."""
        return tuple(texts_of(record["attributes"].get(self._words.name(attribute.field))))

    def _find_targets(self, attribute: Attribute) -> tuple[list[tuple[str, Target]], str]:
        if attribute.name not in self._targets:
            self._targets[attribute.name] = targets_of(attribute.field, self._mapping, self._system, self._words)
        return self._targets[attribute.name]

    def _expected(self, attribute: Attribute, change: Change, before: Row) -> frozenset[str]:
        """Return the values that the attribute should have. Raises Refusal if the shop's export has changed meanwhile."""
        known, unknown = self._values(before)
        given = frozenset(known.get(attribute.name, ()))
        if change.kind == "fill":
            if given or attribute.name in unknown:
                raise Refusal("the export has a value of the shop's own")
            return frozenset(change.values)
        if not given:
            raise Refusal("the export no longer has the value to correct")
        if given >= set(change.values):
            raise Refusal("the export is already correct")
        return given | set(change.values) if attribute.multi_valued else frozenset(change.values)

    def _means(self, attribute: Attribute, expected: frozenset[str], before: Row, after: Row) -> bool:
        """Return whether a record changed in nothing but the values of one attribute."""
        if any(after[name] != before[name] for name in before if name != "attributes"):
            return False
        old, new = before["attributes"], after["attributes"]
        different = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if any(fold(name) != fold(attribute.field) for name in different):
            return False
        (known_before, unknown_before), (known, unknown) = self._values(before), self._values(after)
        if frozenset(known.pop(attribute.name, ())) != expected:
            return False
        known_before.pop(attribute.name, None)
        return known == known_before and unknown == unknown_before

    def _values(self, record: Row) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return self._taxonomy.normalise({name: texts_of(value) for name, value in record["attributes"].items()})

    def _record(self, rows: list[Row]) -> dict[str, Json]:
        return self._mapper.record(self._mapper.merge(rows) if self._mapping.group_by else rows[0])

    def _checked(self, cells: Cells) -> Cells:
        """Return `cells` if all of them may be written. Raises Refusal otherwise."""
        for column, text in cells.cells.items():
            if why := self._system.reason(column):
                raise Refusal(f"{column!r} is never written: {why}")
            if column in self._roles:
                raise Refusal(f"{column!r} is never written: the mapping chooses or identifies rows by it")
            if is_formula(text) and not self._system.unquotes(column):
                raise Refusal(f"the new text in {column!r} would begin like a formula")
        return cells
