"""Labels that a product's text names, and texts with those names removed.

A label is *spoken* if the text contains all words of its value's name or of one of its aliases, in any order, singular
or plural. A text search finds such a label without any model. Otherwise the label is *silent*: only a picture, or an
understanding of the text, can give it.
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
    """Return the words of `text` for comparison: case-folded, without the plural s."""
    return frozenset(_singular(word) for word in _WORD.findall(text.casefold()))


@functools.lru_cache(maxsize=200_000)  # bounded, because a catalog has any number of ids and typing errors
def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def field_bits(fields: Iterable[str]) -> int:
    """Return a set of text fields as a bit mask: 1 title, 2 brand, 4 description."""
    return sum(1 << TEXT_FIELDS.index(field) for field in set(fields))


class SpokenFinder:
    """Search for labels in the fields of a product's text. Loads no torch."""

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
            [n, C] uint8: the bit mask of `field_bits`; 0 where no field names the value, or the product lacks the
            value.
        """
        bits = np.zeros(targets.shape, dtype=np.uint8)
        for row, fields in enumerate(texts):
            classes = np.flatnonzero(targets[row])
            if not len(classes):
                continue
            for bit, text in enumerate(fields):
                words = words_of(text or "")
                for column in classes if words else ():
                    if any(name <= words for name in self._names[column]):
                        bits[row, column] |= 1 << bit
        return bits

    def leave_out(
        self, texts: Iterable[Sequence[str | None]], chosen: npt.NDArray[np.bool_]
    ) -> list[tuple[str | None, ...]]:
        """Return texts without any word that names the chosen labels, so that these labels become silent.

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
        named = [name for column in classes for name in self._names[column] if name <= words]
        if not named:
            return text
        removed = frozenset().union(*named)
        rest = _WORD.sub(lambda word: "" if _singular(word[0].casefold()) in removed else word[0], text)
        return " ".join(rest.split()) if _WORD.search(rest) else ""  # like clean text, which is empty without words
