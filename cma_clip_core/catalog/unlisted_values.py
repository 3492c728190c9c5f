"""Counts of what the catalog gives: listed values, values outside the taxonomy, and gaps. Loads no torch.

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

WORDS: Final = 20_000  # different words of an attribute that are told apart: memory does not grow with the catalog
SHOWN: Final = 200  # characters of a word that are kept


@dataclass(frozen=True, slots=True)
class UnlistedWord:
    """A value of the catalog that the taxonomy does not list."""

    word: str  # the shop's, blanks at the ends left out; a long one is cut
    products: int
    nearest: str | None  # the listed value that resembles it most
    several: tuple[str, ...]  # the listed values that it names, where a single-valued attribute is given several


@dataclass(frozen=True, slots=True)
class Given:
    """What the catalog gives of one attribute, by products that it applies to."""

    listed: int = 0
    unlisted: int = 0  # unlisted values alone
    gaps: int = 0  # no value at all
    words: int = 0  # different unlisted words, by whatever product; `WORDS` at most
    more: int = 0  # products with words beyond these
    commonest: tuple[UnlistedWord, ...] = ()


class GivenCounter:
    """Counts products by what the catalog gives of each attribute, and the words that are not listed."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._counts = np.zeros((3, len(taxonomy.names)), dtype=np.int64)
        self._words: dict[str, Counter[str]] = {name: Counter() for name in taxonomy.names}
        self._more: Counter[str] = Counter()

    def add(self, labels: LabelRows, unlisted: Iterable[Pairs], chosen: Bools) -> None:
        """Count some products.

        Args:
            labels: of n products.
            unlisted: their values outside the taxonomy.
            chosen: [n], which of them count.
        """
        for at, found in enumerate((labels.labelled, labels.unlisted, labels.gaps)):
            self._counts[at] += found[chosen].sum(axis=0)
        for pairs, counts in zip(unlisted, chosen.tolist(), strict=True):
            if counts:
                for name, words in pairs:
                    self._add_words(name, words)

    def _add_words(self, name: str, words: Iterable[str]) -> None:
        found = self._words.get(name)
        if found is None:
            return  # of an attribute that this taxonomy has not
        for word in {word.strip()[:SHOWN] for word in words}:
            if word in found or len(found) < WORDS:
                found[word] += 1
            else:
                self._more[name] += 1

    def result(self, shown: int) -> dict[str, Given]:
        """Return what was counted, by attribute, each with its `shown` commonest unlisted words."""
        found = {}
        for k, attribute in enumerate(self._taxonomy.attributes):
            words = self._words[attribute.name]
            commonest = sorted(words.items(), key=lambda item: (-item[1], item[0]))[:shown]
            listed, unlisted, gaps = self._counts[:, k].tolist()
            found[attribute.name] = Given(
                listed=listed,
                unlisted=unlisted,
                gaps=gaps,
                words=len(words),
                more=self._more[attribute.name],
                commonest=tuple(
                    UnlistedWord(word, n, attribute.nearest(word), attribute.several(word)) for word, n in commonest
                ),
            )
        return found
