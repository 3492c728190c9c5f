"""Choice between several records with one id.

The newest by `updated_at` wins if every record gives a time. Records that are equal byte for byte count as one. All others
are several rows of one product, and none of them wins silently: a shop's later row may hold only a second picture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import duckdb

from cma_clip_core.content.paths import parquet_files
from jobs.lake import duckdb_sql, storage
from jobs.lake.storage import AnyPath
from schemas.rules import LINE_ERROR, SEVERAL_ROWS, RuleTable

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

SUPERSEDED: Final = "newer_record_with_this_id"
_SEVERAL: Final = "several_rows_of_one_product"  # the reason, if the rule table has no rule on several rows


def has_duplicate_ids(parsed: AnyPath, spill: AnyPath) -> bool:
    """Return whether any id occurs twice in the files of `parsed`, rejected records included. Memory is bounded."""
    with duckdb.connect(config={"memory_limit": "512MB", "temp_directory": str(spill)}) as connection:
        duckdb_sql.register_storage(connection, parsed)
        files = [str(file) for file in parquet_files(parsed)]
        ids = connection.read_parquet(files).filter("product_id is not null")
        return bool(ids.aggregate("product_id, count(*) as n").filter("n > 1").limit(1).fetchall())


def resolve(judged: DataFrame, scratch: AnyPath, *, has_duplicates: bool) -> DataFrame:
    """Add the columns ``several_rows`` and ``superseded``.

    ``several_rows`` is set in the records of an id if several of them have no ``reasons`` and none wins.

    Args:
        judged: the parsed records with their ``reasons``; only records without a reason take part.
        scratch: a folder for the duplicate ids. Spark knows the size of a file before the join: if the ids are few, as on
            all days except the worst, it does not shuffle the texts.
        has_duplicates: whether any id occurs twice.
    """
    from pyspark.sql import functions as F

    if not has_duplicates:
        return judged.withColumn(SEVERAL_ROWS, F.lit(None).cast("string")).withColumn("superseded", F.lit(False))
    position = F.struct("source_file", "block", "position")
    candidates = judged.where(F.size("reasons") == 0).select(
        "product_id", "updated", "digest", position.alias("file_position")
    )
    # Two aggregations, by time and then over the times, so that an id's records are never a list in memory.
    times = candidates.groupBy("product_id", "updated").agg(
        F.count("*").alias("rows"),
        (F.min("digest") == F.max("digest")).alias("equal"),
        F.max("file_position").alias("last"),
    )
    ids = times.groupBy("product_id").agg(
        F.sum("rows").alias("rows"),
        F.count("*").alias("times"),
        F.count("updated").alias("dated"),
        F.max(F.struct("updated", "last", "equal")).alias("newest"),
    )
    wins = F.col("newest.equal") & ((F.col("times") == 1) | (F.col("dated") == F.col("times")))
    several = ids.where("rows > 1").select(
        "product_id",
        F.when(wins, F.col("newest.last")).alias("winner"),
        F.when(~wins, F.concat(F.col("rows").cast("string"), F.lit(" rows"))).alias("rows_of_id"),
    )
    several.write.mode("overwrite").parquet(storage.spark_uri(scratch))
    winners = judged.sparkSession.read.schema(several.schema).parquet(storage.spark_uri(scratch))
    is_candidate = F.size("reasons") == 0
    return (
        judged.join(winners, "product_id", "left")
        .withColumn(SEVERAL_ROWS, F.when(is_candidate, F.col("rows_of_id")))
        .withColumn("superseded", is_candidate & F.col("winner").isNotNull() & (position != F.col("winner")))
        .drop("winner", "rows_of_id")
    )


def mark(resolved: DataFrame, table: RuleTable) -> DataFrame:
    """Add ``kind`` to the records that `resolve` returned (null for valid ones), and complete their ``reasons``."""
    from pyspark.sql import functions as F

    names = [rule.name for rule in table.row_rules if rule.column == SEVERAL_ROWS] or [_SEVERAL]
    several = F.col(SEVERAL_ROWS).isNotNull()
    reasons = (
        F.when(several, F.array(*map(F.lit, names)))
        .when(F.col("superseded"), F.array(F.lit(SUPERSEDED)))
        .otherwise(F.col("reasons"))
    )
    kind = (
        F.when(F.col(LINE_ERROR).isNotNull(), "unparsable")
        .when(F.col("superseded"), "superseded")
        .when(F.size("reasons") > 0, "quarantined")
    )
    return resolved.withColumn("reasons", reasons).withColumn("kind", kind)
