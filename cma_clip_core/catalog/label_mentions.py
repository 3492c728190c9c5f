"""Which labels a product's text names: those a text search finds without any model; and texts without these names.

A label is *spoken* where all words of its value's name, or of one of its aliases, are in the text, in any order and
singular or plural; else it is *silent*, and only a picture, or an understanding of the text, can give it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from schemas.taxonomy import Taxonomy

TEXT_FIELDS: Final = ("title", "brand", "description")
Fields = npt.NDArray[np.uint8]

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> frozenset[str]:
    """Return the words of `text` as they are compared: case folded, a plural's s left out."""
    return frozenset(_singular(word) for word in _WORD.findall(text.casefold()))


@functools.lru_cache(maxsize=200_000)  # bounded: a catalog's ids and typing errors never end
def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def field_bits(fields: Iterable[str]) -> int:
    """Return a set of text fields as the bits of a number: 1 title, 2 brand, 4 description."""
    return sum(1 << TEXT_FIELDS.index(field) for field in set(fields))


class SpokenFinder:
    """Finds in which fields of a product's text each of its labels is named. Loads no torch."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._names: list[tuple[frozenset[str], ...]] = [
            tuple(words for name in (value.name, *value.aliases) if (words := words_of(name)))
            for attribute in taxonomy.attributes
            for value in attribute.values
        ]

    def find(self, texts: Sequence[Sequence[str]], targets: npt.NDArray[np.bool_]) -> Fields:
        """Return the fields that name each label.

        Args:
            texts: for each product its title, brand and description.
            targets: [n, C], True at the values a product has; C classes of all attributes, in the taxonomy's order.

        Returns:
            [n, C] uint8: the bits of `field_bits`; 0 where no field names the value, or the product has it not.
        """
        found = np.zeros(targets.shape, dtype=np.uint8)
        for row, fields in enumerate(texts):
            classes = np.flatnonzero(targets[row])
            if not len(classes):
                continue
            for bit, text in enumerate(fields):
                words = words_of(text or "")
                for at in classes if words else ():
                    if any(name <= words for name in self._names[at]):
                        found[row, at] |= 1 << bit
        return found

    def leave_out(
        self, texts: Iterable[Sequence[str | None]], chosen: npt.NDArray[np.bool_]
    ) -> list[tuple[str | None, ...]]:
        """Return texts without the words that name some labels, wherever they stand: these labels are silent then.

        Args:
            texts: for each product its title, brand and description.
            chosen: [n, C], True at the values whose names are left out.
        """
        return [
            tuple(self._without(text or "", classes) for text in fields) if len(classes) else tuple(fields)
            for fields, classes in zip(texts, map(np.flatnonzero, chosen), strict=True)
        ]

    def _without(self, text: str, classes: npt.NDArray[np.int64]) -> str:
        words = words_of(text)
        named = [name for at in classes for name in self._names[at] if name <= words]
        if not named:
            return text
        gone = frozenset().union(*named)
        left = _WORD.sub(lambda word: "" if _singular(word[0].casefold()) in gone else word[0], text)
        return " ".join(left.split()) if _WORD.search(left) else ""  # as clean text is: without words, none at all
