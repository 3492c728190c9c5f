"""A shard of a plan: which products it holds, and whether its predictions are there."""

from __future__ import annotations

import logging
from collections import Counter

import pyarrow as pa

from cma_clip_core.places import open_parquet, parquet_files
from jobs import stored
from jobs.errors import JobError
from jobs.lake import Lake, replan
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
        read_modalities(path, plan, shard)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, pa.ArrowException) as error:
        log.warning("%s: broken, tagged again: %s", path, error)
        return False
    return True


def read_modalities(path: Place, plan: Plan, shard: Shard, *, whole: bool = True) -> Counter[str]:
    """Return the products of a shard's predictions by what the model saw of them. Each page is compared with its checksum.

    Args:
        path: the shard's file.
        plan: of the run.
        shard: which.
        whole: whether all columns of today's version must be there, since tables are to be made of them.

    Raises:
        OSError: a page is damaged, or the file cannot be read.
        ValueError: it is not Parquet, not of this run, model and number of rows, or its columns are not those of
            PREDICTIONS.
    """
    found = Counter[str]()
    with open_parquet(path) as file:
        said, expected = file.schema_arrow.metadata or {}, metadata(plan, shard)
        wrong = [key for key, value in expected.items() if said.get(key.encode()) != value.encode()]
        wrong += [name for name in file.schema_arrow.names if name not in PREDICTIONS.names]
        if wrong:
            raise ValueError(f"it is not of this run, model and number of rows: {', '.join(wrong)[:300]}")
        lacking = [name for name in PREDICTIONS.names if name not in file.schema_arrow.names]
        if whole and lacking:
            raise ValueError(f"it is without {', '.join(lacking)}, of an older version")
        for batch in file.iter_batches():
            found.update(batch.column("modality").to_pylist())
    if found.total() != shard.rows:
        raise ValueError(f"{found.total()} rows, where the plan says {shard.rows}")
    return found


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
    stored.check_plan(lake, plan, shard.id)
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
            f"{folder}: {rows} rows of {sum(map(len, wanted.values()))} products where the plan says {shard.rows}; it was "
            f"changed or half copied; {replan(plan.ds)}"
        )
    return wanted
