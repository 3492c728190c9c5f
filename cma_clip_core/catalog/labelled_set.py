"""Choice of the examples of a labelled set: one for each product, with its family and its side of the split."""

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

_READ_BYTES: Final = 8 * 2**20  # pixels read at a time
_COLUMNS: Final = ("product_id", *TEXT_FIELDS, "labels", "unknown_labels", "image")
SHOWN_WORDS: Final = 100  # unlisted words of an attribute that a scan reports


@dataclass(frozen=True, slots=True)
class Scan:
    """The examples of a labelled set, in the order of files and rows, and the number of rejected ones by reason."""

    index: ExampleIndex
    superseded: int  # examples of products that have a newer one
    unlabelled: int  # examples without any value that counts; on the training side, examples without a label
    empty: int  # examples with neither text nor picture, which teach nothing
    labelled: int  # chosen examples with a label
    given: dict[str, Given] = field(default_factory=dict)  # the catalog's values by attribute, over all products


def scan_examples(
    folders: Sequence[AnyPath],
    taxonomy: Taxonomy,
    picture: PictureConfig,
    selection: SelectionConfig,
    *,
    progress: bool = False,
) -> Scan:
    """Choose the labelled examples of `folders`, newest first: the first example of a product wins.

    A product whose values are all unlisted is used to judge models, where every answer is wrong, but not to train them.

    Memory: pictures pass through a few megabytes at a time. A product costs about 200 bytes, plus what `FamilyFinder`
    keeps of it.

    Raises:
        DataError: a folder is missing, a file is broken, a picture does not have the size `picture`, or a label is not
            in the taxonomy.
    """
    files = [path for folder in folders for path in example_files([folder])]
    finder, reader, chooser, counter = FamilyFinder(), LabelReader(taxonomy), _Chooser(), GivenCounter(taxonomy)
    entries: list[Rows] = [np.zeros((0, 3), dtype=np.int64)]  # file, row, 1 if it has a label
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
                has_label = labels.labelled[keep].any(axis=1)
                finder.add([products[row] for row in keep], [texts[row] for row in keep], pixels[keep], present[keep])
                entries.append(np.column_stack([np.full(len(keep), number), first + keep, has_label]))
                first += batch.num_rows
                bar.update(batch.num_rows)
    families = finder.families(progress=progress)
    chosen, side = np.concatenate(entries), sides_of(families, selection)
    used = (chosen[:, 2] > 0) | (side != SIDES.index("train"))
    chosen, side, families = chosen[used], side[used], families[used]
    index = ExampleIndex(files, chosen[:, 0].astype(np.int32), chosen[:, 1], side=side, family=families)
    unlabelled = chooser.unlabelled + int((~used).sum())
    labelled = int(chosen[:, 2].sum())
    return Scan(index, chooser.superseded, unlabelled, chooser.empty, labelled, counter.result(SHOWN_WORDS))


class _Chooser:
    """Filter of examples that counts the rejected ones by reason."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.superseded = self.unlabelled = self.empty = 0

    def newest(self, products: Sequence[str]) -> Bools:
        """Return the mask [n] of examples, given by their product ids, that are the first of their product."""
        is_first = np.zeros(len(products), dtype=np.bool_)
        for row, product in enumerate(products):
            key = hashlib.blake2b(product.encode(), digest_size=12).digest()
            if key in self._seen:
                self.superseded += 1
            else:
                self._seen.add(key)
                is_first[row] = True
        return is_first

    def choose(self, newest: Bools, given: Bools, present: Bools) -> Rows:
        """Return the rows of the chosen examples.

        Args:
            newest: [n], True where the example is the newest of its product.
            given: [n, K], True where the catalog gives a value.
            present: [n], True where the example has a text or a picture.
        """
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
