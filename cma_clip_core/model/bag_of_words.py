"""Bag of words: the TF-IDF weights of a text's words and pairs of words, computed without scikit-learn.

The weights are those of scikit-learn's TfidfVectorizer with `ngram_range=(1, 2)` and `sublinear_tf=True`. A test compares them.

Letters of shapes: B batch, V terms of the vocabulary, N terms of the text with the most.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cma_clip_core.arrays import Floats

TermIds = npt.NDArray[np.int64]
Terms = tuple[TermIds, Floats]  # ids of a text's terms, rising, and their weights

_WORD: Final = re.compile(r"(?u)\b\w\w+\b")  # scikit-learn's
_LEAST_TEXTS: Final = 2  # texts that a term must occur in: a term of one text alone says nothing about others
MOST_TERMS: Final = 100_000  # bounds the size of a model


def _terms_of(text: str) -> list[str]:
    words = _WORD.findall(text.lower())
    return words + [f"{first} {second}" for first, second in itertools.pairwise(words)]


class BagOfWords:
    """A vocabulary of words and pairs of words, with the inverse document frequency of each."""

    def __init__(self, terms: Sequence[str], idf: Floats) -> None:
        """Create it from its terms, and their inverse document frequencies [V]."""
        self.terms, self.idf = tuple(terms), idf
        self._ids = {term: number for number, term in enumerate(self.terms)}

    @classmethod
    def fit(cls, texts: Iterable[str], most: int = MOST_TERMS) -> BagOfWords:
        """Return the vocabulary of some texts: the terms that at least two of them share, at most `most`, sorted.

        If there are more, those that occur in the most texts are kept.
        """
        counts: Counter[str] = Counter()
        number = 0
        for text in texts:
            counts.update(set(_terms_of(text)))
            number += 1
        shared = [term for term, n in counts.items() if n >= _LEAST_TEXTS]
        terms = sorted(sorted(shared, key=lambda term: (-counts[term], term))[:most])
        found_in = np.array([counts[term] for term in terms], dtype=np.float64)
        return cls(terms, (np.log((1 + number) / (1 + found_in)) + 1).astype(np.float32))

    def __len__(self) -> int:
        return len(self.terms)

    def encode(self, text: str) -> Terms:
        """Return the ids of the terms of `text`, rising, and their TF-IDF weights, scaled to length 1."""
        counts = Counter(number for term in _terms_of(text) if (number := self._ids.get(term)) is not None)
        ids = np.array(sorted(counts), dtype=np.int64)
        frequencies = np.array([counts[number] for number in ids.tolist()], dtype=np.float32)
        weights = (1 + np.log(frequencies)) * self.idf[ids]
        length = np.sqrt(np.sum(weights**2))
        return ids, np.asarray(weights / length if len(ids) else weights, dtype=np.float32)


def pad_terms(rows: Sequence[Terms]) -> tuple[TermIds, Floats]:
    """Return the terms of some texts as arrays [B, N] of ids and weights; padding has the weight 0."""
    width = max((len(ids) for ids, _ in rows), default=0) or 1
    ids, weights = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), np.float32)
    for row, (own, own_weights) in enumerate(rows):
        ids[row, : len(own)], weights[row, : len(own)] = own, own_weights
    return ids, weights
