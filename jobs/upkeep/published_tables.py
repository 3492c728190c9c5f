"""List the published tables, read them as of a past day, and roll back to an earlier run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import JobError
from jobs.lake import duckdb_sql, history, publication, storage
from jobs.lake.layout import PRODUCTS, Lake, is_run, rewrite
from jobs.nightly import publish
from jobs.settings import Settings
from schemas.documents import HistoryIndex, RunManifest

if TYPE_CHECKING:
    import duckdb

log = logging.getLogger(__name__)


def reader_lines(lake: Lake) -> dict[str, str]:
    """Return, for each engine, a line of code that reads the live tables without this project."""
    if not storage.on_disk(lake.root):
        files = f"fsspec.open({str(lake.current)!r}).open().read().decode().splitlines()"
        return {
            "DuckDB": f"(duckdb.register_filesystem(fsspec.filesystem('s3')), duckdb.read_parquet({files}, union_by_name=True))[1]",
            "pandas": f"pandas.concat(map(pandas.read_parquet, {files}))",
            "Polars": f"polars.concat(map(polars.read_parquet, {files}), how='diagonal')",
            "Spark": f"spark.read.option('mergeSchema', True).parquet(*[file.replace('s3://', 's3a://') for file in {files}])",
        }
    files = f"open({str(lake.current)!r}).read().splitlines()"
    return {
        "DuckDB": f"{duckdb_sql.live_files(lake)} SELECT * FROM read_parquet(getvariable('files'), union_by_name = true);",
        "pandas": f"pandas.concat(map(pandas.read_parquet, {files}))",
        "Polars": f"polars.concat(map(polars.read_parquet, {files}), how='diagonal')",
        "Spark": f"spark.read.option('mergeSchema', True).parquet(*{files})",
    }


def runs(lake: Lake) -> list[RunManifest]:
    """Return the manifests of all runs that wrote tables, newest last."""
    names = (path.name for path in storage.children(lake.run("-").parent))
    manifests = (_read_manifest(lake, name) for name in names if is_run(name))
    return sorted((m for m in manifests if m is not None and m.files), key=lambda m: m.created_at)


def _read_manifest(lake: Lake, run_id: str) -> RunManifest | None:
    """Return the manifest of a run; None if it is missing or broken. Log a broken one."""
    try:
        return lake.read_manifest(run_id)
    except JobError as error:
        log.warning("%s", error)
        return None


def show(settings: Settings) -> None:
    """Print the live tables, the runs available for a rollback, the days of history, and lines that read the tables."""
    lake = Lake(settings.root)
    current = lake.read_history_index().live
    manifest = publication.manifest_of(lake, current) if current else None
    if manifest is None:
        raise JobError(f"{lake.root}: nothing is published yet; run `python -m jobs night --ds DAY`")
    print(f"live: run {current}, catalog of {manifest.ds}, model {manifest.model_version}")
    print(f"      {manifest.products:,} products, {manifest.rows:,} rows\n")
    print(f"{'attribute':<24}{'rows':>12}{'bytes':>14}  files")
    by_table: dict[str, list[int]] = {}
    for file in manifest.files:
        sums = by_table.setdefault(file.table, [0, 0, 0])
        for i, n in enumerate((file.rows, file.bytes, 1)):
            sums[i] += n
    for name, (rows, size, files) in by_table.items():
        if name != PRODUCTS:
            print(f"{name:<24}{rows:>12,}{size:>14,}  {files}")
    print("\nruns (roll back with `python -m jobs tables rollback --run RUN`):")
    for run in runs(lake)[-20:]:
        mark = "* live" if run.run_id == current else ""
        print(
            f"  {run.run_id}  {run.created_at:%Y-%m-%d %H:%M}  {run.products:>12,} products  {run.model_version}  {mark}"
        )
    days = sorted(lake.read_history_index().days)
    print(
        f"\nhistory: {len(days)} days, {days[0]} to {days[-1]} (read one with `python -m jobs tables --as-of DAY`)"
        if days
        else ""
    )
    print("\nread the live tables with")
    for engine, line in reader_lines(lake).items():
        print(f"  {engine}:\n    {line}")


def as_of(connection: duckdb.DuckDBPyConnection, settings: Settings, ds: str) -> duckdb.DuckDBPyRelation:
    """Return the attribute table as of the end of the day `ds`, as a lazy DuckDB relation.

    Raises:
        JobError: history begins later.
    """
    lake = Lake(settings.root)
    index = lake.read_history_index()
    files = history.files_until(lake, index, "attributes", ds)
    if not files:
        first = min(index.days, default=None)
        raise JobError(
            f"no history exists up to {ds}: " + (f"it begins on {first}" if first else "nothing is published")
        )
    source = duckdb_sql.scan(connection, files, history.SCHEMAS["attributes"])
    return connection.sql(
        f"{history.as_of_query('attributes', source)} order by attribute, product_id, value, model_value"
    )


def write_as_of(settings: Settings, ds: str, out: Path | None) -> None:
    """Print a summary of the attribute table as of `ds`, or write the whole table to the Parquet file `out`."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        table = as_of(connection, settings, ds)
        if out is not None:
            with storage.whole_file(out) as temporary:
                table.write_parquet(str(temporary), compression="zstd")
            print(f"{out}: the attribute table as it was on {ds}")
            return
        summary = table.aggregate(
            "attribute, count(*) as rows, count(value) as with_value, sum(conflict::int) as conflicts, max(ds) as newest_change"
        )
        print(f"the attribute table as it was on {ds} (write it whole with --out FILE.parquet):")
        summary.order("attribute").show(max_rows=1000)


def rollback(settings: Settings, run_id: str) -> str:
    """Make an earlier run live again, in the tables and in the history, and return its id. Delete nothing.

    Later days are removed from the history, so that they can be run again. Rolling forward to a later run restores the
    history as it was when that run was last live.

    Raises:
        JobError: the run does not exist, has expired or was never live, or its files are not the ones that it wrote.
    """
    lake = Lake(settings.root)
    lake.check_not_expired(run_id)
    manifest = lake.read_manifest(run_id)
    if manifest is None or not manifest.files:
        raise JobError(f"{run_id} wrote no tables; runs with tables: {[m.run_id for m in runs(lake)] or 'none'}")
    publish.audit(lake, manifest.files, unique=False, digest=True, remedy=rewrite(run_id))
    publication.swap(lake, lambda index: _rolled_back(lake, index, manifest))
    log.info("rollback: %s is live; the next night starts from it. Its model was %s", run_id, manifest.model_version)
    return run_id


def _rolled_back(lake: Lake, index: HistoryIndex, manifest: RunManifest) -> HistoryIndex:
    """Return the history index in which the run of `manifest` is live."""
    if index.live == manifest.run_id:
        return index
    if history.own_run(lake, index, manifest.ds) == manifest.run_id:
        # Days up to then keep their present state, including later backfills.
        return HistoryIndex(live=manifest.run_id, days={d: day for d, day in index.days.items() if d <= manifest.ds})
    again = f"put it back from a copy of the lake, or run the day again: `python -m jobs night --ds {manifest.ds}`"
    left = storage.read_document(lake.left_index(manifest.run_id), HistoryIndex, again)
    if left is None:
        raise JobError(
            f"{lake.left_index(manifest.run_id)}: {manifest.run_id} was never live, so it has no history; run the day again: "
            f"`python -m jobs night --ds {manifest.ds}`"
        )
    return left
