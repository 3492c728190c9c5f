"""Tests of the memory and the order of training data: `pytest tests/cma_clip_core/content/test_streams.py`."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cma_clip_core.catalog.examples import ExampleIndex, read_pixels, stream_shuffled
from cma_clip_core.catalog.splits import SIDES
from cma_clip_core.inputs.prefetch import prefetch
from cma_clip_core.training.objectives import TrainingBatches
from tests.cma_clip_core import drawn

ROWS, GROUP, BUFFER = 200, 50, 256  # of a file, of a row group, of the buffer
PICTURES = ROWS * 32 * 24 * 3  # bytes of a file's pictures


def write(folder: Path, files: int) -> ExampleIndex:
    """Write files of the same products under other ids (`file-row`), all on the training side."""
    table = drawn.examples(ROWS)
    for number in range(files):
        ids = pa.array([f"{number}-{row}" for row in range(ROWS)])
        drawn.write(folder, table.set_column(0, table.schema.field(0), ids), f"{number:03d}.parquet", GROUP)
    count = files * ROWS
    return ExampleIndex(
        sorted(folder.glob("*.parquet")),
        np.repeat(np.arange(files, dtype=np.int32), ROWS),
        np.tile(np.arange(ROWS), files),
        np.full(count, SIDES.index("train"), np.int8),
        np.arange(count),
    )


def peaks(index: ExampleIndex) -> tuple[int, int]:
    """Return the peak memory of Arrow and of Python, in bytes, while an epoch's batches are made."""
    config = drawn.config(shuffle_buffer=BUFFER)
    batches = TrainingBatches(drawn.problem(config, index))
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)  # counts its own peak
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        seen = sum(len(batch) for batch in prefetch(batches(1), depth=4))
        python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert seen == len(index.row)
    return pool.max_memory(), python


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    few, many = (peaks(write(tmp_path / str(files), files)) for files in (4, 24))
    assert few[0] > BUFFER * 32 * 24 * 3  # the buffer's pictures were counted
    assert few[1] > BUFFER * 32 * 24 * 3
    # Twenty more files have 9 MB of pictures. Only the index and the list of row groups may grow.
    for one, other in zip(few, many, strict=True):
        assert other < one + 0.05 * 20 * PICTURES


@pytest.mark.parametrize("files", [8])
def test_neighbours_in_files_are_mixed(tmp_path: Path, files: int) -> None:
    index = write(tmp_path, files)
    stream = stream_shuffled(index, "train", BUFFER, np.random.default_rng(0))
    ids = [tuple(map(int, p.split("-"))) for batch in stream for p in batch.column("product_id").to_pylist()]
    assert len(set(ids)) == files * ROWS
    position = {one: at for at, one in enumerate(ids)}
    groups = [(file, row // GROUP) for file, row in ids]
    together = np.mean([a == b for a, b in zip(groups[1:], groups, strict=False)])
    assert together < 2 * GROUP / BUFFER  # as if drawn from the buffer
    apart = [abs(position[file, row + 1] - position[file, row]) for file, row in ids if (row + 1) % GROUP]
    assert np.mean(apart) > BUFFER / 4  # as far as two draws from the buffer are, a third of it on average
    assert np.mean(np.array(apart) == 1) < 0.03
    in_batches = [len({groups[at] for at in range(first, first + 32)}) for first in range(0, len(ids) - 32, 32)]
    assert np.mean(in_batches) > 4  # row groups in 32 products that follow each other
    order = np.array([file * ROWS + row for file, row in ids])
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.5  # files come in random order too


def test_a_buffer_of_pictures_may_be_larger_than_2_gib(tmp_path: Path) -> None:
    """Binary columns are widened, and the pictures are those of the files, even if rows are left out."""
    index, picture = write(tmp_path, 2), drawn.config().picture
    index.side[::3] = SIDES.index("test")
    pixels, present = read_pixels(drawn.batch(ROWS), picture)
    for batch in stream_shuffled(index, "train", BUFFER, np.random.default_rng(0)):
        assert batch.schema.field("image").type == pa.large_binary()
        for part in (batch, batch.slice(7, 50)):
            rows = [int(product.split("-")[1]) for product in part.column("product_id").to_pylist()]
            found, there = read_pixels(part, picture)
            assert np.array_equal(there, present[rows])
            assert np.array_equal(found, pixels[rows])
