"""What the page of a labelled set shows: counted while the set is written, a batch at a time."""

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

PLACES: Final = ("title", "elsewhere", "silent")  # where a label is named: the last: nowhere

_MOST_WORDS: Final = {"title": 20, "description": 200}  # a longer text is counted at the end of the plot
_SHOWN: Final = 36  # example products
_FAMILIES, _MEMBERS = 8, 9  # largest families that are shown, and products of each
_SIZES: Final = (1, 2, 3, 4, 6, 11, 21, 51, 101)  # families are counted from each of these sizes to the next

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ShownLabel:
    """A label of a product on the page."""

    attribute: str
    value: str
    place: str  # one of PLACES


@dataclass(frozen=True, slots=True)
class ShownProduct:
    """A product on the page."""

    product_id: str
    title: str
    brand: str
    side: Side
    labels: tuple[ShownLabel, ...]
    place: ExampleLocation


@dataclass(frozen=True, slots=True)
class ValueCount:
    """How often a value occurs: in all, by PLACES, and by SIDES."""

    value: str
    n: int
    places: tuple[int, ...]
    sides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttributeCount:
    """The labels of an attribute: in all, by PLACES, and by SIDES; its values, most frequent first."""

    label: str
    n: int
    places: tuple[int, ...]
    sides: tuple[int, ...]
    left_out: int  # products whose label does not count, since the attribute does not apply
    values: tuple[ValueCount, ...]


@dataclass(frozen=True, slots=True)
class ShownFamily:
    """One of the largest families."""

    size: int
    side: Side
    products: tuple[ShownProduct, ...]  # some of it


@dataclass(frozen=True, slots=True)
class FamilySizes:
    """How many families have from `least` to `most` products, and how many products they have."""

    least: int
    most: int
    families: int
    products: int


class Summary:
    """Counts a set; holds the few products that are shown. Memory does not grow with the number of products."""

    def __init__(self, taxonomy: Taxonomy, index: ExampleIndex) -> None:
        classes = sum(len(a.values) for a in taxonomy.attributes)
        self._taxonomy, self._index = taxonomy, index
        self._counts = np.zeros((classes, len(SIDES), len(PLACES)), dtype=np.int64)
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
            int(place): number for number in self._largest if self._sizes[number] > 1 for place in self._some_of(number)
        }
        self._families: dict[int, list[ShownProduct]] = {}
        self._examples: dict[int, tuple[bytes, ShownProduct]] = {}  # of each article type that with the smallest digest

    def _some_of(self, number: int) -> Counts:
        places = np.flatnonzero(self._index.family == self._numbers[number])
        some: Counts = places[np.linspace(0, len(places) - 1, min(_MEMBERS, len(places))).astype(int)]
        return some

    def add(self, batch: LabelledBatch) -> None:
        """Count some products."""
        targets, named = batch.labels.targets, batch.named
        in_title = (named & field_bits(["title"])) > 0
        sides = self._index.side[batch.first : batch.first + len(batch.texts)]
        for side in range(len(SIDES)):
            here = (sides == side)[:, None]
            for place, where in enumerate((in_title, (named > 0) & ~in_title, targets & (named == 0))):
                self._counts[:, side, place] += (where & here).sum(axis=0)
        self.left_out += batch.labels.left_out.sum(axis=0)
        for at, field in enumerate(TEXT_FIELDS):
            if field in self.words:
                counts = self.words[field]
                lengths = [len(texts[at].split()) for texts in batch.texts]
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
        place = batch.first + row
        labels = []
        for at in np.flatnonzero(batch.labels.targets[row]):
            bits = int(batch.named[row, at])
            where = PLACES[0] if bits & field_bits(["title"]) else PLACES[1] if bits else PLACES[2]
            labels.append(ShownLabel(*self._classes[at], where))
        title, brand, _ = batch.texts[row]
        file = self._index.files[self._index.file[place]]
        side = SIDES[self._index.side[place]]
        return ShownProduct(
            product, title, brand, side, tuple(labels), ExampleLocation(file, int(self._index.row[place]))
        )

    def label(self, name: str) -> str:
        """Return what people call the attribute `name`."""
        return self._taxonomy[name].label

    @property
    def labels(self) -> int:
        """How many labels there are."""
        return int(self._counts.sum())

    @property
    def silent(self) -> int:
        """How many labels no text field names."""
        return int(self._counts[:, :, PLACES.index("silent")].sum())

    @property
    def largest_family(self) -> int:
        """Products of the largest family."""
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
        """Return the labels of each attribute, in the taxonomy's order."""
        found, start = [], 0
        for attribute, left_out in zip(self._taxonomy.attributes, self.left_out.tolist(), strict=True):
            part = self._counts[start : start + len(attribute.values)]
            start += len(attribute.values)
            found.append(_attribute_count(attribute, part, left_out))
        return found

    def family_sizes(self) -> list[FamilySizes]:
        """Return how many families there are of each range of sizes that occurs."""
        found = []
        for least, after in zip(_SIZES, (*_SIZES[1:], self.largest_family + 1), strict=True):
            sizes = self._sizes[(self._sizes >= least) & (self._sizes < after)]
            if len(sizes):
                found.append(FamilySizes(least, min(after - 1, self.largest_family), len(sizes), int(sizes.sum())))
        return found

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
        """Return the pictures, of `height` x `width` pixels, of the products shown: product id to ``data:`` URI."""
        families = (product for family in self.largest_families() for product in family.products)
        return thumbnails({p.product_id: p.place for p in (*self.examples(), *families)}, height, width)


def _attribute_count(attribute: Attribute, counts: Counts, left_out: int) -> AttributeCount:
    values = [
        ValueCount(value, int(part.sum()), tuple(part.sum(axis=0).tolist()), tuple(part.sum(axis=1).tolist()))
        for value, part in zip(attribute.value_names, counts, strict=True)
    ]
    return AttributeCount(
        label=attribute.label,
        n=int(counts.sum()),
        places=tuple(counts.sum(axis=(0, 1)).tolist()),
        sides=tuple(counts.sum(axis=(0, 2)).tolist()),
        left_out=left_out,
        values=tuple(sorted(values, key=lambda v: -v.n)),
    )
