"""Perturbed examples for robustness tests: swapped texts, swapped pictures, and texts without the names of labels.

The swaps follow arXiv 2112.03562, robustness. Leaving out names is our addition. A shop's texts omit much of what the
picture shows, and a text search cannot find those values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cma_clip_core.catalog.examples import READ_ROWS, Rows, join
from cma_clip_core.catalog.hashing import hash_fraction
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS

Perturbation = Literal["text", "image", "names"]
COLUMNS: dict[Perturbation, tuple[str, ...]] = {"text": TEXT_FIELDS, "image": ("image",)}


@dataclass(frozen=True, slots=True)
class Noise:
    """A perturbation of a share of the products or labels.

    With the same seed, a larger share includes everything that a smaller share changes.
    """

    perturbation: Perturbation  # swap texts, swap pictures, or leave names of labels out of the texts
    share: float  # of the products, or of the labels that texts name, 0 to 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError if the share is not between 0 and 1."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share is {self.share}, not between 0 and 1")


def draw_omitted_labels(products: Sequence[str], targets: npt.NDArray[np.bool_], noise: Noise) -> npt.NDArray[np.bool_]:
    """Return the labels [B, C] whose names are left out of the texts.

    The choice depends on product, value and seed alone.

    Args:
        products: [B] ids.
        targets: [B, C], True at the values a product has.
        noise: perturbation of names.
    """
    chosen = np.zeros_like(targets)
    for row, value in zip(*np.nonzero(targets), strict=True):
        chosen[row, value] = _fraction(f"{products[row]}/{value}", noise.seed) < noise.share
    return chosen


def swap_all(
    stream: Iterable[tuple[pa.RecordBatch, Rows]], noise: Noise, least: int = READ_ROWS
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch, Rows]]:
    """Yield the examples of a stream, their perturbed versions (`swap`), and their families, a batch at a time.

    A batch of the stream may hold only a few products, some of them of one family. Batches are therefore joined until there
    are `least` products to swap among; the last batches, if smaller, join the group before them. Memory holds at most
    twice `least` products and one batch. A stream of one product is unchanged, because there is no other product to
    swap with.
    """
    ready: _Group = ([], [])  # held back until the next group is large enough
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
    """Return `examples`, a share of which take the texts, or the picture or its absence, of another product.

    A hash of product id and seed chooses the products, independently of the batch. Each gets the texts or picture of the next
    product in the order of that hash: never its own, and rarely one of its family's, although families often lie together in a
    file. A batch of one is unchanged.
    """
    fractions = np.array(
        [_fraction(product, noise.seed) for product in examples.column("product_id").to_pylist()], dtype=np.float64
    )
    order = np.argsort(fractions, kind="stable")
    swapped = int((fractions < noise.share).sum())
    source = np.arange(len(fractions))
    source[order[:swapped]] = np.roll(order, -1)[:swapped]
    taken = examples.take(pa.array(source))
    names = COLUMNS[noise.perturbation]
    return pa.RecordBatch.from_arrays(
        [(taken if name in names else examples).column(name) for name in examples.schema.names],
        schema=examples.schema,
    )


def _fraction(key: str, seed: int) -> float:
    """Return the number in [0, 1) of a product or of one of its labels."""
    return hash_fraction(key.encode(), salt=seed.to_bytes(8))
