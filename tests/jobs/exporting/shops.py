"""A lake with published changes, and a shop that applies an exported file as its importer would."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cma_clip_core.versions import TAXONOMY
from jobs.exporting.export_changes import Exported, export_changes
from jobs.importing.import_catalog import import_catalog
from jobs.lake import storage
from jobs.lake.layout import Lake
from schemas.documents import HistoryDay, HistoryIndex, RunManifest
from schemas.loading import parse_yaml
from schemas.tables import ATTRIBUTE_HISTORY
from schemas.taxonomy import Taxonomy
from tests.conftest import DAY1, read_raw, settings_for

NOW = datetime(2026, 11, 20, tzinfo=UTC)
MODEL = "v1"
Row = dict[str, Any]


def model_row(product: str, attribute: str, value: str, **changes: Any) -> Row:
    """Return a row of the attribute table whose gap the model filled."""
    return {
        "product_id": product, "attribute": attribute, "value": value, "source": "model", "catalog_value": None,
        "model_value": value, "confidence": 0.97, "accepted": True, "conflict": False, "text_weight": 0.5,
        "image_weight": 0.5, "model_version": MODEL, "source_hash": "h", "ds": DAY1, "run_id": "r", "tagged_at": NOW,
        "change": "upsert",
    } | changes  # fmt: skip


def conflict_row(product: str, attribute: str, catalog: str, value: str) -> Row:
    """Return a row of the attribute table in which an accepted value of the model conflicts with the catalog's."""
    return model_row(
        product, attribute, catalog, source="catalog", catalog_value=catalog, model_value=value, conflict=True
    )


def publish(root: Path, taxonomy: str, days: dict[str, list[Row]]) -> Lake:
    """Return a lake whose history holds the rows of each day."""
    lake, index = Lake(root), dict[str, HistoryDay]()
    parsed = parse_yaml(taxonomy, Taxonomy, "taxonomy")
    storage.write_bytes(lake.models / MODEL / TAXONOMY, taxonomy.encode())
    run = ""
    for ds, rows in days.items():
        run = f"{ds}-aaaaaaaa"
        folder = lake.history_run(ds, run)
        path = folder / "attributes" / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([row | {"change_ds": ds} for row in rows], ATTRIBUTE_HISTORY), path)
        index[ds] = HistoryDay(run_id=run, path=lake.relative(folder), rows=len(rows))
        manifest = RunManifest(
            run_id=run, ds=ds, parent=None, model_version=MODEL, taxonomy_fingerprint=parsed.fingerprint, raw_version="v",
            files=(), rows=len(rows), products=1, history={}, history_files=(), history_base={}, created_at=NOW,
        )  # fmt: skip
        storage.write_document(lake.run(run) / "manifest.json", manifest)
    storage.write_document(lake.history_index, HistoryIndex(live=run, days=index))
    return lake


def write_csv(path: Path, columns: list[str], rows: list[dict[str, str]], delimiter: str = ",") -> Path:
    """Write a file of a shop's export."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def export(lake: Lake, system: str, catalog: Path, mapping: Path, **options: Any) -> tuple[Exported, Path]:
    """Export the changes since the first day and return the result and the file."""
    out = catalog.parent / f"{system}.out"
    result = export_changes(
        settings_for(lake.root), system, DAY1, out, mapping=str(mapping), catalog=catalog, **options
    )
    return result, out


def labels(lake: Lake, catalog: Path, mapping: Path) -> dict[str, Row]:
    """Import a shop's export and return the whole records by product id."""
    import_catalog(settings_for(lake.root), catalog, DAY1, str(mapping))
    return {str(record["product_id"]): record for record in read_raw(lake, DAY1)}


def apply(
    shop: Path, exported: Path, key: str, *, delimiter: str = ",", merged: str = "", first_only: bool = False
) -> None:
    """Change the shop's file as its importer would: each cell of the exported file replaces the cell of its product.

    The cells of the column `merged` are added to the shop's own.
    """
    rows, new = read_csv(shop, delimiter), {row[key]: row for row in read_csv(exported, delimiter)}
    columns, seen = list(dict.fromkeys([*rows[0], *(c for row in new.values() for c in row)])), set[str]()
    for row in rows:
        change = new.get(row[key])
        if change is None or (first_only and row[key] in seen):
            continue
        seen.add(row[key])
        for column, text in change.items():
            if column == merged:
                row[column] = ",".join(filter(None, [row[column], text]))
            else:
                row[column] = text
    assert seen == set(new), "the file has a product that the shop does not have"
    write_csv(shop, columns, rows, delimiter)
