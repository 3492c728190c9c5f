"""Products with the text or the picture of another, or with texts that do not name their labels: how much does a method suffer?

The former two as in arXiv 2112.03562, robustness. The latter is ours: a shop's texts leave out much that the picture shows,
and these are the values that a text search cannot find.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cma_clip_core.catalog.examples import READ_ROWS, Rows, join
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS

What = Literal["text", "image", "names"]
COLUMNS: dict[What, tuple[str, ...]] = {"text": TEXT_FIELDS, "image": ("image",)}


@dataclass(frozen=True, slots=True)
class Noise:
    """What is swapped, or left out. What is changed at one share is changed at every larger one with the same seed."""

    what: What  # texts or pictures are swapped, or names of labels are left out of the texts
    share: float  # of the products, or of the labels that texts name, 0 to 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError where the share is none."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share is {self.share}, not between 0 and 1")


def left_out(products: Sequence[str], targets: npt.NDArray[np.bool_], noise: Noise) -> npt.NDArray[np.bool_]:
    """Return the labels [B, C] whose names are left out of the texts: which ones follows from product, value and seed alone.

    Args:
        products: [B] ids.
        targets: [B, C], True at the values a product has.
        noise: of names.
    """
    found = np.zeros_like(targets)
    for row, value in zip(*np.nonzero(targets), strict=True):
        found[row, value] = _place(f"{products[row]}/{value}", noise.seed) < noise.share
    return found


def swap_all(
    stream: Iterable[tuple[pa.RecordBatch, Rows]], noise: Noise, least: int = READ_ROWS
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch, Rows]]:
    """Yield the examples of a stream, what is shown in their stead (`swap`), and their families, a batch at a time.

    A batch of the stream may be as small as the products of a side in one file, siblings among them: batches are joined
    until there are `least` products to swap among, and the last ones, if fewer, with those before them. In memory are at
    most twice `least` products and a batch. A stream of one product stays as it is: there is nobody to swap with.
    """
    ready: _Group = ([], [])  # held back until it is known that enough follow
    rest: _Group = ([], [])
    for examples, families in stream:
        rest[0].append(examples)
        rest[1].append(families)
        if sum(len(families) for families in rest[1]) >= least:
            if ready[0]:
                yield _swapped(ready, noise)
            ready, rest = rest, ([], [])
    if ready[0] or rest[0]:
        yield _swapped((ready[0] + rest[0], ready[1] + rest[1]), noise)


_Group = tuple[list[pa.RecordBatch], list[Rows]]


def _swapped(group: _Group, noise: Noise) -> tuple[pa.RecordBatch, pa.RecordBatch, Rows]:
    examples = join(group[0])
    return examples, swap(examples, noise), np.concatenate(group[1])


def swap(examples: pa.RecordBatch, noise: Noise) -> pa.RecordBatch:
    """Return examples, a share of which have all texts, or the picture or its absence, of another product of the batch.

    Which ones follows from their ids and the seed, whatever the batch; whose they get is the next by the same hash, so
    never their own, and siblings, neighbours in a file, are torn apart. A batch of one stays as it is.
    """
    places = np.array(
        [_place(product, noise.seed) for product in examples.column("product_id").to_pylist()], dtype=np.float64
    )
    order = np.argsort(places, kind="stable")
    swapped = int((places < noise.share).sum())
    source = np.arange(len(places))
    source[order[:swapped]] = np.roll(order, -1)[:swapped]
    taken = examples.take(pa.array(source))
    names = COLUMNS[noise.what]
    return pa.RecordBatch.from_arrays(
        [(taken if name in names else examples).column(name) for name in examples.schema.names],
        schema=examples.schema,
    )


def _place(product: str, seed: int) -> float:
    """Return the place of a product, or of its label, in [0, 1)."""
    digest = hashlib.blake2b(product.encode(), digest_size=6, salt=seed.to_bytes(8)).digest()
    return int.from_bytes(digest) / 2**48
