"""Readers of example files (schema EXAMPLES): streams in file order, and shuffled streams with bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cma_clip_core.arrays import Bools, Pixels
from cma_clip_core.catalog.hashing import family_fraction
from cma_clip_core.catalog.splits import SIDES, Side
from cma_clip_core.config import PictureConfig
from cma_clip_core.content.paths import AnyPath, names, open_parquet, parquet_files
from cma_clip_core.errors import DataError
from schemas.tables import EXAMPLES, LABELLED

READ_ROWS = 2048  # rows decoded at a time: 31 MB of pictures at 80 x 64 pixels

REMEDY_OF_A_SET = "run the step `dataset` of its day again: it makes the table again"

_LATER: Final = ("image_used",)  # columns that files of earlier versions lack

Rows = npt.NDArray[np.int64]


def example_files(folders: Iterable[AnyPath]) -> list[AnyPath]:
    """Return the Parquet files in `folders` and below, in a fixed order. Raises DataError if a folder is missing."""
    files: list[AnyPath] = []
    for folder in folders:
        inside = parquet_files(folder)
        if not inside and not names(folder):
            raise DataError(f"{folder}: there is no such folder of examples")
        files += inside
    return files


def read_examples(
    files: Iterable[AnyPath],
    wanted: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    rows: int = READ_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield the examples in `files`, in order, a batch at a time.

    Args:
        files: Parquet files of schema EXAMPLES.
        wanted: product id to source hash; examples of other products, or with another hash, are left out.
        columns: the columns to read; None: all of them.
        rows: maximum rows of a batch.

    Raises:
        DataError: a file cannot be read, or does not have this schema.
    """
    ids = None if wanted is None else pa.array(wanted.keys(), pa.string())
    hashes = None if wanted is None else pa.array(wanted.values(), pa.string())
    for path in files:
        with open_examples(path) as file:
            for batch in batches_of(path, file, rows, columns, _remedy(path)):
                if columns is None:
                    batch = _with_later_columns(batch)
                if ids is not None:
                    batch = _select(batch, ids, hashes)
                if batch.num_rows:
                    yield batch


def batches_of(
    path: AnyPath,
    file: pq.ParquetFile,
    rows: int,
    columns: Sequence[str] | None,
    remedy: str,
    groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the open Parquet file at `path`, or of some of its row groups. Page checksums are verified.

    Raises:
        DataError: the file is damaged; the message ends with the `remedy`.
    """
    batches = file.iter_batches(
        batch_size=rows,
        row_groups=None if groups is None else list(groups),
        columns=None if columns is None else list(columns),
    )
    while True:
        try:
            batch = next(batches, None)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: it is damaged: {error}; {remedy}") from error
        if batch is None:
            return
        yield batch


def _with_later_columns(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return `batch` with the columns of EXAMPLES that its file is too old to have, as nulls."""
    for name in _LATER:
        if name not in batch.schema.names:
            position, field = EXAMPLES.get_field_index(name), EXAMPLES.field(name)
            batch = batch.add_column(position, field, pa.nulls(batch.num_rows, field.type))
    return batch


def _select(batch: pa.RecordBatch, ids: pa.Array, hashes: pa.Array) -> pa.RecordBatch:
    position = pc.index_in(batch.column("product_id"), value_set=ids)  # null where the product is not wanted
    keep = pc.fill_null(pc.equal(batch.column("source_hash"), pc.take(hashes, position)), False)
    return batch.filter(keep)


def open_examples(path: AnyPath) -> pq.ParquetFile:
    """Open an example file. Raises DataError if it is broken or lacks the columns of EXAMPLES."""
    return open_table(path, EXAMPLES, _remedy(path))


def _remedy(path: AnyPath) -> str:
    run = next((part.removeprefix("run=") for part in path.parts if part.startswith("run=")), None)
    return f"`python -m jobs preprocess --run {run}` makes it again" if run else "run the step `preprocess` again"


def open_table(path: AnyPath, table: pa.Schema, remedy: str) -> pq.ParquetFile:
    """Open a Parquet file of schema `table`.

    Raises:
        DataError: the file is broken or lacks columns that `table` always had; the message ends with the `remedy`.
    """
    try:
        file = open_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}; {remedy}") from error
    schema = file.schema_arrow
    for field in table:
        column = schema.get_field_index(field.name)
        if column < 0 and field.name in _LATER:
            continue
        if column < 0 or not _same_type(schema.field(column).type, field.type):
            actual = "missing" if column < 0 else f"of type {schema.field(column).type}"
            file.close()
            raise DataError(f"{path}: column {field.name!r} is {actual}, not {field.type}; {remedy}")
    return file


def _same_type(actual: pa.DataType, expected: pa.DataType) -> bool:
    """Return whether the types are equal, except for item names and nullability, in which writers differ."""
    if pa.types.is_map(expected):
        return pa.types.is_map(actual) and all(
            _same_type(a, e) for a, e in ((actual.key_type, expected.key_type), (actual.item_type, expected.item_type))
        )
    if pa.types.is_list(expected):
        return pa.types.is_list(actual) and _same_type(actual.value_type, expected.value_type)
    if pa.types.is_struct(expected):
        return (
            pa.types.is_struct(actual)
            and [f.name for f in actual.fields] == [f.name for f in expected.fields]
            and all(_same_type(a.type, e.type) for a, e in zip(actual.fields, expected.fields, strict=True))
        )
    return bool(actual.equals(expected))


@dataclass(slots=True)
class ExampleIndex:
    """Location, family and side of the split of each labelled example: 21 bytes an example, independent of its size."""

    files: list[AnyPath]
    file: npt.NDArray[np.int32]  # [N] index into `files`
    row: Rows  # [N] row within the file
    side: npt.NDArray[np.int8]  # [N] index into SIDES
    family: npt.NDArray[np.int64]  # [N] the product family's number

    @property
    def families(self) -> int:
        """The number of families."""
        return len(np.unique(self.family))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the examples and their files, independent of the lake's location."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update("/".join(path.parts[-3:]).encode() + b"\n")
        for part in (self.file, self.row, self.side, self.family):
            digest.update(part.tobytes())
        return digest.hexdigest()[:16]

    def sample(self, products: int) -> ExampleIndex:
        """Return whole families with about `products` products, the same on every machine."""
        order = np.argsort([family_fraction(family) for family in self.family.tolist()], kind="stable")
        end = min(products, len(order))
        while 0 < end < len(order) and self.family[order[end]] == self.family[order[end - 1]]:
            end += 1
        keep = np.sort(order[:end])
        return ExampleIndex(self.files, self.file[keep], self.row[keep], self.side[keep], self.family[keep])

    def count(self, side: Side) -> int:
        """Return the number of examples on a side."""
        return int((self.side == SIDES.index(side)).sum())

    def positions(self, side: Side) -> Rows:
        """Return the positions in the index of the examples of a side, in the order of `stream_side`."""
        return np.concatenate([np.zeros(0, np.int64), *(self.positions_of(n, side) for n in range(len(self.files)))])

    def positions_of(self, file: int, side: Side) -> Rows:
        """Return the positions in the index of the rows that `rows_of` returns."""
        return np.flatnonzero(self._of(file, side))

    def rows_of(self, file: int, side: Side) -> Rows:
        """Return the rows of a file that are on a side, in order."""
        rows: Rows = self.row[self._of(file, side)]
        return rows

    def families_of(self, file: int, side: Side) -> Rows:
        """Return the families of the rows that `rows_of` returns."""
        families: Rows = self.family[self._of(file, side)]
        return families

    def _of(self, file: int, side: Side) -> npt.NDArray[np.bool_]:
        return np.asarray((self.file == file) & (self.side == SIDES.index(side)))


def read_index(table: AnyPath, root: AnyPath) -> ExampleIndex:
    """Read the labelled examples of a labelled set, with their sides and families.

    Args:
        table: the set's Parquet file, of schema LABELLED.
        root: the lake; the table names example files relative to it.

    Raises:
        DataError: the file cannot be read, or does not have this schema.
    """
    columns = ["example_file", "example_row", "side", "family"]
    numbers: dict[str, int] = {}
    parts = [np.zeros((0, len(columns)), dtype=np.int64)]
    with open_table(table, LABELLED, REMEDY_OF_A_SET) as file:
        for batch in batches_of(table, file, READ_ROWS, columns, REMEDY_OF_A_SET):
            files = [numbers.setdefault(name, len(numbers)) for name in batch.column("example_file").to_pylist()]
            sides = [SIDES.index(side) for side in batch.column("side").to_pylist()]
            rest = (batch.column(name).to_numpy() for name in ("example_row", "family"))
            parts.append(np.column_stack([files, sides, *rest]).astype(np.int64))
    entries = np.concatenate(parts)
    return ExampleIndex(
        [root / name for name in numbers],
        file=entries[:, 0].astype(np.int32),
        row=entries[:, 2],
        side=entries[:, 1].astype(np.int8),
        family=entries[:, 3],
    )


def read_pixels(examples: pa.RecordBatch, picture: PictureConfig) -> tuple[Pixels, Bools]:
    """Return the pictures of `examples` as pixels [B, H, W, 3], and the mask [B] of examples that have a picture.

    Missing pictures are zeros. If all examples have a picture, the pixels are a read-only view of `examples`.

    Raises:
        DataError: a picture does not have the size `picture`; the message names the product.
    """
    images = examples.column("image")
    present: Bools = np.asarray(images.is_valid())
    shape = (len(images), picture.height, picture.width, 3)
    if not present.any():
        return np.zeros(shape, dtype=np.uint8), present
    size = picture.height * picture.width * 3
    _, offsets_buffer, data = images.buffers()
    width = np.int64 if pa.types.is_large_binary(images.type) else np.int32  # offsets' type: see `join`
    offsets = np.frombuffer(offsets_buffer, dtype=width)[images.offset : images.offset + len(images) + 1]
    wrong = np.flatnonzero(present & (np.diff(offsets) != size))
    if len(wrong):
        product = examples.column("product_id")[int(wrong[0])].as_py()
        raise DataError(
            f"product {product!r}: its picture has {int(np.diff(offsets)[wrong[0]])} bytes where the model needs "
            f"{picture.height} x {picture.width} x 3 = {size}; make the examples again for this model's picture size"
        )
    values = np.frombuffer(data, dtype=np.uint8)
    if present.all():
        return values[offsets[0] : offsets[-1]].reshape(shape), present
    pixels = np.zeros(shape, dtype=np.uint8)
    flat = pixels.reshape(len(pixels), size)
    for row in np.flatnonzero(present):
        flat[row] = values[offsets[row] : offsets[row + 1]]
    return pixels, present


MODEL_COLUMNS = ("product_id", "title", "brand", "description", "image", "labels", "unknown_labels")


def stream_side(
    index: ExampleIndex, side: Side, rows: int = READ_ROWS, columns: Sequence[str] = MODEL_COLUMNS
) -> Iterator[tuple[pa.RecordBatch, Rows]]:
    """Yield the examples of a side with their families, in file order, a batch at a time."""
    for number, path in enumerate(index.files):
        keep, families = index.rows_of(number, side), index.families_of(number, side)
        if len(keep):
            at = 0
            for batch in read_rows(path, keep, columns, rows):
                yield batch, families[at : at + batch.num_rows]
                at += batch.num_rows


def stream_shuffled(index: ExampleIndex, side: Side, buffer: int, rng: np.random.Generator) -> Iterator[pa.RecordBatch]:
    """Yield the examples of a side in random order, in batches of about `buffer` examples.

    The column `position` holds each example's position in the index. Row groups of all files are read in random order
    into a buffer, which is shuffled when full. So memory does not grow with the number of examples. The order depends
    on `rng` alone.
    """
    groups: list[tuple[int, int, int]] = []  # file, row group, its first row
    for number, path in enumerate(index.files):
        if len(index.rows_of(number, side)):
            with open_parquet(path) as file:
                metadata = file.metadata
            first = 0
            for group in range(metadata.num_row_groups):
                groups.append((number, group, first))
                first += metadata.row_group(group).num_rows
    held: list[pa.RecordBatch] = []
    for at in rng.permutation(len(groups)):
        number, group, first = groups[at]
        keep, positions = index.rows_of(number, side), index.positions_of(number, side)
        next_row = int(np.searchsorted(keep, first))
        with open_examples(index.files[number]) as file:
            for batch in _rows_of(index.files[number], file, [group], keep, first, READ_ROWS):
                held.append(batch.append_column("position", pa.array(positions[next_row : next_row + batch.num_rows])))
                next_row += batch.num_rows
                if sum(b.num_rows for b in held) >= buffer:
                    yield _shuffled(held, rng)
                    held = []
    if held:
        yield _shuffled(held, rng)


def read_rows(path: AnyPath, keep: Rows, columns: Sequence[str], rows: int = READ_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield some columns of the rows `keep` of an example file, in order, a batch at a time.

    Raises:
        DataError: the file cannot be read, or does not have the schema EXAMPLES.
    """
    with open_examples(path) as file:
        yield from _rows_of(path, file, list(range(file.num_row_groups)), keep, 0, rows, columns)


def _rows_of(
    path: AnyPath,
    file: pq.ParquetFile,
    groups: list[int],
    keep: Rows,
    first: int,
    rows: int,
    columns: Sequence[str] = MODEL_COLUMNS,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows `keep` (numbered within the file) of some row groups, the first of which starts at row `first`."""
    for batch in batches_of(path, file, rows, columns, _remedy(path), groups):
        inside = keep[(keep >= first) & (keep < first + batch.num_rows)] - first
        first += batch.num_rows
        if len(inside):
            yield batch if len(inside) == batch.num_rows else batch.take(pa.array(inside))


def join(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return one or more batches of one schema as one batch, with pictures as large_binary.

    The 32-bit offsets of binary overflow at 2 GiB: 3,566 pictures of 448 x 448 pixels. The cast converts only the
    offsets.
    """
    return pa.concat_batches([_with_wide_offsets(batch) for batch in batches])


def _with_wide_offsets(batch: pa.RecordBatch) -> pa.RecordBatch:
    for column, field in enumerate(batch.schema):
        if pa.types.is_binary(field.type):
            wide = field.with_type(pa.large_binary())
            batch = batch.set_column(column, wide, batch.column(column).cast(wide.type))
    return batch


def _shuffled(batches: list[pa.RecordBatch], rng: np.random.Generator) -> pa.RecordBatch:
    joined = join(batches)
    return joined.take(pa.array(rng.permutation(joined.num_rows)))
