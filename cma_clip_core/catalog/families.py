"""Product families: products that are so like each other that a model must not be judged on one, trained on another.

Two products are linked where their brands are the same and their texts near-same (`cma_clip_core.catalog.near_texts`), or where
their pictures are near-same (`cma_clip_core.catalog.near_pictures`). A family is all that links hold together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from cma_clip_core.arrays import Pixels
from cma_clip_core.catalog.near_pictures import NearPictures
from cma_clip_core.catalog.near_texts import NearTexts, Numbers

# Counted up with every change of what is linked, or of which products are in a set: it says by which rules it was made.
RULES: Final = 2


class FamilyFinder:
    """Takes products one after the other, in any order, then says which are of one family.

    Memory: 24 bytes a product, and what `NearTexts` and `NearPictures` hold of distinct texts and pictures. Measured on
    a real catalog (texts of 100 words, nearly all pictures distinct): 7 kB a product at the peak, while groups are found.
    """

    def __init__(self) -> None:
        self._texts, self._pictures = NearTexts(), NearPictures()
        self._digests: list[Numbers] = []
        self._text_of: list[Numbers] = []
        self._picture_of: list[Numbers] = []

    def add(
        self,
        products: Sequence[str],
        texts: Sequence[tuple[str, str, str]],
        pixels: Pixels,
        present: npt.NDArray[np.bool_],
    ) -> None:
        """Take some products.

        Args:
            products: their ids.
            texts: title, brand and description of each.
            pixels: [n, H, W, 3], their pictures, of one size in all calls.
            present: [n], False where there is no picture.
        """
        digests = [hashlib.blake2b(product.encode(), digest_size=8).digest() for product in products]
        self._digests.append(np.array([int.from_bytes(d, signed=True) for d in digests], dtype=np.int64))
        self._text_of.append(self._texts.add(texts))
        self._picture_of.append(self._pictures.add(pixels, present))

    def families(self, *, progress: bool = False) -> Numbers:
        """Return the family [N] of each product, in the order they were taken.

        A family's number is the smallest digest of its products' ids: it depends neither on the order of products nor
        on the batches they came in.
        """
        if not self._digests:
            return np.zeros(0, dtype=np.int64)
        digests, text_of, picture_of = map(np.concatenate, (self._digests, self._text_of, self._picture_of))
        texts, pictures = self._texts.groups(progress=progress), self._pictures.groups(progress=progress)
        # One graph of products, groups of texts and groups of pictures: a family is a connected part of it.
        products, first_picture = len(digests), len(digests) + len(texts)
        nodes = first_picture + len(pictures)
        with_text, with_picture = np.flatnonzero(text_of >= 0), np.flatnonzero(picture_of >= 0)
        one = np.concatenate([with_text, with_picture])
        other = np.concatenate(
            [products + texts[text_of[with_text]], first_picture + pictures[picture_of[with_picture]]]
        )
        graph = sparse.coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(nodes, nodes))
        count, part = connected_components(graph, directed=False)
        smallest = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(smallest, part[:products], digests)
        families: Numbers = smallest[part[:products]]
        return families
