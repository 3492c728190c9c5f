"""Files of published tables: one file per table, or several by ranges of product_id if the table is very large.

Splitting keeps any single task from holding a whole table. The ranges do not overlap and each file is sorted, so a
reader that looks up one product finds its file by the files' statistics.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from jobs.lake import parquet
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from schemas.documents import PublishedFile

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_ROWS_PER_FILE = 5_000_000  # approximate; 50 to 256 MB
# Sampled rows per file, from which the ranges are computed. The size of a file is then within 2 % of the target if a
# product has one row, and within 8 % if it has 12.
_SAMPLED_PER_FILE = 2_000
HASH_SLOTS: Final = 2**32  # number of values that a hash of a product is reduced to
# The full keys of every table. Otherwise the order of rows within a product would differ from run to run.
_ORDER: Final = ("product_id", "attribute", "value", "model_value")


def write(
    lake: Lake,
    frame: DataFrame,
    folder: AnyPath,
    schema: pa.Schema,
    names: Sequence[str],
    name: Column,
    most: int,
    *,
    count: Callable[[pa.RecordBatch], Mapping[str, int]] | None = None,
    counted: Counter[str] | None = None,
) -> list[PublishedFile]:
    """Write the rows of `frame` into one subfolder of `folder` per table, and return the files in order.

    The same rows give the same files, on every machine and after every restart.

    Args:
        lake: the lake that the paths of the files are relative to.
        frame: rows of one table, or of several tables with one schema. Each table has a product's rows in one file.
        folder: the folder of the tables.
        schema: the schema of the tables.
        names: the names of the tables; a table without rows gets an empty file.
        name: a column expression for the table that a row belongs to.
        most: an upper bound on the rows of `frame`; if they fit one file, no ranges are computed.
        count: a function that returns named counts of a batch as it is written.
        counted: the totals of `count` are added to it.
    """
    from pyspark.sql import functions as F

    bounds = _bounds(frame, name) if most > _ROWS_PER_FILE else {}
    owners = [(each, part) for each in names for part in range(1 + len(bounds.get(each, ())))]
    first = F.create_map(*[F.lit(x) for each in names for x in (each, owners.index((each, 0)))])
    part = F.lit(0)
    for each, cuts in bounds.items():
        part = F.when(name == F.lit(each), _range(cuts)).otherwise(part)
    assigned = frame.withColumn("target", (first[name] + part).cast("int"))
    targets = [folder / each / f"part-{part:05d}.parquet" for each, part in owners]
    order = [column for column in _ORDER if column in schema.names]

    def counting(batches: parquet.Batches, notes: dict[str, int]) -> parquet.Batches:
        for batch in batches:
            for key, n in count(batch).items() if count else ():
                notes[key] = notes.get(key, 0) + n
            yield batch

    written = parquet.write_files(
        assigned, targets, schema, order=order, digest=True, row_group_bytes=parquet.LOOKED_UP,
        transform=counting if count else None,
    )  # fmt: skip
    if counted is not None:
        for file in written:
            counted.update(file.notes)
    return [
        PublishedFile(
            path=lake.relative(targets[w.target]),
            table=owners[w.target][0],
            rows=w.rows,
            bytes=w.bytes,
            sha256=w.sha256,
        )
        for w in written
    ]


def _bounds(frame: DataFrame, name: Column) -> dict[str, list[str]]:
    """Return, by table name, the product ids that split each table in `frame` into files of about `_ROWS_PER_FILE` rows.

    Only the rows of sampled products are computed, and only their ids reach the driver.
    """
    from pyspark.sql import functions as F

    share = min(1.0, _SAMPLED_PER_FILE / _ROWS_PER_FILE)
    # A hash, because Spark's own samples depend on the order of the rows. It has its own seed, because shards are cut
    # by the hash without a seed.
    hash_position = F.pmod(F.xxhash64("product_id", F.lit("range")), F.lit(HASH_SLOTS))
    in_sample = hash_position < F.lit(int(share * HASH_SLOTS))
    sampled = frame.where(in_sample).select("product_id", name.alias("name")).toArrow()
    bounds = {}
    for each in sorted(sampled["name"].unique().to_pylist()):
        ids = sampled.filter(pc.field("name") == each)["product_id"].combine_chunks().sort()
        files = math.ceil(len(ids) / share / _ROWS_PER_FILE)
        bounds[each] = sorted({ids[len(ids) * i // files].as_py() for i in range(1, files)})
    return {each: cuts for each, cuts in bounds.items() if cuts}


def _range(bounds: Sequence[str], first: int = 0) -> Column:
    """Return the number of the range that contains a product_id, counted from `first`.

    A bound is the first id of its range.
    """
    from pyspark.sql import functions as F

    if not bounds:
        return F.lit(first)
    middle = len(bounds) // 2  # binary search: few comparisons per row, even with many files
    lower, upper = _range(bounds[:middle], first), _range(bounds[middle + 1 :], first + middle + 1)
    return F.when(F.col("product_id") < F.lit(bounds[middle]), lower).otherwise(upper)
