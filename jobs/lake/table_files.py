"""Published tables as files: one, or for very many rows several by ranges of product_id, so that no task has all of a table.

The ranges do not overlap, and each file is sorted: who looks up one product finds by the files' statistics the one to read.
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

_ROWS_A_FILE = 5_000_000  # about: 50 to 256 MB
# Rows that say where a file ends: its size is then right to 2 % where a product has one row, to 8 % where it has 12.
_SAMPLED_A_FILE = 2_000
HASH_SLOTS: Final = 2**32  # values that a hash of a product can take
# Whole keys, of whatever table: rows of one product would else be in another order each time.
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
        count: what is to be counted in the rows as they are written, by name.
        counted: what that came to is added to it.
    """
    from pyspark.sql import functions as F

    bounds = _bounds(frame, name) if most > _ROWS_A_FILE else {}
    owners = [(each, part) for each in names for part in range(1 + len(bounds.get(each, ())))]
    first = F.create_map(*[F.lit(x) for each in names for x in (each, owners.index((each, 0)))])
    part = F.lit(0)
    for each, cuts in bounds.items():
        part = F.when(name == F.lit(each), _range(cuts)).otherwise(part)
    placed = frame.withColumn("target", (first[name] + part).cast("int"))
    targets = [folder / each / f"part-{part:05d}.parquet" for each, part in owners]
    order = [column for column in _ORDER if column in schema.names]

    def counting(batches: parquet.Batches, notes: dict[str, int]) -> parquet.Batches:
        for batch in batches:
            for key, n in count(batch).items() if count else ():
                notes[key] = notes.get(key, 0) + n
            yield batch

    written = parquet.write_files(
        placed, targets, schema, order=order, digest=True, row_group_bytes=parquet.LOOKED_UP,
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
    """Return the product ids that cut each table in `frame` into files of about `_ROWS_A_FILE` rows, by the table's name.

    Only the rows of sampled products are made for it, and of them only the ids reach the driver.
    """
    from pyspark.sql import functions as F

    share = min(1.0, _SAMPLED_A_FILE / _ROWS_A_FILE)
    # By a hash: what Spark draws depends on the order that rows arrive in. With a seed of its own: shards are cut by the
    # hash without one.
    place = F.pmod(F.xxhash64("product_id", F.lit("range")), F.lit(HASH_SLOTS))
    sampled = frame.where(place < F.lit(int(share * HASH_SLOTS))).select("product_id", name.alias("name")).toArrow()
    found = {}
    for each in sorted(sampled["name"].unique().to_pylist()):
        ids = sampled.filter(pc.field("name") == each)["product_id"].combine_chunks().sort()
        files = math.ceil(len(ids) / share / _ROWS_A_FILE)
        found[each] = sorted({ids[len(ids) * i // files].as_py() for i in range(1, files)})
    return {each: cuts for each, cuts in found.items() if cuts}


def _range(bounds: Sequence[str], first: int = 0) -> Column:
    """Return the number, from `first`, of the range that a product_id is in; a bound is the first id of its range."""
    from pyspark.sql import functions as F

    if not bounds:
        return F.lit(first)
    middle = len(bounds) // 2  # few comparisons a row, however many files
    lower, upper = _range(bounds[:middle], first), _range(bounds[middle + 1 :], first + middle + 1)
    return F.when(F.col("product_id") < F.lit(bounds[middle]), lower).otherwise(upper)
