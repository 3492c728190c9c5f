"""Normal form of a shop's words, for comparing labels. Every pattern runs in linear time."""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from typing import Final

# Control characters except white space; soft hyphen; zero-width, bidirectional and invisible marks; variation
# selectors; byte order mark; tags; lone surrogates, which no file can hold.
INVISIBLE: Final = re.compile(
    "\x1b\\[[0-9;]{0,20}[A-Za-z]|"  # colours of a terminal
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffd\U000e0000-\U000e0fff\ud800-\udfff]"
)
MARKS: Final = re.compile("([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4})"
                          "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")  # fmt: skip
_HUGE_REFERENCE: Final = re.compile(
    r"&#[xX]?[0-9A-Fa-f]{9,};?"
)  # beyond all characters; int() refuses more than 4,300 digits
_TWICE: Final = 2  # times that entities are decoded: a shop's export encodes once, and a feed made from it once more
_DASHES: Final = dict.fromkeys(
    map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\u02d7\ufe58\ufe63\uff0d"), "-"
)
_QUOTES: Final = dict.fromkeys(
    map(ord, "\u2018\u2019\u201a\u201b\u2032\u02b9\u02bb\u02bc\u02bd\u0060\u00b4\uff07"), "'"
)
_DOUBLE_QUOTES: Final = dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb"), '"')
_LIKE: Final = _DASHES | _QUOTES | _DOUBLE_QUOTES
_SHORT: Final = 100  # maximum characters of a label that is cached
_WHOLE_NUMBER: Final = re.compile(r"([+-]?[0-9]{1,300})[.,]0{1,2}")  # not 1.000, which is a thousand in some countries


def fold(text: str) -> str:
    """Return the form of `text` in which labels are compared.

    * Entities are decoded, characters are normalised (NFKC), and invisible ones are removed.
    * All dashes become one kind; so do all apostrophes and all quotes.
    * White space is collapsed and stripped, a final dot is removed, and case is folded.
    * A whole number loses its ``.0``.
    """
    return _fold(text) if len(text) > _SHORT else _fold_short(text)


def _composed(text: str) -> str:
    """Return `text` in NFKC, with long runs of combining marks cut: they have no meaning and take quadratic time."""
    return text if text.isascii() else unicodedata.normalize("NFKC", MARKS.sub(r"\1", text))


def _fold(text: str) -> str:
    for _ in range(_TWICE if "&" in text else 0):
        text = html.unescape(_HUGE_REFERENCE.sub(" ", text))
    # Translate before NFKC, because it turns a lone accent into a blank and a mark. Translate again after it, because
    # it creates more quotes.
    text = INVISIBLE.sub("", _composed(text.translate(_LIKE)).translate(_LIKE))
    text = " ".join(text.split())
    if not text.endswith(".."):
        text = text.removesuffix(".").rstrip()
    # Normalise again, since case folding can produce characters that NFKC composes.
    text = _composed(_composed(text.casefold()).casefold())
    number = _WHOLE_NUMBER.fullmatch(text)
    return number[1] if number else text


_fold_short = functools.lru_cache(maxsize=100_000)(_fold)  # a catalog repeats its labels; bounded for a hostile one
