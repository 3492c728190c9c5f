"""Export the values that the pipeline filled in, in the columns and words of the shop, as a file for its importer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from tqdm import tqdm

from cma_clip_core.versions import TAXONOMY
from jobs.errors import JobError
from jobs.exporting import formulas
from jobs.exporting.changes import Changes
from jobs.exporting.shop_words import ShopWords
from jobs.exporting.sparse_rows import SparseRows
from jobs.exporting.systems import SYSTEMS, TAGGED_CSV, System
from jobs.exporting.targets import Row
from jobs.exporting.write_back import AttributeCounts, NewRow, WriteBack
from jobs.importing.columns import Nulls
from jobs.importing.derived_columns import DerivedColumns
from jobs.importing.files.record_files import find_records
from jobs.importing.files.s3_exports import local_export
from jobs.importing.files.unpacking import Bounds
from jobs.importing.formats.observations import Observations
from jobs.importing.import_catalog import product_rows
from jobs.importing.mapper import Mapper
from jobs.lake import duckdb_sql, publication, storage
from jobs.lake.layout import Lake, check_day
from jobs.lake.storage import AnyPath
from jobs.settings import Settings
from schemas.mapping import Mapping, load_mapping
from schemas.taxonomy import SEVERAL, Taxonomy

log = logging.getLogger(__name__)

_ROWS: Final = "rows of one product"  # the only key of a merged row; its value holds the rows themselves


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: the number of rows, and what became of the changes of each attribute."""

    rows: int
    counts: dict[str, AttributeCounts]


def export_changes(
    settings: Settings,
    system: str,
    since: str,
    out: Path,
    *,
    mapping: str = "",
    catalog: AnyPath | None = None,
    corrections: bool = False,
) -> Exported:
    """Write the changes since a day to the file `out`, which appears whole or not at all.

    Args:
        settings: settings, including the root of the lake.
        system: a name in `SYSTEMS`, or csv.
        since: the first day, YYYY-MM-DD.
        out: the file to write.
        mapping: name of a shipped mapping or path of a YAML file; default: the shipped one of the system.
        catalog: folder of the shop's export; csv does not need it.
        corrections: also write accepted values that conflict with the shop's own.

    Raises:
        JobError: nothing is published since that day, or the export is missing or lacks columns that the importer needs.
        ContractError: the mapping is wrong.
    """
    import duckdb

    if system not in (*SYSTEMS, TAGGED_CSV):
        raise JobError(f"--as {system!r} is not known; give one of {', '.join((*SYSTEMS, TAGGED_CSV))}")
    if system != TAGGED_CSV and catalog is None:
        raise JobError(
            f"--as {system} needs --catalog FOLDER, the newest export of the shop: an importer may erase cells that the file "
            "leaves empty, so the shop's own values are repeated"
        )
    if out.is_dir():
        raise JobError(f"--out {out} is a folder; give the file to write")
    if catalog is not None and storage.on_disk(catalog) and out.resolve().is_relative_to(Path(catalog).resolve()):
        raise JobError(
            f"--out {out} is in the export's own folder, where the next import may read it; give another folder"
        )
    lake = Lake(settings.root)
    with tempfile.TemporaryDirectory(prefix="export-") as scratch, duckdb.connect() as connection:
        folder = Path(scratch)
        duckdb_sql.register_storage(connection, lake.root)
        connection.execute(f"set temp_directory = {duckdb_sql.quoted(folder / 'duckdb')}")
        changes = Changes(folder / "changes.sqlite")
        rows = SparseRows(folder / "rows.jsonl")
        try:
            changes.fill(connection, lake, check_day(since, "--since"), corrections=corrections)
            taxonomy = _live_taxonomy(lake)
            if catalog is None or system == TAGGED_CSV:
                counts = _collect_table(changes, rows, settings.progress)
                with storage.whole_file(out) as temporary:
                    rows.write_csv(temporary, ",", ["product_id", *taxonomy.names])
            else:
                columns = load_mapping(mapping or system)
                only_records = columns.model_copy(update={"pictures": ()})
                with local_export(catalog, only_records, settings.progress) as copy:
                    shop = ShopExport(settings, SYSTEMS[system], columns, copy, taxonomy)
                    writer = shop.collect(changes, rows)
                counts = writer.counts
                with storage.whole_file(out) as temporary:
                    rows.write_csv(temporary, shop.delimiter, shop.words.columns, shop.system.fault, writer.drop)
        finally:
            changes.close()
            rows.close()
    return Exported(rows.count, counts)


def _live_taxonomy(lake: Lake) -> Taxonomy:
    """Return the taxonomy of the model that tagged the live tables."""
    live = lake.read_history_index().live
    if live is None:
        raise JobError(f"{lake.root}: nothing is published yet; run `python -m jobs night --ds DAY`")
    manifest = publication.manifest_of(lake, live)
    path = lake.relative(lake.models / manifest.model_version / TAXONOMY)
    return lake.read_taxonomy(path, manifest.taxonomy_fingerprint)


def _collect_table(changes: Changes, rows: SparseRows, progress: bool) -> dict[str, AttributeCounts]:
    """Add a row for each product with a column for each attribute, in the taxonomy's words."""
    counts: dict[str, AttributeCounts] = {}
    rows.columns["product_id"] = None
    found = tqdm(
        changes.remaining(), total=changes.products, desc="export", unit="product", disable=not progress, delay=1
    )
    for product, given in found:
        cells = {"product_id": formulas.quoted(product)}
        for change in given:
            count = counts.setdefault(change.attribute, AttributeCounts())
            count.changes += 1
            if change.kind == "withdraw":
                count.left_out["the pipeline no longer fills it"] += 1
            elif len(change.values) > 1 and any(SEVERAL in value for value in change.values):
                count.left_out[f"a value holds the separator {SEVERAL}"] += 1
            else:
                cells[change.attribute] = formulas.quoted(SEVERAL.join(change.values))
                count.exported += 1
                count.columns[change.attribute] += 1
        if len(cells) > 1:
            rows.add(cells, (name for name in cells))
    return counts


class ShopExport:
    """A shop's export, read twice: once for its words, once for the rows that get new values."""

    def __init__(self, settings: Settings, system: System, mapping: Mapping, folder: Path, taxonomy: Taxonomy) -> None:
        self._settings, self.system, self._mapping, self._folder = settings, system, mapping, folder
        self._files, _ = find_records(folder, mapping)
        self._bounds = Bounds(int(settings.max_unpacked_gb * 1e9), settings.max_unpacked_ratio)
        quiet = Observations()
        self._mapper = Mapper(mapping, None, quiet)
        derived = DerivedColumns(mapping, Nulls(mapping.null_values), quiet)
        self.words = ShopWords(mapping, taxonomy, derived, system.names_beside, tuple(system.beside))
        self._taxonomy = taxonomy
        fixed = system.fixed_delimiter or not mapping.delimiter
        self.delimiter = system.delimiter if fixed else mapping.delimiter

    def collect(self, changes: Changes, target: SparseRows) -> WriteBack:
        """Add the rows that get new values to `target`, and return their writer, with its counts.

        Raises:
            JobError: the export is damaged, or lacks columns that the importer needs.
        """
        for rows in self._products():
            self.words.read(rows, self._record(rows)["attributes"])
        keys = self._key_columns()
        writer = WriteBack(self._mapping, self._taxonomy, self.system, self.words, self._mapper)
        target.columns.update(dict.fromkeys(keys))
        for rows in self._products():
            product = self._record(rows)["product_id"]
            given = changes.take(str(product)) if product is not None else ()
            for new in writer.write(rows, given) if given else ():
                self._add(new, keys, target)
        for _, given in changes.remaining():
            writer.leave_out(given, "the product is not in the export")
        return writer

    def _add(self, new: NewRow, keys: tuple[str, ...], target: SparseRows) -> None:
        """Add a row: its new cells, and its own text in every column that another row may need."""
        merged, changed = self.system.merged, new.cells
        cells = {column: _cell(value) for column, value in new.row.items() if column not in merged}
        cells |= {column: self._pairs(column).join(pairs) for column, pairs in new.pairs.items() if column in merged}
        needed = [*keys, *changed]
        if any(map(self.system.is_together, changed)):
            needed += filter(self.system.is_together, chain(self.words.columns, new.row))
        cells |= {column: formulas.quoted(text) for column, text in cells.items() if self.system.unquotes(column)}
        target.add(cells, needed, new.exported)

    def _pairs(self, column: str) -> str:
        """Return the separator of the pairs of a column."""
        for derivation in self._mapping.derive.values():
            for call in derivation.steps:
                if call.name == "key_value" and column in derivation.sources:
                    return str(call.argument[0])
        return ","

    def _products(self) -> Iterator[list[Row]]:
        """Yield the rows of each product, as the mapping filters and groups them."""
        rows = product_rows(
            self._files, self._folder, self._mapping, self._bounds, self._mapper, Observations(), self._settings.progress,
            merge=lambda rows: {_ROWS: rows},
        )  # fmt: skip
        for row in rows:
            if isinstance(row, dict):
                held = row.get(_ROWS)
                yield held if isinstance(held, list) and len(row) == 1 else [row]

    def _record(self, rows: list[Row]) -> Row:
        return self._mapper.record(self._mapper.merge(rows) if self._mapping.group_by else rows[0])

    def _key_columns(self) -> tuple[str, ...]:
        """Return the shop's columns that the importer matches rows by. Raises JobError if it lacks them."""
        found = [next((name for name in group if name in self.words.columns), None) for group in self.system.keys]
        lacking = [" or ".join(group) for group, name in zip(self.system.keys, found, strict=True) if name is None]
        if lacking and (self.system.needs_every_key or len(lacking) == len(found)):
            raise JobError(
                f"{self._folder}: the export lacks {' and '.join(lacking)}, by which the importer of {self.system.name} "
                f"finds a product; export the shop again with all columns, or use `--as {TAGGED_CSV}`"
            )
        return tuple(name for name in found if name is not None)


def _cell(value: object) -> str:
    return "" if value is None or isinstance(value, list | dict) else str(value)
