"""Check of an edited mapping and taxonomy on a sample of the export: what an edit changes, without an import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from jobs.drafting.analysis.label_promise import statement
from jobs.drafting.analysis.mapped_products import Product, map_products
from jobs.drafting.analysis.spellings import aliases_of
from jobs.drafting.draft import ROWS, Draft, draft
from jobs.importing.columns import has_column
from jobs.pages.display_text import plain
from schemas.characters import fold
from schemas.mapping import Mapping, load_mapping
from schemas.taxonomy import Attribute, Taxonomy, load_taxonomy

_SHOWN: Final = 8  # changed values, unlisted words and the like, of an attribute
_WORD: Final = 60  # characters of a word in a line


def check_draft(folder: Path, mapping_file: str, taxonomy_file: str, rows: int = ROWS) -> tuple[list[str], bool]:
    """Return the lines of a report on edited files, and whether they have a fault that an import would stop at.

    Args:
        folder: the shop's export.
        mapping_file: the edited mapping.
        taxonomy_file: the edited taxonomy.
        rows: most rows to look at.

    Raises:
        ContractError: a file is wrong; the message lists every fault.
        JobError: the export has no records.
    """
    mapping, taxonomy = load_mapping(mapping_file), load_taxonomy(taxonomy_file)
    before = draft(folder, rows)
    faults = list(_missing_columns(before, mapping))
    if faults:
        return faults, True
    products = map_products(before.sample.rows, mapping)
    sampled = "all" if before.sample.complete else "the first"
    lines = [
        f"{mapping_file}, {taxonomy_file}: checked with {sampled} {len(before.sample.rows):,} rows, {len(products):,} products "
        f"({len(before.products):,} by the draft)"
    ]
    drafted = _label_counts(before.taxonomy, before.products) if before.taxonomy else {}
    for name in taxonomy.names:
        lines += _attribute_lines(taxonomy[name], products, drafted.get(name))
    for name, counts in drafted.items():
        if name not in taxonomy.names:
            lines.append(f"- {name}: {counts.total():,} labels in the draft, no attribute in {taxonomy_file}")
    return lines, False


def _missing_columns(made: Draft, mapping: Mapping) -> Iterator[str]:
    """Yield a line for each column that the mapping names and no row has."""
    missing = [c for c in mapping.columns if not any(has_column(row, c) for row in made.sample.rows)]
    for column in missing:
        if not mapping.is_optional(column):
            names = ", ".join(repr(name[:_WORD]) for name in list(made.sample.start.columns)[:20])
            yield f"the mapping names the column {column!r}, which no row has; the columns are {names}"


def _label_counts(taxonomy: Taxonomy, products: Sequence[Product]) -> dict[str, Counter[str]]:
    """Return the products of each value, by attribute."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in taxonomy.names}
    for product in products:
        for name, values in taxonomy.normalise(product.labels)[0].items():
            counts[name].update(values)
    return counts


def _attribute_lines(attribute: Attribute, products: Sequence[Product], before: Counter[str] | None) -> Iterator[str]:
    now: Counter[str] = Counter()
    unlisted: Counter[str] = Counter()
    labelled = 0
    for product in products:
        words = next((w for field, w in product.labels.items() if fold(field) == fold(attribute.field)), None)
        if words is None:
            continue
        values, outside = attribute.read_all(words)
        now.update(values)
        unlisted.update(outside)
        labelled += bool(values)
    change = "" if before is None else f", {before.total():,} in the draft"
    facts = statement(labelled, len(now), attribute.target_precision)
    yield f"  {attribute.name}: {now.total():,} labels{'; new' if before is None else change}; {facts}"
    if not now:
        yield f"    no product has a value of it: check its field {plain(attribute.field, _WORD)!r}"
    else:
        yield from _value_lines(attribute, now, before or Counter())
    if unlisted:
        yield "    not listed: " + _joined(
            [f"{_word(word)} ({n:,}){_nearest(attribute, word)}" for word, n in unlisted.most_common(_SHOWN)],
            len(unlisted),
        )


def _value_lines(attribute: Attribute, now: Counter[str], before: Counter[str]) -> Iterator[str]:
    absent = [value for value in attribute.value_names if not now[value]]
    if absent:
        yield "    no product has: " + _joined([_word(value) for value in absent[:_SHOWN]], len(absent))
    known = aliases_of(attribute)
    changes = {value: (now[value], before[value]) for value in now if before and now[value] != before[value]}
    if changes:
        ordered = sorted(changes.items(), key=lambda item: -abs(item[1][0] - item[1][1]))
        yield "    changed: " + _joined([f"{_word(v)} {b:,} -> {n:,}" for v, (n, b) in ordered[:_SHOWN]], len(ordered))
    gone = [value for value in before if value not in now and known.get(fold(value)) is None]
    if gone:
        yield "    listed in the draft only: " + _joined(
            [f"{_word(v)} ({before[v]:,})" for v in gone[:_SHOWN]], len(gone)
        )


def _word(word: str) -> str:
    return plain(word, _WORD)


def _nearest(attribute: Attribute, word: str) -> str:
    nearest = attribute.nearest(word)
    return f", like {_word(nearest)}" if nearest else ""


def _joined(items: Sequence[str], number: int) -> str:
    return ", ".join(items) + (f", and {number - len(items):,} more" if number > len(items) else "")
