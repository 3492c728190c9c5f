"""Parquet files of the lake: Spark shuffles and sorts the rows, Arrow writes them.

Files for other readers are written by Arrow inside Spark's tasks, one file per partition, whole or not at all. Spark's
own writer can neither keep our field comments nor omit dictionaries, and it puts column values into folder names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cma_clip_core.content.paths import open_parquet
from jobs.lake import storage
from jobs.lake.storage import AnyPath
from schemas.tables import spark_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Batches = Iterator[pa.RecordBatch]

# Columns whose values hardly repeat, so that a dictionary would only cost space and look-up time.
_NO_DICTIONARY: Final = frozenset(
    {"product_id", "confidence", "text_weight", "image_weight", "source_hash", "title", "description", "image", "raw"}
    | {"image_uri", "image_version", "content"}
)
_WRITTEN: Final = pa.schema(
    [
        ("target", pa.int32()),
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("notes", pa.map_(pa.string(), pa.int64())),
    ]
)


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written."""

    target: int
    rows: int
    bytes: int
    sha256: str  # hex; '' if it was not requested
    notes: dict[str, int]


_STREAMED: Final = 64 * 2**20  # bytes in memory of a row group, for tables that are read as a whole
# The same for tables in which single products are looked up: about 50,000 rows. A look-up decodes all ids of a row
# group.
LOOKED_UP: Final = 8 * 2**20


def write(frame: DataFrame, folder: AnyPath, table: pa.Schema) -> None:
    """Write `frame` with Spark's writer as the only content of `folder`, with the columns and types of `table`.

    For tables that only this project's steps read, and whose number of files does not matter.
    """
    from pyspark.sql import functions as F

    fields = spark_schema(table).fields
    frame.select(*[F.col(f.name).cast(f.dataType).alias(f.name) for f in fields]).write.mode("overwrite").parquet(
        storage.spark_uri(folder)
    )


def read(spark: SparkSession, paths: Sequence[AnyPath], table: pa.Schema) -> DataFrame:
    """Return the Parquet files or folders `paths` with the columns of `table`, or an empty frame if `paths` is empty."""
    schema = spark_schema(table)
    if not paths:
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).parquet(*[storage.spark_uri(path) for path in paths])


class FileWriter:
    """A writer of record batches to one compressed Parquet file, with statistics and a page index.

    A row group has about `row_group_bytes` in memory.
    """

    def __init__(self, path: Path, table: pa.Schema, *, row_group_bytes: int = _STREAMED) -> None:
        self._table = table
        self._limit = row_group_bytes
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self.rows = 0
        dictionary = [f.name for f in table if f.name not in _NO_DICTIONARY and not pa.types.is_nested(f.type)]
        # For pixels, lz4 is a tenth larger than zstd, but twice as fast to write and, in every epoch, to read.
        codec = "lz4" if "image" in table.names else "zstd"
        self._writer = pq.ParquetWriter(
            path, table, compression=codec, use_dictionary=dictionary, write_page_index=True, write_page_checksum=True
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows of `batch`, which has the columns of the table in any order."""
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._held_bytes >= self._limit:
            self._flush()

    def _flush(self) -> None:
        if self._held:
            rows = pa.Table.from_batches(self._held).select(self._table.names).cast(self._table)
            self._writer.write_table(rows, row_group_size=max(1, rows.num_rows))
        self._held, self._held_bytes = [], 0

    def close(self) -> None:
        """Write the remaining rows and the footer."""
        self._flush()
        self._writer.close()


def write_files(
    frame: DataFrame,
    targets: Sequence[AnyPath],
    table: pa.Schema,
    *,
    order: Sequence[str] = (),
    transform: Callable[[Batches, dict[str, int]], Batches] | None = None,
    digest: bool = False,
    row_group_bytes: int = _STREAMED,
) -> list[Written]:
    """Write the rows of `frame` to the files `targets`, each whole or not at all, and return their descriptions.

    The rows never reach the driver.

    Args:
        frame: rows with an integer column ``target``, the index of the target file. A file without rows is written
            empty.
        targets: the paths of the files.
        table: the schema of the files.
        order: the columns by which the rows of a file are sorted.
        transform: a function from the frame's batches (without ``target``) to batches of `table`. It may store counts
            in the dict, which become the `notes` of the file.
        digest: whether to compute the SHA-256 of each file.
        row_group_bytes: the size of a row group in memory.
    """
    from pyspark.sql import functions as F

    partitioned = frame.repartitionById(len(targets), F.col("target"))
    if order:
        partitioned = partitioned.sortWithinPartitions(*order)
    paths = [str(path) for path in targets]

    def task(batches: Batches) -> Batches:
        target, notes = _partition(), dict[str, int]()
        rows: Batches = (batch.drop_columns(["target"]) for batch in batches)
        with storage.whole_file(storage.as_path(paths[target])) as temporary:
            writer = FileWriter(temporary, table, row_group_bytes=row_group_bytes)
            for batch in transform(rows, notes) if transform else rows:
                writer.write(batch)
            writer.close()
            written = {
                "target": target,
                "rows": writer.rows,
                "bytes": temporary.stat().st_size,
                "notes": list(notes.items()),
            }
            written["sha256"] = storage.sha256(temporary) if digest else ""
        yield pa.RecordBatch.from_pylist([written], schema=_WRITTEN)

    results = partitioned.mapInArrow(task, spark_schema(_WRITTEN)).collect()
    return sorted((Written(**row.asDict()) for row in results), key=lambda written: written.target)


def write_parts(
    frame: DataFrame, folder: AnyPath, table: pa.Schema, transform: Callable[[Iterable[pa.RecordBatch]], Batches]
) -> DataFrame:
    """Apply `transform` to each partition of `frame`, write each result to its own file, and return the rows read back.

    For tables that are read several times and then removed. Python's workers write the files directly, because passing
    the rows back through the JVM takes longer than computing them. The files become the only content of `folder`.
    """
    storage.remove_folder(folder)
    path = str(folder)

    def task(batches: Batches) -> Batches:
        with storage.whole_file(storage.as_path(path) / f"part-{_partition():05d}.parquet") as temporary:
            writer = FileWriter(temporary, table, row_group_bytes=32 * 2**20)
            for batch in transform(batches):
                writer.write(batch)
            writer.close()
        return iter(())

    frame.mapInArrow(task, "nothing int").collect()
    return read(frame.sparkSession, [folder], table)


def _partition() -> int:
    """Return the number of the partition that the current Spark task works on."""
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        raise RuntimeError("not inside a Spark task")
    return int(context.partitionId())


def count(paths: Iterable[AnyPath]) -> int:
    """Return the number of rows in the Parquet files `paths`, from their footers."""
    return sum(_rows(path) for path in paths)


def _rows(path: AnyPath) -> int:
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)
