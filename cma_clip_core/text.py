"""Product texts as the model reads them. Pure functions; no torch: Spark's workers import this.

Every pattern here runs in linear time, and on a bounded text: the first cut comes before the first pattern.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

import ftfy

from schemas.characters import INVISIBLE, MARKS

LIMIT: Final = 4_000  # characters of a clean text: far beyond the 77 tokens the model reads
_RAW_FACTOR: Final = 4  # markup and entities may make a raw text this many times longer than the clean one

PLACEHOLDERS: Final = frozenset(
    {"na", "n/a", "n.a", "n.a.", "nan", "nil", "none", "null", "tbd", "tba", "undefined", "unknown", "not available",
     "not applicable", "no description", "style note", "syle note", "style notes", "test"}
)  # fmt: skip

_HIDDEN_TEXT: Final = re.compile(r"<(?:(!--)|(script|style)\b)", re.IGNORECASE)
_HIDDEN_END: Final = {
    "!--": re.compile(r"-->"),
    "script": re.compile(r"</script\s{0,9}>", re.IGNORECASE),
    "style": re.compile(r"</style\s{0,9}>", re.IGNORECASE),
}
_TAG: Final = re.compile(r"</?[A-Za-z][^<>]{0,2000}>|<!--|-->|<![A-Za-z\[][^<>]{0,2000}>")
_ENTITY: Final = re.compile(r"&\s?(amp|quot|apos|nbsp|[lr][sd]quo|[nm]dash|hellip|bull|trade|reg|copy|deg)\b\s?;?")
_HUGE_REFERENCE: Final = re.compile(r"&#[xX]?[0-9A-Fa-f]{9,};?")  # no character; int() refuses more than 4,300 digits
_MOJIBAKE: Final = re.compile("[ÂÃ][\u0080-\u00bf\u2018-\u2026€™œž]|â€|ï»¿")


def clean(text: str | None, limit: int = LIMIT) -> str:
    """Return `text` as the model reads it; '' where it says nothing.

    Markup is removed and entities are read, UTF-8 that was read as Latin is repaired where that is certain, characters
    are normalised (NFKC), invisible and control characters removed, white space made single spaces. Placeholders
    ("NA", "-", "Style Note") become ''.

    Args:
        text: the shop's text; None is ''.
        limit: longest text returned, in characters; a longer one is cut at a word.
    """
    if not text:
        return ""
    text = text[: _RAW_FACTOR * limit]
    if "&" in text:
        text = html.unescape(_HUGE_REFERENCE.sub(" ", _ENTITY.sub(r"&\1;", text)))
    if "<" in text:
        text = _TAG.sub(" ", _without_hidden_text(text))
    if not text.isascii():
        if _MOJIBAKE.search(text):
            text = ftfy.fix_encoding(text)
        # Long runs of combining marks say nothing, and normalising one takes quadratic time.
        text = unicodedata.normalize("NFKC", MARKS.sub(r"\1", text))
    if not text.isprintable():
        text = INVISIBLE.sub("", text)
    text = " ".join(text.split())
    if len(text) > limit:
        text = cut(text, limit)
    return "" if is_placeholder(text) else text


def cut(text: str, limit: int) -> str:
    """Return the first `limit` characters of `text` at most, cut at a word unless that would lose half of it."""
    if len(text) <= limit:
        return text
    space = text.rfind(" ", 0, limit + 1)
    return text[: space if space > limit // 2 else limit].rstrip()


def is_placeholder(text: str) -> bool:
    """Whether `text` stands for "nothing given": a placeholder word, or no letter and no digit at all."""
    if len(text) > 40:
        return False
    return not any(c.isalnum() for c in text) or text.strip(" .-_*:;,()[]'\"").casefold() in PLACEHOLDERS


def _without_hidden_text(text: str) -> str:
    """Return `text` without comments, scripts and styles; one that never ends is left to the tag pattern."""
    kept: list[str] = []
    position = 0
    endless: set[str] = set()  # searched to the end once: to search again at each opening would be quadratic
    for opening in _HIDDEN_TEXT.finditer(text):
        kind = (opening.group(1) or opening.group(2)).lower()
        if opening.start() < position or kind in endless:
            continue
        end = _HIDDEN_END[kind].search(text, opening.end())
        if end is None:
            endless.add(kind)
            continue
        kept += text[position : opening.start()], " "
        position = end.end()
    return "".join([*kept, text[position:]])
