"""Shards of a plan: the groups that one task tags, their products, and the check of their predictions."""

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
    """Return the shards in groups of neighbours with similar numbers of rows, as `choose` reads them (``7``, ``0-2``).

    The same shards and arguments always give the same groups, so that a cleared task gets its own shards again.

    Args:
        shards: the shards of a plan, in the order of their numbers.
        most: the maximum number of groups; None allows as many as shards.
        rows: the number of products that a group should have; smaller shards are combined.
    """
    total = max(1, sum(shard.rows for shard in shards))
    number = min(len(shards), math.ceil(total / rows), len(shards) if most is None else most)
    grouped: dict[int, list[int]] = {}
    before = 0
    for index, shard in enumerate(shards):
        # With as many groups as shards, each shard is a group. Otherwise its middle row decides its group.
        group = index if number == len(shards) else (2 * before + shard.rows) * number // (2 * total)
        grouped.setdefault(group, []).append(shard.id)
        before += shard.rows
    return [str(ids[0]) if len(ids) == 1 else f"{ids[0]}-{ids[-1]}" for ids in grouped.values()]


def choose(plan: Plan, selection: str) -> list[Shard]:
    """Return the shards of a plan that `selection` names: numbers and ranges, separated by commas, such as ``0-2,7``.

    Raises:
        JobError: the syntax is wrong, or the plan has no such shard.
    """
    spans: list[tuple[int, int]] = []
    for part in selection.split(","):
        match = re.fullmatch(r" *([0-9]{1,9})(?: *- *([0-9]{1,9}))? *", part)  # few digits: int() is slow for very many
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise JobError(f"--shard {selection[:50]!r} names no shards; write 7, 0-2, or 0-2,7")
        spans.append((first, last))
    existing = {shard.id for shard in plan.shards}
    for bound in (bound for span in spans for bound in span):
        if bound not in existing:
            has = f"it has {len(existing):,}, from {min(existing)} to {max(existing)}" if existing else "it has none"
            raise JobError(f"{plan.run_id}: the plan has no shard {bound}; {has}")
    return [shard for shard in plan.shards if any(first <= shard.id <= last for first, last in spans)]


def is_finished(path: AnyPath, plan: Plan, shard: Shard) -> bool:
    """Return whether the file at `path` holds the complete predictions of `shard`.

    It must be readable, be of this run and model, and have all rows and columns. A file of an older version without
    unlisted labels is not finished, because those values of the shop would be lost.
    """
    try:
        read_modalities(path, plan, shard)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, pa.ArrowException) as error:
        log.warning("%s: the file is broken, and is made again: %s", path, error)
        return False
    return True


def read_modalities(path: AnyPath, plan: Plan, shard: Shard, *, whole: bool = True) -> Counter[str]:
    """Return the number of products in a shard's predictions by modality. The checksum of each page is verified.

    Args:
        path: the path of the shard's file.
        plan: the plan of the run.
        shard: the shard.
        whole: require all columns of PREDICTIONS, for a file that tables are made from.

    Raises:
        OSError: a page is damaged, or the file cannot be read.
        ValueError: the file is not Parquet; its run, model or number of rows is another; or its columns are wrong.
    """
    modalities = Counter[str]()
    with open_parquet(path) as file:
        written, expected = file.schema_arrow.metadata or {}, metadata(plan, shard)
        wrong = [key for key, value in expected.items() if written.get(key.encode()) != value.encode()]
        wrong += [name for name in file.schema_arrow.names if name not in PREDICTIONS.names]
        if wrong:
            raise ValueError(f"it is not of this run, model and number of rows: {', '.join(wrong)[:300]}")
        lacking = [name for name in PREDICTIONS.names if name not in file.schema_arrow.names]
        if whole and lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}, as files of an older version do")
        for batch in file.iter_batches():
            modalities.update(batch.column("modality").to_pylist())
    if modalities.total() != shard.rows:
        raise ValueError(f"it has {modalities.total()} rows, but the plan has {shard.rows}")
    return modalities


def metadata(plan: Plan, shard: Shard) -> dict[str, str]:
    """Return the metadata in the file of a shard's predictions."""
    return {
        "run_id": plan.run_id,
        "shard": str(shard.id),
        "model_version": str(plan.model_version),
        "rows": str(shard.rows),
    }


def wanted_products(lake: Lake, plan: Plan, shard: Shard) -> Wanted:
    """Return the products of a shard by the folder of their examples. Raises JobError if the plan is damaged."""
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
            f"{folder}: it has {rows} rows of {sum(map(len, wanted.values()))} products, but the plan has {shard.rows}; it was "
            f"changed or copied incompletely; {replan(plan.ds)}"
        )
    return wanted
