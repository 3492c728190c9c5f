"""Spellings of one value: Grey and gray, T-Shirt and T-shirts, Multi-Color and Multicolour."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from schemas.characters import fold
from schemas.taxonomy import Attribute
from schemas.word_lists import UsualAttribute, load_usual_attributes

# British endings and words, with their American form.
_AMERICAN: Final = {
    "grey": "gray", "colour": "color", "coloured": "colored", "jewellery": "jewelry", "fibre": "fiber", "centre": "center",
    "aluminium": "aluminum", "moisturiser": "moisturizer", "pyjama": "pajama", "check": "check", "checked": "check",
    "checkered": "check", "chequered": "check", "tshirt": "tshirt", "tee": "tshirt",
}  # fmt: skip
_PARTS: Final = re.compile(r"[^\W_]+")
_NOT_PLURAL: Final = frozenset(
    {"short", "shorts", "glass", "glasses", "flats", "boots", "briefs", "trunks", "less", "dress"}
)
_LONGEST: Final = 60  # characters of a word that is compared; longer ones are texts


@functools.lru_cache(100_000)
def spelling_key(word: str) -> str:
    """Return a key that spellings of one value share: without case, punctuation and plural, in American spelling."""
    folded = fold(word)
    if len(folded) > _LONGEST or any(sign in folded for sign in "/&+"):
        return folded
    parts = [_AMERICAN.get(stem, stem) for part in _PARTS.findall(folded) for stem in [_singular(part)]]
    key = "".join(parts)
    for british in ("colour", "grey", "fibre"):
        key = key.replace(british, _AMERICAN[british])
    return _AMERICAN.get(key, key).replace("colored", "color") or folded


def _singular(word: str) -> str:
    if word in _NOT_PLURAL or len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "xes", "sses")) else word[:-1]


@dataclass(frozen=True, slots=True)
class DraftValue:
    """A value with its spellings, most frequent first, and the number of products that have it."""

    name: str
    aliases: tuple[str, ...]
    products: int


def merge_spellings(counts: Mapping[str, int], usual: UsualAttribute | None = None) -> dict[str, DraftValue]:
    """Return the values by each of their spellings.

    Args:
        counts: products by word, as the shop writes it.
        usual: attribute whose known aliases count as spellings, too.
    """
    synonyms = usual_words(usual) if usual else {}
    groups: dict[str, Counter[str]] = {}
    for word, count in counts.items():
        key = spelling_key(word)
        known = synonyms.get(fold(word)) or synonyms.get(key)
        groups.setdefault(f"={known}" if known else key, Counter())[word] += count
    merged: dict[str, DraftValue] = {}
    for spellings in groups.values():
        ordered = sorted(spellings, key=lambda word: (-spellings[word], word))
        aliases: dict[str, str] = {}
        for word in ordered:
            aliases.setdefault(fold(word), word)
        name, *others = aliases.values()
        value = DraftValue(name, tuple(others), sum(spellings.values()))
        merged |= dict.fromkeys(ordered, value)
    return merged


@functools.cache
def _usual_words(name: str) -> dict[str, str]:
    usual = next(a for a in load_usual_attributes() if a.name == name)
    words = {fold(word): value.name for value in usual.values for word in (value.name, *value.aliases)}
    by_key: dict[str, str] = {}
    for word, value in words.items():
        by_key.setdefault(spelling_key(word), value)
    return by_key | words


def usual_words(usual: UsualAttribute) -> dict[str, str]:
    """Return the value's name by each folded word and spelling key of a usual attribute."""
    return _usual_words(usual.name)


def usual_attribute(column: str) -> UsualAttribute | None:
    """Return the usual attribute that a column's name means, such as color for "Farbe" or "baseColour"; None if none."""
    plain = re.sub(r"\[[^\]]{0,100}\](\.value)?|\(product\.metafields[^)]{0,200}\)", "", column[:300])
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain.rsplit(".", 1)[-1])
    text = " ".join(_PARTS.findall(text.replace("_", " "))).casefold()
    words = {text, text.replace(" ", "")}
    for usual in load_usual_attributes():
        if words & {name.casefold() for name in usual.names}:
            return usual
    return None


def aliases_of(attribute: Attribute) -> dict[str, str]:
    """Return the value's name by each folded name and alias of a taxonomy's attribute."""
    return {fold(word): value.name for value in attribute.values for word in (value.name, *value.aliases)}
