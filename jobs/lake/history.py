"""The history of the tables: each day's changes, and the tables as they were on any past day.

The folder of a day holds the changes of that day: new or replaced rows (``upsert``) and removed keys (``remove``). The
table of a day has, for each key, the newest change up to that day. When a past day is run again, two days are
rewritten: its own changes and those of the next day in the history. Every later day then stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from cma_clip_core.content.paths import parquet_files
from jobs.errors import JobError
from jobs.lake import parquet, verified_files
from jobs.lake.layout import Lake, rewrite
from jobs.lake.storage import AnyPath
from schemas import tables
from schemas.documents import HistoryIndex

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_AT_ONCE: Final = 16  # days: requests that mostly wait
KEYS: Final = {"attributes": ("product_id", "attribute"), "products": ("product_id",)}
SCHEMAS: Final = {"attributes": tables.ATTRIBUTE_HISTORY, "products": tables.PRODUCT_HISTORY}


def as_of_query(table: str, source: str) -> str:
    """Return the SQL, valid for Spark and DuckDB, of `table` as it was after the changes in `source`."""
    columns = [name for name in SCHEMAS[table].names if name not in ("change", "change_ds")]
    return (
        f"select {', '.join(columns)} from (select *, max(change_ds) over (partition by {', '.join(KEYS[table])}) as newest "
        f"from {source}) as changes where change_ds = newest and change = 'upsert'"
    )


def files_until(lake: Lake, index: HistoryIndex, table: str, ds: str) -> list[AnyPath]:
    """Return the verified files of the changes to `table` on all days up to `ds`.

    Raises:
        JobError: some are missing or damaged.
    """
    days = [day for day in sorted(index.days) if day <= ds]
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # on S3 each day is a few requests
        return [file for files in pool.map(lambda day: day_files(lake, index, table, day), days) for file in files]


def next_day(index: HistoryIndex, ds: str) -> str | None:
    """Return the first day after `ds` in the history, or None."""
    return min((day for day in index.days if day > ds), default=None)


def run_of(index: HistoryIndex, ds: str) -> str | None:
    """Return the run that wrote the current changes of `ds`, even if it is a run of another day; or None."""
    day = index.days.get(ds)
    return day.run_id if day else None


def own_run(lake: Lake, index: HistoryIndex, ds: str) -> str | None:
    """Return the run of `ds` that produced the tables of that day, or None.

    A backfill of an earlier day rewrites the changes of the next day, but not the resulting tables. Such runs are
    skipped.
    """
    run_id = run_of(index, ds)
    while run_id is not None and not run_id.startswith(ds):
        manifest = lake.read_record(run_id)
        run_id = manifest.history_base.get(ds) if manifest else None
    return run_id


def as_of(session: SparkSession, lake: Lake, index: HistoryIndex, table: str, ds: str) -> DataFrame:
    """Return `table` ("attributes" or "products") as it was at the end of the day `ds`."""
    name = f"history_{table}_{ds.replace('-', '_')}"
    parquet.read(session, files_until(lake, index, table, ds), SCHEMAS[table]).createOrReplaceTempView(name)
    return session.sql(as_of_query(table, name))


def changes(table: str, before: DataFrame, after: DataFrame, ds: str) -> DataFrame:
    """Return the changes that turn `before` into `after`. Both hold all rows of the keys that may differ, and no other rows.

    A key whose rows are all gone gets a ``remove``.
    """
    from pyspark.sql import functions as F

    keys = list(KEYS[table])
    gone = before.select(*keys).distinct().join(after.select(*keys).distinct(), keys, "left_anti")
    upserts = after.withColumn("change", F.lit("upsert"))
    removals = gone.withColumn("change", F.lit("remove"))
    return upserts.unionByName(removals, allowMissingColumns=True).withColumn("change_ds", F.lit(ds))


def merged(table: str, newer: DataFrame, older: DataFrame) -> DataFrame:
    """Return the changes of a day after its second run: the newer ones, and the older ones of all other keys."""
    keys = list(KEYS[table])
    return newer.unionByName(older.join(newer.select(*keys).distinct(), keys, "left_anti"))


def day_files(lake: Lake, index: HistoryIndex, table: str, ds: str) -> Sequence[AnyPath]:
    """Return the verified files of the changes to `table` on the single day `ds`.

    Raises:
        JobError: some are missing or damaged.
    """
    day = index.days.get(ds)
    if day is None or not day.path:
        return []
    folder = lake.root / day.path / table
    files, written = parquet_files(folder), day.files.get(table, 1)
    remedy = f"if another run has just replaced them, start again; otherwise {rewrite(day.run_id)}"
    if len(files) != written:  # a day that changed anything has a file, even if it has no rows
        raise JobError(f"{folder}: {len(files)} files of the changes of {ds} exist, {written} were written; {remedy}")
    record = lake.read_record(day.run_id)
    paths = {lake.relative(file) for file in files}
    verified_files.check(
        lake, [file for file in (record.history_files if record else ()) if file.path in paths], remedy
    )
    return files
