"""Published tables as files: one, or for very many rows several by ranges of product_id, so that no task has all of a table.

The ranges do not overlap, and each file is sorted: who looks up one product finds by the files' statistics the one to read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.compute as pc

from jobs import parquet
from jobs.lake import Lake
from jobs.storage import Place
from schemas.documents import PublishedFile

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_ROWS_A_FILE = 5_000_000  # about: 50 to 256 MB
_SAMPLED_A_FILE = 2_000  # rows that say where a file ends: its size is then right to a few percent
_PLACES: Final = 2**32  # that a hash of a product can take
# Whole keys, of whatever table: rows of one product would else be in another order each time.
_ORDER: Final = ("product_id", "attribute", "value", "model_value")


def write(
    lake: Lake, frame: DataFrame, folder: Place, schema: pa.Schema, names: Sequence[str], name: Column, most: int
) -> list[PublishedFile]:
    """Write the rows of `frame` into a folder of `folder` for each name, and return the files, those of a name in order.

    The same rows give the same files, on whatever machine and however often it is started again.

    Args:
        lake: that the paths of the files are told relative to.
        frame: rows of one table, or of several of one schema; the rows of a product are together in one file of each.
        folder: of the tables.
        schema: theirs.
        names: of the tables; one without rows gets an empty file.
        name: which of them a row belongs to.
        most: rows that `frame` can have; where they fit one file, no other is thought of.
    """
    from pyspark.sql import functions as F

    bounds = _bounds(frame, name) if most > _ROWS_A_FILE else []
    parts = len(bounds) + 1
    position = F.create_map(*[F.lit(x) for pair in zip(names, range(len(names)), strict=True) for x in pair])
    placed = frame.withColumn("target", (position[name] * parts + _range(bounds)).cast("int"))
    targets = [folder / each / f"part-{part:05d}.parquet" for each in names for part in range(parts)]
    order = [column for column in _ORDER if column in schema.names]
    written = parquet.write_files(placed, targets, schema, order=order, digest=True, row_group_bytes=parquet.LOOKED_UP)
    return [
        PublishedFile(
            path=lake.relative(targets[w.target]),
            table=names[w.target // parts],
            rows=w.rows,
            bytes=w.bytes,
            sha256=w.sha256,
        )
        for w in written
    ]


def _bounds(frame: DataFrame, name: Column) -> list[str]:
    """Return the product ids that cut the largest of the tables in `frame` into files of about `_ROWS_A_FILE` rows.

    Only the rows of sampled products are made for it, and of them only the ids reach the driver.
    """
    from pyspark.sql import functions as F

    share = min(1.0, _SAMPLED_A_FILE / _ROWS_A_FILE)
    # By a hash: what Spark draws depends on the order that rows arrive in. With a seed of its own: shards are cut by the
    # hash without one.
    place = F.pmod(F.xxhash64("product_id", F.lit("range")), F.lit(_PLACES))
    sampled = frame.where(place < F.lit(int(share * _PLACES))).select("product_id", name.alias("name")).toArrow()
    largest = pc.max(sampled.group_by("name").aggregate([([], "count_all")])["count_all"]).as_py() or 0
    files = math.ceil(largest / share / _ROWS_A_FILE)
    ids = sampled["product_id"].combine_chunks().sort()
    return sorted({ids[len(ids) * i // files].as_py() for i in range(1, files)})


def _range(bounds: Sequence[str], first: int = 0) -> Column:
    """Return the number, from `first`, of the range that a product_id is in; a bound is the first id of its range."""
    from pyspark.sql import functions as F

    if not bounds:
        return F.lit(first)
    middle = len(bounds) // 2  # few comparisons a row, however many files
    lower, upper = _range(bounds[:middle], first), _range(bounds[middle + 1 :], first + middle + 1)
    return F.when(F.col("product_id") < F.lit(bounds[middle]), lower).otherwise(upper)
