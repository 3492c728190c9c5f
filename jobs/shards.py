"""A shard of a plan: which products it holds, and whether its predictions are there."""

from __future__ import annotations

import logging

import pyarrow as pa

from cma_clip_core.places import open_parquet, parquet_files
from jobs.errors import JobError
from jobs.lake import Lake
from jobs.storage import Place
from schemas.documents import Plan, Shard
from schemas.tables import PREDICTIONS

log = logging.getLogger(__name__)

Wanted = dict[Place, dict[str, str]]  # folder of examples -> product id -> source hash


def finished(path: Place, plan: Plan, shard: Shard) -> bool:
    """Whether `path` holds the predictions of `shard`, whole: readable, of this run and model, with all rows and columns.

    A file of a version that did not keep unlisted labels is not finished: what the shop said would be lost.
    """
    try:
        with open_parquet(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("%s: broken, tagged again: %s", path, error)
        return False
    if lacking := [name for name in PREDICTIONS.names if name not in schema.names]:
        log.warning("%s: without %s, of an older version; tagged again", path, ", ".join(lacking))
        return False
    expected, found = metadata(plan, shard), schema.metadata or {}
    if rows != shard.rows or any(found.get(key.encode()) != value.encode() for key, value in expected.items()):
        log.warning("%s: not of this run, model and number of rows; tagged again", path)
        return False
    return True


def metadata(plan: Plan, shard: Shard) -> dict[str, str]:
    """Return what the file of a shard's predictions says of itself."""
    return {
        "run_id": plan.run_id,
        "shard": str(shard.id),
        "model_version": str(plan.model_version),
        "rows": str(shard.rows),
    }


def wanted_of(lake: Lake, plan: Plan, shard: Shard) -> Wanted:
    """Return the products of a shard by the folder their example is in. Raises JobError where the plan is not whole."""
    folder = lake.plan(plan.run_id) / "products" / f"shard={shard.id}"
    wanted: Wanted = {}
    rows = 0
    for path in parquet_files(folder):
        with open_parquet(path) as file:
            table = file.read(columns=["product_id", "source_hash", "example_path"])
        rows += table.num_rows
        for product, source_hash, example in zip(*(c.to_pylist() for c in table.columns), strict=True):
            source = lake.examples(plan.run_id) if example is None else lake.root / example
            wanted.setdefault(source, {})[product] = source_hash
    if rows != shard.rows or sum(map(len, wanted.values())) != rows:
        raise JobError(
            f"{folder}: {rows} rows of {sum(map(len, wanted.values()))} products where the plan says {shard.rows}; the "
            "plan was changed or half copied: plan the day again"
        )
    return wanted
