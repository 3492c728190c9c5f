"""Parquet files of the lake: Spark shuffles and sorts, Arrow writes.

Files that others read are written by Arrow inside Spark's tasks, one file a partition, whole or not at all. Spark's own
writer can neither carry our field comments nor leave out dictionaries, and puts values into folder names.
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

# Values that hardly repeat: a dictionary of them costs space and look-up time.
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
    sha256: str  # hex; '' where it was not asked for
    notes: dict[str, int]


_STREAMED: Final = 64 * 2**20  # bytes of a row group in memory, of tables that are read whole
# Of tables that single products are looked up in: some 50,000 rows. A reader decodes all ids of a group to find one.
LOOKED_UP: Final = 8 * 2**20


def write(frame: DataFrame, folder: AnyPath, table: pa.Schema) -> None:
    """Write `frame` by Spark's writer as the only content of `folder`, in the columns and types of `table`.

    For tables that only our own steps read, of any number of files.
    """
    from pyspark.sql import functions as F

    fields = spark_schema(table).fields
    frame.select(*[F.col(f.name).cast(f.dataType).alias(f.name) for f in fields]).write.mode("overwrite").parquet(
        storage.spark_uri(folder)
    )


def read(spark: SparkSession, paths: Sequence[AnyPath], table: pa.Schema) -> DataFrame:
    """Return the Parquet files or folders `paths` with the columns of `table`; an empty frame where there are none."""
    schema = spark_schema(table)
    if not paths:
        return spark.createDataFrame([], schema)
    return spark.read.schema(schema).parquet(*[storage.spark_uri(path) for path in paths])


class FileWriter:
    """Writes record batches to one Parquet file, in row groups of about so many bytes in memory: compressed, with statistics
    and a page index.
    """

    def __init__(self, path: Path, table: pa.Schema, *, row_group_bytes: int = _STREAMED) -> None:
        self._table = table
        self._limit = row_group_bytes
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self.rows = 0
        dictionary = [f.name for f in table if f.name not in _NO_DICTIONARY and not pa.types.is_nested(f.type)]
        # Of pixels lz4 is a tenth larger than zstd, and twice as fast to write and, in every epoch, to read.
        codec = "lz4" if "image" in table.names else "zstd"
        self._writer = pq.ParquetWriter(
            path, table, compression=codec, use_dictionary=dictionary, write_page_index=True, write_page_checksum=True
        )

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows of `batch`, whose columns are those of the table, in any order."""
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
        """Write what is held, and the footer."""
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
    """Write the rows of `frame` to the files `targets`, each whole or not at all, and return what was written.

    Args:
        frame: rows with an integer column ``target``, the index of the file each belongs to; a file that no row
            belongs to is written empty.
        order: columns the rows of a file are sorted by.
        transform: from the frame's batches (without ``target``) to the table's; may count what it sees in the dict.
        digest: whether the SHA-256 of each file is taken.
        row_group_bytes: of a row group in memory.

    The rows themselves never reach the driver.
    """
    from pyspark.sql import functions as F

    placed = frame.repartitionById(len(targets), F.col("target"))
    if order:
        placed = placed.sortWithinPartitions(*order)
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

    found = placed.mapInArrow(task, spark_schema(_WRITTEN)).collect()
    return sorted((Written(**row.asDict()) for row in found), key=lambda written: written.target)


def write_parts(
    frame: DataFrame, folder: AnyPath, table: pa.Schema, transform: Callable[[Iterable[pa.RecordBatch]], Batches]
) -> DataFrame:
    """Write what `transform` makes of each partition of `frame` to a file of its own, and return the rows as read back.

    For tables that are read several times and then removed. From Python's worker straight to the file: back through the
    JVM, row by row, they would take it longer than to make them. The files are the only content of `folder`.
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
    """Return which partition the Spark task that this runs in works on."""
    from pyspark import TaskContext

    context = TaskContext.get()
    if context is None:
        raise RuntimeError("not inside a Spark task")
    return int(context.partitionId())


def count(paths: Iterable[AnyPath]) -> int:
    """Return the rows of the Parquet files `paths`, by their footers."""
    return sum(_rows(path) for path in paths)


def _rows(path: AnyPath) -> int:
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)
