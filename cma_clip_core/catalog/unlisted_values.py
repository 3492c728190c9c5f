"""Counts of the catalog's values: listed values, values outside the taxonomy, and gaps. Loads no torch.

Letters of shapes: n products, K attributes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from cma_clip_core.arrays import Bools
from cma_clip_core.catalog.labels import LabelRows, Pairs
from schemas.taxonomy import Taxonomy

WORDS: Final = 20_000  # distinct words counted for an attribute, so that memory does not grow with the catalog
SHOWN: Final = 200  # characters kept of a word


@dataclass(frozen=True, slots=True)
class UnlistedWord:
    """A value of the catalog that the taxonomy does not list."""

    word: str  # the shop's word, stripped; a long one is cut
    products: int
    nearest: str | None  # the most similar listed value
    several: tuple[str, ...]  # the listed values that it names, if the catalog gives a single-valued attribute several


@dataclass(frozen=True, slots=True)
class Given:
    """Counts of the products that one attribute applies to, by the kind of value that the catalog gives."""

    listed: int = 0
    unlisted: int = 0  # unlisted values only
    gaps: int = 0  # no value at all
    words: int = 0  # distinct unlisted words over all products, at most `WORDS`
    more: int = 0  # products with words beyond these
    commonest: tuple[UnlistedWord, ...] = ()


class GivenCounter:
    """Counter of products by attribute and kind of value, and of the unlisted words."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._counts = np.zeros((3, len(taxonomy.names)), dtype=np.int64)
        self._words: dict[str, Counter[str]] = {name: Counter() for name in taxonomy.names}
        self._more: Counter[str] = Counter()

    def add(self, labels: LabelRows, unlisted: Iterable[Pairs], chosen: Bools) -> None:
        """Count some products.

        Args:
            labels: labels of n products.
            unlisted: their values outside the taxonomy.
            chosen: [n], True for the products to count.
        """
        for kind, mask in enumerate((labels.labelled, labels.unlisted, labels.gaps)):
            self._counts[kind] += mask[chosen].sum(axis=0)
        for pairs, counts in zip(unlisted, chosen.tolist(), strict=True):
            if counts:
                for name, words in pairs:
                    self._add_words(name, words)

    def _add_words(self, name: str, words: Iterable[str]) -> None:
        counter = self._words.get(name)
        if counter is None:
            return  # not an attribute of this taxonomy
        for word in {word.strip()[:SHOWN] for word in words}:
            if word in counter or len(counter) < WORDS:
                counter[word] += 1
            else:
                self._more[name] += 1

    def result(self, shown: int) -> dict[str, Given]:
        """Return the counts by attribute, each with its `shown` commonest unlisted words."""
        given = {}
        for k, attribute in enumerate(self._taxonomy.attributes):
            words = self._words[attribute.name]
            commonest = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:shown]
            listed, unlisted, gaps = self._counts[:, k].tolist()
            given[attribute.name] = Given(
                listed=listed,
                unlisted=unlisted,
                gaps=gaps,
                words=len(words),
                more=self._more[attribute.name],
                commonest=tuple(
                    UnlistedWord(word, n, attribute.nearest(word), attribute.several(word)) for word, n in commonest
                ),
            )
        return given
