"""Counts and sample products for the page of a labelled set, collected batch by batch while the set is written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cma_clip_core.catalog.examples import ExampleIndex
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS, field_bits
from cma_clip_core.catalog.splits import SIDES, Side
from jobs.pages.example_pictures import ExampleLocation, thumbnails
from jobs.training.labelled_rows import LabelledBatch
from schemas.taxonomy import Attribute, Taxonomy

MENTIONS: Final = ("title", "elsewhere", "silent")  # where the texts name a label; silent: nowhere

_MOST_WORDS: Final = {"title": 20, "description": 200}  # longer texts count in the last bar of the plot
_SHOWN: Final = 36  # example products
_FAMILIES, _MEMBERS = 8, 9  # largest families that are shown, and products of each
_SIZES: Final = (1, 2, 3, 4, 6, 11, 21, 51, 101)  # lower ends of the ranges of family sizes

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShownLabel:
    """A label of a product on the page."""

    attribute: str
    value: str
    mention: str  # one of MENTIONS


@dataclass(frozen=True, slots=True)
class ShownProduct:
    """A product on the page."""

    product_id: str
    title: str
    brand: str
    side: Side
    labels: tuple[ShownLabel, ...]
    location: ExampleLocation


@dataclass(frozen=True, slots=True)
class ValueCount:
    """The number of labels of a value: in all, by MENTIONS, and by SIDES."""

    value: str
    n: int
    mentions: tuple[int, ...]
    sides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttributeCount:
    """The number of labels of an attribute: in all, by MENTIONS, and by SIDES; its values, most frequent first."""

    label: str
    n: int
    mentions: tuple[int, ...]
    sides: tuple[int, ...]
    left_out: int  # products whose label does not count, because the attribute does not apply
    values: tuple[ValueCount, ...]


@dataclass(frozen=True, slots=True)
class ShownFamily:
    """One of the largest families."""

    size: int
    side: Side
    products: tuple[ShownProduct, ...]  # some of its products


@dataclass(frozen=True, slots=True)
class FamilySizes:
    """The number of families with `least` to `most` products, and the number of their products."""

    least: int
    most: int
    families: int
    products: int


class Summary:
    """The counts of a set and the few products that its page shows. Memory does not grow with the number of products."""

    def __init__(self, taxonomy: Taxonomy, index: ExampleIndex) -> None:
        classes = sum(len(a.values) for a in taxonomy.attributes)
        self._taxonomy, self._index = taxonomy, index
        self._counts = np.zeros((classes, len(SIDES), len(MENTIONS)), dtype=np.int64)
        self._classes = [(a.label, value) for a in taxonomy.attributes for value in a.value_names]
        types = [a.name == taxonomy.article_type for a in taxonomy.attributes for _ in a.values]
        self._types = np.flatnonzero(types)  # [T] classes that are article types
        self.left_out: Counts = np.zeros(len(taxonomy.names), dtype=np.int64)  # [K] products
        self.words: dict[str, Counts] = {
            field: np.zeros(most + 1, dtype=np.int64) for field, most in _MOST_WORDS.items()
        }
        self._numbers, self._sizes = np.unique(index.family, return_counts=True)
        self._largest = np.argsort(-self._sizes, kind="stable")[:_FAMILIES]
        self._members = {
            int(position): number
            for number in self._largest
            if self._sizes[number] > 1
            for position in self._sample_members(number)
        }
        self._families: dict[int, list[ShownProduct]] = {}
        # The product with the smallest digest, by article type.
        self._examples: dict[int, tuple[bytes, ShownProduct]] = {}

    def _sample_members(self, number: int) -> Counts:
        positions = np.flatnonzero(self._index.family == self._numbers[number])
        sample: Counts = positions[np.linspace(0, len(positions) - 1, min(_MEMBERS, len(positions))).astype(int)]
        return sample

    def add(self, batch: LabelledBatch) -> None:
        """Count the products of a batch."""
        targets, named = batch.labels.targets, batch.named
        in_title = (named & field_bits(["title"])) > 0
        sides = self._index.side[batch.first : batch.first + len(batch.texts)]
        for side in range(len(SIDES)):
            on_side = (sides == side)[:, None]
            for mention, mentioned in enumerate((in_title, (named > 0) & ~in_title, targets & (named == 0))):
                self._counts[:, side, mention] += (mentioned & on_side).sum(axis=0)
        self.left_out += batch.labels.left_out.sum(axis=0)
        for column, field in enumerate(TEXT_FIELDS):
            if field in self.words:
                counts = self.words[field]
                lengths = [len(texts[column].split()) for texts in batch.texts]
                counts += np.bincount(np.minimum(lengths, len(counts) - 1), minlength=len(counts))
        self._choose(batch)

    def _choose(self, batch: LabelledBatch) -> None:
        kinds = batch.labels.targets[:, self._types]
        for row, product in enumerate(batch.examples.column("product_id").to_pylist()):
            number = self._members.get(batch.first + row)
            if number is not None:
                self._families.setdefault(number, []).append(self._shown(batch, row, product))
            kind = int(kinds[row].argmax()) if kinds[row].any() else -1
            digest = hashlib.blake2b(product.encode(), digest_size=8).digest()
            if kind not in self._examples or digest < self._examples[kind][0]:
                self._examples[kind] = digest, self._shown(batch, row, product)

    def _shown(self, batch: LabelledBatch, row: int, product: str) -> ShownProduct:
        position = batch.first + row
        labels = []
        for c in np.flatnonzero(batch.labels.targets[row]):
            bits = int(batch.named[row, c])
            mention = MENTIONS[0] if bits & field_bits(["title"]) else MENTIONS[1] if bits else MENTIONS[2]
            labels.append(ShownLabel(*self._classes[c], mention))
        title, brand, _ = batch.texts[row]
        file = self._index.files[self._index.file[position]]
        side = SIDES[self._index.side[position]]
        return ShownProduct(
            product, title, brand, side, tuple(labels), ExampleLocation(file, int(self._index.row[position]))
        )

    def label(self, name: str) -> str:
        """Return the display name of the attribute `name`."""
        return self._taxonomy[name].label

    @property
    def labels(self) -> int:
        """The number of labels."""
        return int(self._counts.sum())

    @property
    def silent(self) -> int:
        """The number of labels that no text field names."""
        return int(self._counts[:, :, MENTIONS.index("silent")].sum())

    @property
    def largest_family(self) -> int:
        """The number of products of the largest family."""
        return int(self._sizes.max())

    def labels_by_side(self) -> dict[str, int]:
        """Return the number of labels on each side."""
        return dict(zip(SIDES, self._counts.sum(axis=(0, 2)).tolist(), strict=True))

    def families_by_side(self) -> dict[str, int]:
        """Return the number of families on each side."""
        first = np.unique(self._index.family, return_index=True)[1]
        counts = np.bincount(self._index.side[first], minlength=len(SIDES))
        return dict(zip(SIDES, counts.tolist(), strict=True))

    def attributes(self) -> list[AttributeCount]:
        """Return the counts of labels by attribute, in the taxonomy's order."""
        attribute_counts, start = [], 0
        for attribute, left_out in zip(self._taxonomy.attributes, self.left_out.tolist(), strict=True):
            part = self._counts[start : start + len(attribute.values)]
            start += len(attribute.values)
            attribute_counts.append(_attribute_count(attribute, part, left_out))
        return attribute_counts

    def family_sizes(self) -> list[FamilySizes]:
        """Return the number of families in each range of sizes that occurs."""
        ranges = []
        for least, after in zip(_SIZES, (*_SIZES[1:], self.largest_family + 1), strict=True):
            sizes = self._sizes[(self._sizes >= least) & (self._sizes < after)]
            if len(sizes):
                ranges.append(FamilySizes(least, min(after - 1, self.largest_family), len(sizes), int(sizes.sum())))
        return ranges

    def largest_families(self) -> list[ShownFamily]:
        """Return the largest families of more than one product, largest first."""
        return [
            ShownFamily(int(self._sizes[number]), products[0].side, tuple(products))
            for number in self._largest.tolist()
            if (products := self._families.get(number))
        ]

    def examples(self) -> list[ShownProduct]:
        """Return one product of each of the most frequent article types."""
        frequency = self._counts[self._types].sum(axis=(1, 2))
        kinds = sorted(self._examples, key=lambda kind: (kind < 0, -frequency[kind] if kind >= 0 else 0, kind))
        return [self._examples[kind][1] for kind in kinds[:_SHOWN]]

    def pictures(self, height: int, width: int) -> dict[str, str]:
        """Return the pictures of the shown products, of `height` x `width` pixels, as ``data:`` URIs by product id."""
        families = (product for family in self.largest_families() for product in family.products)
        return thumbnails({p.product_id: p.location for p in (*self.examples(), *families)}, height, width)


def _attribute_count(attribute: Attribute, counts: Counts, left_out: int) -> AttributeCount:
    values = [
        ValueCount(value, int(part.sum()), tuple(part.sum(axis=0).tolist()), tuple(part.sum(axis=1).tolist()))
        for value, part in zip(attribute.value_names, counts, strict=True)
    ]
    return AttributeCount(
        label=attribute.label,
        n=int(counts.sum()),
        mentions=tuple(counts.sum(axis=(0, 1)).tolist()),
        sides=tuple(counts.sum(axis=(0, 2)).tolist()),
        left_out=left_out,
        values=tuple(sorted(values, key=lambda v: -v.n)),
    )
