"""Product families: products so similar that a model must not be trained on one and judged on another.

Two products are linked in either of these cases:

* they have the same brand and near-duplicate texts (`cma_clip_core.catalog.near_texts`);
* they have near-duplicate pictures (`cma_clip_core.catalog.near_pictures`).

A family is a set of products connected by links.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cma_clip_core.arrays import Integers, Pixels
from cma_clip_core.catalog.linked_groups import linked_groups
from cma_clip_core.catalog.near_pictures import NearPictures
from cma_clip_core.catalog.near_texts import NearTexts

# Version of the rules that link products and choose the products of a labelled set. Increase it with every change.
RULES: Final = 2


class FamilyFinder:
    """Collector of products, in any order, that then assigns each to its family.

    Memory: 24 bytes a product, plus what `NearTexts` and `NearPictures` keep of distinct texts and pictures. The peak
    on a real catalog (texts of 100 words, nearly all pictures distinct) was 7 kB a product, while groups were
    computed.
    """

    def __init__(self) -> None:
        self._texts, self._pictures = NearTexts(), NearPictures()
        self._digests: list[Integers] = []
        self._text_of: list[Integers] = []
        self._picture_of: list[Integers] = []

    def add(
        self,
        products: Sequence[str],
        texts: Sequence[tuple[str, str, str]],
        pixels: Pixels,
        present: npt.NDArray[np.bool_],
    ) -> None:
        """Add some products.

        Args:
            products: their ids.
            texts: title, brand and description of each.
            pixels: [n, H, W, 3], their pictures; all calls must use the same size.
            present: [n], False where there is no picture.
        """
        digests = [hashlib.blake2b(product.encode(), digest_size=8).digest() for product in products]
        self._digests.append(np.array([int.from_bytes(d, signed=True) for d in digests], dtype=np.int64))
        self._text_of.append(self._texts.add(texts))
        self._picture_of.append(self._pictures.add(pixels, present))

    def families(self, *, progress: bool = False) -> Integers:
        """Return the family [N] of each product, in the order they were added.

        A family's number is the smallest digest of its products' ids. It depends neither on the order of the products
        nor on their batches.
        """
        if not self._digests:
            return np.zeros(0, dtype=np.int64)
        digests, text_of, picture_of = map(np.concatenate, (self._digests, self._text_of, self._picture_of))
        texts, pictures = self._texts.groups(progress=progress), self._pictures.groups(progress=progress)
        # The graph's nodes are products, groups of texts and groups of pictures. A family is a connected component.
        products, first_picture = len(digests), len(digests) + len(texts)
        nodes = first_picture + len(pictures)
        with_text, with_picture = np.flatnonzero(text_of >= 0), np.flatnonzero(picture_of >= 0)
        linked_products = np.concatenate([with_text, with_picture])
        linked_to = np.concatenate(
            [products + texts[text_of[with_text]], first_picture + pictures[picture_of[with_picture]]]
        )
        count, component = linked_groups(nodes, np.column_stack([linked_products, linked_to]))
        smallest = np.full(count, np.iinfo(np.int64).max)
        np.minimum.at(smallest, component[:products], digests)
        families: Integers = smallest[component[:products]]
        return families
