"""Which examples make up a labelled set: one of each product, with its family and its side of the split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from tqdm import tqdm

from cma_clip_core.arrays import Bools
from cma_clip_core.catalog.examples import ExampleIndex, Rows, example_files, open_examples, read_examples, read_pixels
from cma_clip_core.catalog.families import FamilyFinder
from cma_clip_core.catalog.label_mentions import TEXT_FIELDS
from cma_clip_core.catalog.labels import LabelReader
from cma_clip_core.catalog.splits import SIDES, sides_of
from cma_clip_core.catalog.unlisted_values import Given, GivenCounter
from cma_clip_core.config import PictureConfig, SelectionConfig
from cma_clip_core.content.paths import AnyPath
from cma_clip_core.errors import DataError
from schemas.taxonomy import Taxonomy

_READ_BYTES: Final = 8 * 2**20  # of pixels, read at a time
_COLUMNS: Final = ("product_id", *TEXT_FIELDS, "labels", "unknown_labels", "image")
SHOWN_WORDS: Final = 100  # unlisted words of an attribute that a scan tells of


@dataclass(frozen=True, slots=True)
class Scan:
    """The examples of a labelled set, in the order of files and rows, and how many others there were, by why."""

    index: ExampleIndex
    superseded: int  # of products that have a newer one
    unlabelled: int  # without any value that counts; on the training side, without a label
    empty: int  # with neither text nor picture: they teach nothing
    labelled: int  # chosen examples with a label
    given: dict[str, Given] = field(default_factory=dict)  # what the catalog gives of each attribute, of all products


def scan_examples(
    folders: Sequence[AnyPath],
    taxonomy: Taxonomy,
    picture: PictureConfig,
    selection: SelectionConfig,
    *,
    progress: bool = False,
) -> Scan:
    """Choose the labelled examples of `folders`, newest first: the first example of a product wins.

    A product whose values are all unlisted is judged on, as an answer that is always wrong, but not learnt from.

    Memory: pictures pass through a few megabytes at a time; a product costs what `FamilyFinder` holds of it, and about
    200 bytes.

    Raises:
        DataError: a folder is missing, a file is broken, a picture is not of the size `picture`, or a label is not in
            the taxonomy.
    """
    files = [path for folder in folders for path in example_files([folder])]
    finder, reader, chooser, counter = FamilyFinder(), LabelReader(taxonomy), _Chooser(), GivenCounter(taxonomy)
    places: list[Rows] = [np.zeros((0, 3), dtype=np.int64)]
    rows_at_a_time = max(1, _READ_BYTES // (picture.height * picture.width * 3))
    with tqdm(total=_count(files) if progress else None, desc="examples", unit="ex", disable=not progress) as bar:
        for number, path in enumerate(files):
            first = 0
            for batch in read_examples([path], columns=_COLUMNS, rows=rows_at_a_time):
                products = batch.column("product_id").to_pylist()
                texts = list(zip(*(batch.column(name).to_pylist() for name in TEXT_FIELDS), strict=True))
                unlisted = batch.column("unknown_labels").to_pylist()
                try:
                    labels = reader.read(batch.column("labels").to_pylist(), unlisted)
                    pixels, present = read_pixels(batch, picture)
                except DataError as error:
                    raise DataError(f"{path}: {error}") from error
                newest = chooser.newest(products)
                counter.add(labels, unlisted, newest)
                keep = chooser.choose(newest, labels.given, present | np.array([any(text) for text in texts]))
                learnt = labels.labelled[keep].any(axis=1)
                finder.add([products[row] for row in keep], [texts[row] for row in keep], pixels[keep], present[keep])
                places.append(np.column_stack([np.full(len(keep), number), first + keep, learnt]))
                first += batch.num_rows
                bar.update(batch.num_rows)
    families = finder.families(progress=progress)
    where, side = np.concatenate(places), sides_of(families, selection)
    used = (where[:, 2] > 0) | (side != SIDES.index("train"))
    where, side, families = where[used], side[used], families[used]
    index = ExampleIndex(files, where[:, 0].astype(np.int32), where[:, 1], side=side, family=families)
    unlabelled = chooser.unlabelled + int((~used).sum())
    labelled = int(where[:, 2].sum())
    return Scan(index, chooser.superseded, unlabelled, chooser.empty, labelled, counter.result(SHOWN_WORDS))


class _Chooser:
    """Says which examples are taken, and counts the others."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.superseded = self.unlabelled = self.empty = 0

    def newest(self, products: Sequence[str]) -> Bools:
        """Return which of n examples, by their ids, are the first of their product [n]."""
        found = np.zeros(len(products), dtype=np.bool_)
        for row, product in enumerate(products):
            key = hashlib.blake2b(product.encode(), digest_size=12).digest()
            if key in self._seen:
                self.superseded += 1
            else:
                self._seen.add(key)
                found[row] = True
        return found

    def choose(self, newest: Bools, given: Bools, present: Bools) -> Rows:
        """Return the rows taken of n examples: those that are `newest` [n], have values [n, K], and text or picture [n]."""
        labelled = given.any(axis=1)
        self.unlabelled += int((newest & ~labelled).sum())
        self.empty += int((newest & labelled & ~present).sum())
        return np.flatnonzero(newest & labelled & present)


def _count(files: Sequence[AnyPath]) -> int:
    rows = 0
    for path in files:
        with open_examples(path) as file:
            rows += file.metadata.num_rows
    return rows
