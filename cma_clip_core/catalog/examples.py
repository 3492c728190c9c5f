"""Example files (schema EXAMPLES): read in a stream, and drawn from for training with bounded memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cma_clip_core.arrays import Bools, Pixels
from cma_clip_core.catalog.splits import SIDES, Side
from cma_clip_core.config import PictureConfig
from cma_clip_core.content.paths import AnyPath, names, open_parquet, parquet_files
from cma_clip_core.errors import DataError
from schemas.tables import EXAMPLES, LABELLED

READ_ROWS = 2048  # rows decoded at a time: at 80 x 64 pixels 31 MB of pictures

REMEDY_OF_A_SET = "run the step `dataset` of its day again: it makes the table again"

Rows = npt.NDArray[np.int64]


def example_files(folders: Iterable[AnyPath]) -> list[AnyPath]:
    """Return the Parquet files in `folders` and below, in a fixed order. Raises DataError where a folder is missing."""
    found: list[AnyPath] = []
    for folder in folders:
        here = parquet_files(folder)
        if not here and not names(folder):
            raise DataError(f"{folder}: there is no such folder of examples")
        found += here
    return found


def read_examples(
    files: Iterable[AnyPath],
    wanted: Mapping[str, str] | None = None,
    columns: Sequence[str] | None = None,
    rows: int = READ_ROWS,
) -> Iterator[pa.RecordBatch]:
    """Yield the examples in `files`, in order, a batch at a time.

    Args:
        files: Parquet files of schema EXAMPLES.
        wanted: product id to source hash; examples of other products, or of another state of them, are left out.
        columns: the columns to read; None: all of them.
        rows: most rows of a batch.

    Raises:
        DataError: a file cannot be read, or is not of this schema.
    """
    ids = None if wanted is None else pa.array(wanted.keys(), pa.string())
    hashes = None if wanted is None else pa.array(wanted.values(), pa.string())
    for path in files:
        with open_examples(path) as file:
            for batch in batches_of(path, file, rows, columns, _remedy(path)):
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
    """Yield the rows of the open Parquet file at `path`, or of some of its row groups, each page compared with its checksum.

    Raises:
        DataError: it is damaged; the message ends with the `remedy`.
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


def _select(batch: pa.RecordBatch, ids: pa.Array, hashes: pa.Array) -> pa.RecordBatch:
    place = pc.index_in(batch.column("product_id"), value_set=ids)  # null where the product is not wanted
    keep = pc.fill_null(pc.equal(batch.column("source_hash"), pc.take(hashes, place)), False)
    return batch.filter(keep)


def open_examples(path: AnyPath) -> pq.ParquetFile:
    """Open an example file. Raises DataError where it is broken or has not the columns of EXAMPLES."""
    return open_table(path, EXAMPLES, _remedy(path))


def _remedy(path: AnyPath) -> str:
    run = next((part.removeprefix("run=") for part in path.parts if part.startswith("run=")), None)
    return f"`python -m jobs preprocess --run {run}` makes it again" if run else "run the step `preprocess` again"


def open_table(path: AnyPath, table: pa.Schema, remedy: str) -> pq.ParquetFile:
    """Open a Parquet file of schema `table`.

    Raises:
        DataError: it is broken or has not the columns of `table`; the message ends with the `remedy`.
    """
    try:
        file = open_parquet(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}; {remedy}") from error
    schema = file.schema_arrow
    for field in table:
        at = schema.get_field_index(field.name)
        if at < 0 or not _same_type(schema.field(at).type, field.type):
            found = "missing" if at < 0 else f"of type {schema.field(at).type}"
            file.close()
            raise DataError(f"{path}: column {field.name!r} is {found}, not {field.type}; {remedy}")
    return file


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether the types are equal, the names and nullability of nested fields aside: writers differ in these."""
    if pa.types.is_map(expected):
        return pa.types.is_map(found) and all(
            _same_type(f, e) for f, e in ((found.key_type, expected.key_type), (found.item_type, expected.item_type))
        )
    if pa.types.is_list(expected):
        return pa.types.is_list(found) and _same_type(found.value_type, expected.value_type)
    if pa.types.is_struct(expected):
        return (
            pa.types.is_struct(found)
            and [f.name for f in found.fields] == [f.name for f in expected.fields]
            and all(_same_type(f.type, e.type) for f, e in zip(found.fields, expected.fields, strict=True))
        )
    return bool(found.equals(expected))


@dataclass(slots=True)
class ExampleIndex:
    """Where each labelled example is, its family, and its side of the split: 21 bytes an example, whatever their size."""

    files: list[AnyPath]
    file: npt.NDArray[np.int32]  # [N] index into `files`
    row: Rows  # [N] row within the file
    side: npt.NDArray[np.int8]  # [N] index into SIDES
    family: npt.NDArray[np.int64]  # [N] the product family's number

    @property
    def families(self) -> int:
        """How many families there are."""
        return len(np.unique(self.family))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of which examples there are and where each is, wherever the lake is."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update("/".join(path.parts[-3:]).encode() + b"\n")
        for part in (self.file, self.row, self.side, self.family):
            digest.update(part.tobytes())
        return digest.hexdigest()[:16]

    def sample(self, products: int) -> ExampleIndex:
        """Return whole families of about so many products: the same ones from the same examples, on every machine."""
        places = np.array(
            [hashlib.blake2b(int(f).to_bytes(8, signed=True), digest_size=6).digest() for f in self.family], dtype="S6"
        )
        order = np.argsort(places, kind="stable")
        end = min(products, len(order))
        while 0 < end < len(order) and self.family[order[end]] == self.family[order[end - 1]]:
            end += 1
        keep = np.sort(order[:end])
        return ExampleIndex(self.files, self.file[keep], self.row[keep], self.side[keep], self.family[keep])

    def count(self, side: Side) -> int:
        """Return the number of examples on a side."""
        return int((self.side == SIDES.index(side)).sum())

    def places(self, side: Side) -> Rows:
        """Return where in the index the examples of a side are, in the order of `stream_side`."""
        return np.concatenate([np.zeros(0, np.int64), *(self.places_of(n, side) for n in range(len(self.files)))])

    def places_of(self, file: int, side: Side) -> Rows:
        """Return where in the index the rows of `rows_of` are."""
        return np.flatnonzero(self._of(file, side))

    def rows_of(self, file: int, side: Side) -> Rows:
        """Return the rows of a file that are on a side, in order."""
        rows: Rows = self.row[self._of(file, side)]
        return rows

    def families_of(self, file: int, side: Side) -> Rows:
        """Return the families of `rows_of`."""
        families: Rows = self.family[self._of(file, side)]
        return families

    def _of(self, file: int, side: Side) -> npt.NDArray[np.bool_]:
        return np.asarray((self.file == file) & (self.side == SIDES.index(side)))


def read_index(table: AnyPath, root: AnyPath) -> ExampleIndex:
    """Read which examples are labelled, and their sides and families, from a labelled set.

    Args:
        table: the set's Parquet file, of schema LABELLED.
        root: the lake; the table names example files relative to it.

    Raises:
        DataError: the file cannot be read, or is not of this schema.
    """
    columns = ["example_file", "example_row", "side", "family"]
    numbers: dict[str, int] = {}
    where = [np.zeros((0, len(columns)), dtype=np.int64)]
    with open_table(table, LABELLED, REMEDY_OF_A_SET) as file:
        for batch in batches_of(table, file, READ_ROWS, columns, REMEDY_OF_A_SET):
            files = [numbers.setdefault(name, len(numbers)) for name in batch.column("example_file").to_pylist()]
            sides = [SIDES.index(side) for side in batch.column("side").to_pylist()]
            rest = (batch.column(name).to_numpy() for name in ("example_row", "family"))
            where.append(np.column_stack([files, sides, *rest]).astype(np.int64))
    found = np.concatenate(where)
    return ExampleIndex(
        [root / name for name in numbers],
        file=found[:, 0].astype(np.int32),
        row=found[:, 2],
        side=found[:, 1].astype(np.int8),
        family=found[:, 3],
    )


def read_pixels(examples: pa.RecordBatch, picture: PictureConfig) -> tuple[Pixels, Bools]:
    """Return the pictures of `examples` as pixels [B, H, W, 3], zeros where there is none, and which there are [B].

    Where all products have one, the pixels are those in `examples`, not a copy, and cannot be written to.

    Raises:
        DataError: a picture is not of the size `picture`; names the product.
    """
    images = examples.column("image")
    present: Bools = np.asarray(images.is_valid())
    shape = (len(images), picture.height, picture.width, 3)
    if not present.any():
        return np.zeros(shape, dtype=np.uint8), present
    size = picture.height * picture.width * 3
    _, offsets_buffer, data = images.buffers()
    width = np.int64 if pa.types.is_large_binary(images.type) else np.int32  # of the offsets: see `join`
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
    """Yield the examples of a side in file order, a batch at a time, with their families."""
    for number, path in enumerate(index.files):
        keep, families = index.rows_of(number, side), index.families_of(number, side)
        if len(keep):
            at = 0
            for batch in read_rows(path, keep, columns, rows):
                yield batch, families[at : at + batch.num_rows]
                at += batch.num_rows


def stream_shuffled(index: ExampleIndex, side: Side, buffer: int, rng: np.random.Generator) -> Iterator[pa.RecordBatch]:
    """Yield the examples of a side in random order, in batches of about `buffer` examples; a column `place` says where in
    the index each is.

    Files and their row groups are read in random order into a buffer, which is shuffled before it is given out: what is
    held in memory does not grow with the number of examples. The order follows from `rng` alone.
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
        keep, places = index.rows_of(number, side), index.places_of(number, side)
        next_row = int(np.searchsorted(keep, first))
        with open_examples(index.files[number]) as file:
            for batch in _rows_of(index.files[number], file, [group], keep, first, READ_ROWS):
                held.append(batch.append_column("place", pa.array(places[next_row : next_row + batch.num_rows])))
                next_row += batch.num_rows
                if sum(b.num_rows for b in held) >= buffer:
                    yield _shuffled(held, rng)
                    held = []
    if held:
        yield _shuffled(held, rng)


def read_rows(path: AnyPath, keep: Rows, columns: Sequence[str], rows: int = READ_ROWS) -> Iterator[pa.RecordBatch]:
    """Yield some columns of the rows `keep`, in order, of an example file, a batch at a time.

    Raises:
        DataError: the file cannot be read, or is not of schema EXAMPLES.
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
    """Yield the rows `keep` (counted in the file) of some row groups, the first of which starts at row `first`."""
    for batch in batches_of(path, file, rows, columns, _remedy(path), groups):
        inside = keep[(keep >= first) & (keep < first + batch.num_rows)] - first
        first += batch.num_rows
        if len(inside):
            yield batch if len(inside) == batch.num_rows else batch.take(pa.array(inside))


def join(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return batches of one schema, at least one, as one batch, its pictures as large_binary.

    The 32-bit offsets of binary end at 2 GiB: 3,566 pictures of 448 x 448 pixels. Wider ones are made of the offsets alone.
    """
    return pa.concat_batches([_with_wide_offsets(batch) for batch in batches])


def _with_wide_offsets(batch: pa.RecordBatch) -> pa.RecordBatch:
    for at, field in enumerate(batch.schema):
        if pa.types.is_binary(field.type):
            wide = field.with_type(pa.large_binary())
            batch = batch.set_column(at, wide, batch.column(at).cast(wide.type))
    return batch


def _shuffled(batches: list[pa.RecordBatch], rng: np.random.Generator) -> pa.RecordBatch:
    joined = join(batches)
    return joined.take(pa.array(rng.permutation(joined.num_rows)))
