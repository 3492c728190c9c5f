"""The shards of a plan: the groups that one task tags, the products of each, and whether its predictions exist."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from cma_clip_core.content.paths import open_parquet, parquet_files
from jobs.errors import JobError
from jobs.lake import verified_files
from jobs.lake.layout import Lake, replan
from jobs.lake.storage import AnyPath
from schemas.documents import Plan, Shard
from schemas.tables import PREDICTIONS

log = logging.getLogger(__name__)

Wanted = dict[AnyPath, dict[str, str]]  # folder of examples -> product id -> source hash


def groups(shards: Sequence[Shard], most: int | None = None, rows: int = 1) -> list[str]:
    """Return the shards in groups of neighbours, even in rows, each written as `choose` reads it: ``7`` or ``0-2``.

    The same shards and arguments always give the same groups: a task that is cleared finds its own shards again.

    Args:
        shards: of a plan, in the order of their numbers.
        most: groups at most; None: as many as shards.
        rows: products that a group should have; smaller shards are put together.
    """
    total = max(1, sum(shard.rows for shard in shards))
    wanted = min(len(shards), math.ceil(total / rows), len(shards) if most is None else most)
    found: dict[int, list[int]] = {}
    before = 0
    for at, shard in enumerate(shards):
        # With as many groups as shards each is its own; otherwise it goes to the group that its middle row falls into.
        group = at if wanted == len(shards) else (2 * before + shard.rows) * wanted // (2 * total)
        found.setdefault(group, []).append(shard.id)
        before += shard.rows
    return [str(ids[0]) if len(ids) == 1 else f"{ids[0]}-{ids[-1]}" for ids in found.values()]


def choose(plan: Plan, asked: str) -> list[Shard]:
    """Return the shards of a plan that `asked` names: numbers and ranges, separated by commas, such as ``0-2,7``.

    Raises:
        JobError: it is written in another way, or names a shard that the plan does not have.
    """
    spans: list[tuple[int, int]] = []
    for part in asked.split(","):
        # fewer digits than a number that takes long to read
        named = re.fullmatch(r" *([0-9]{1,9})(?: *- *([0-9]{1,9}))? *", part)
        first, last = (int(named[1]), int(named[2] or named[1])) if named else (1, 0)
        if first > last:
            raise JobError(f"--shard {asked[:50]!r} names no shards; write 7, 0-2, or 0-2,7")
        spans.append((first, last))
    there = {shard.id for shard in plan.shards}
    for bound in (bound for span in spans for bound in span):
        if bound not in there:
            has = f"it has {len(there):,}, from {min(there)} to {max(there)}" if there else "it has none"
            raise JobError(f"{plan.run_id}: the plan has no shard {bound}; {has}")
    return [shard for shard in plan.shards if any(first <= shard.id <= last for first, last in spans)]


def finished(path: AnyPath, plan: Plan, shard: Shard) -> bool:
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


def read_modalities(path: AnyPath, plan: Plan, shard: Shard, *, whole: bool = True) -> Counter[str]:
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
    verified_files.check_plan(lake, plan, shard.id)
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
