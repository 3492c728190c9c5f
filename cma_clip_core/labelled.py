"""Which examples make up a labelled set: one of each product, with its family and its side of the split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

from cma_clip_core.config import PictureConfig, SelectionConfig
from cma_clip_core.errors import DataError
from cma_clip_core.examples import Bools, ExampleIndex, Rows, example_files, open_examples, read_examples, read_pixels
from cma_clip_core.families import FamilyFinder
from cma_clip_core.labels import LabelReader
from cma_clip_core.places import Place
from cma_clip_core.splits import sides_of
from cma_clip_core.spoken import TEXT_FIELDS
from schemas.taxonomy import Taxonomy

_READ_BYTES: Final = 8 * 2**20  # of pixels, read at a time
_COLUMNS: Final = ("product_id", *TEXT_FIELDS, "labels", "image")


@dataclass(frozen=True, slots=True)
class Scan:
    """The examples of a labelled set, in the order of files and rows, and how many others there were, by why."""

    index: ExampleIndex
    superseded: int  # of products that have a newer one
    unlabelled: int  # without any label that counts
    empty: int  # with neither text nor picture: they teach nothing


def scan_examples(
    folders: Sequence[Place],
    taxonomy: Taxonomy,
    picture: PictureConfig,
    selection: SelectionConfig,
    *,
    progress: bool = False,
) -> Scan:
    """Choose the labelled examples of `folders`, newest first: the first example of a product wins.

    Memory: pictures pass through a few megabytes at a time; a product costs what `FamilyFinder` holds of it, and about
    200 bytes.

    Raises:
        DataError: a folder is missing, a file is broken, a picture is not of the size `picture`, or a label is not in
            the taxonomy.
    """
    files = [path for folder in folders for path in example_files([folder])]
    finder, reader, chooser = FamilyFinder(), LabelReader(taxonomy), _Chooser()
    places: list[Rows] = [np.zeros((0, 2), dtype=np.int64)]
    rows_at_a_time = max(1, _READ_BYTES // (picture.height * picture.width * 3))
    with tqdm(total=_count(files) if progress else None, desc="examples", unit="ex", disable=not progress) as bar:
        for number, path in enumerate(files):
            first = 0
            for batch in read_examples([path], columns=_COLUMNS, rows=rows_at_a_time):
                products = batch.column("product_id").to_pylist()
                texts = list(zip(*(batch.column(name).to_pylist() for name in TEXT_FIELDS), strict=True))
                try:
                    labels = reader.read(batch.column("labels").to_pylist())
                    pixels, present = read_pixels(batch, picture)
                except DataError as error:
                    raise DataError(f"{path}: {error}") from error
                keep = chooser.choose(products, labels.labelled, present | np.array([any(text) for text in texts]))
                finder.add([products[row] for row in keep], [texts[row] for row in keep], pixels[keep], present[keep])
                places.append(np.column_stack([np.full(len(keep), number), first + keep]))
                first += batch.num_rows
                bar.update(batch.num_rows)
    families = finder.families(progress=progress)
    where = np.concatenate(places)
    index = ExampleIndex(
        files, where[:, 0].astype(np.int32), where[:, 1], side=sides_of(families, selection), family=families
    )
    return Scan(index, chooser.superseded, chooser.unlabelled, chooser.empty)


class _Chooser:
    """Says which examples are taken, and counts the others."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.superseded = self.unlabelled = self.empty = 0

    def choose(self, products: Sequence[str], labelled: Bools, present: Bools) -> Rows:
        """Return the rows taken of n examples: ids, labels there are [n, K], and whether there is text or picture [n]."""
        keep = []
        for row, product in enumerate(products):
            key = hashlib.blake2b(product.encode(), digest_size=12).digest()
            if key in self._seen:
                self.superseded += 1
                continue
            self._seen.add(key)
            if not labelled[row].any():
                self.unlabelled += 1
            elif not present[row]:
                self.empty += 1
            else:
                keep.append(row)
        return np.array(keep, dtype=np.int64)


def _count(files: Sequence[Place]) -> int:
    rows = 0
    for path in files:
        with open_examples(path) as file:
            rows += file.metadata.num_rows
    return rows
