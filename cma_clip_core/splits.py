"""The split into training, validation and test sides, by product family.

A family is what a shop sells in several colours or prints: one brand and one description, colours aside. All of a
family is on one side, so that a model is not judged on the sibling of what it was trained on. The split depends on a
product's own texts alone, so it is the same for every model, machine and day.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from cma_clip_core.config import SelectionConfig

Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")

MIN_DESCRIPTION = 20  # letters and digits; shorter ones ("NA", "Style Note") say nothing of the product

COLOURS = frozenset(
    re.findall(
        r"\w+",
        """
        amber aqua beige black blue bronze brown burgundy camel champagne charcoal chocolate cobalt coffee
        copper coral cream crimson cyan dark ecru emerald fluorescent fuchsia gold golden gray green grey
        indigo ivory jade khaki lavender lemon light lilac lime magenta mahogany maroon mauve melange
        metallic mint multi multicolor multicolour mushroom mustard navy neon nude ochre off olive orange
        peach pink plum purple red rose ruby rust salmon sand scarlet sea silver skin steel tan taupe teal
        terracotta turquoise violet white wine yellow
        """,
    )
)


def family_key(title: str, brand: str, description: str) -> str:
    """Return what the products of one family have in common.

    It is brand and description, or, where the description says nothing, brand and title; in either, case, punctuation
    and colour words are left out.
    """
    words = _words(description)
    if sum(map(len, words)) < MIN_DESCRIPTION:
        words = _words(title)
    return " ".join([*_words(brand), "|", *words])


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"\w+", text.casefold()) if word not in COLOURS]


def side_of(family: str, config: SelectionConfig) -> Side:
    """Return the side that a family is on."""
    digest = hashlib.blake2b(family.encode(), digest_size=8).digest()
    place = int.from_bytes(digest) / 2**64
    if place < config.test_share:
        return "test"
    return "validation" if place < config.test_share + config.validation_share else "train"
