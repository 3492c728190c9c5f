"""Product texts as the model reads them. Pure functions; no torch: Spark's workers import this.

Each step runs in linear time on a bounded text. Markup goes before the text is cut to the model's length, so that a style
sheet before a description does not cost the description.
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.entities import html5
from typing import Final

import ftfy

from cma_clip_core.content.markup import has_markup, visible_text
from schemas.characters import INVISIBLE, MARKS
from schemas.word_lists import load_words

LIMIT: Final = 4_000  # characters of a clean text: far beyond the 77 tokens the model reads
_RAW_FACTOR: Final = 4  # white space and what is invisible may make a text this many times longer than the clean one
_LAYERS: Final = 3  # HTML that was encoded as text, and that once more; deeper ones stay as they are

PLACEHOLDERS: Final = load_words("placeholders")

# A shop's own slips: "& rsquo s", "&trade ", "& amp amp nbsp". With the semicolon or without.
_ENTITY: Final = re.compile(
    r"&\s?(?:amp\s){0,9}(amp|quot|apos|nbsp|[lr][sd]quo|[nm]dash|hellip|bull|trade|reg|copy|deg)\b(?!=)\s?;?"
)
_AMPERSANDS: Final = re.compile(r"&(?:(?:amp|#0{0,5}38|#x0{0,5}26);)+", re.IGNORECASE)  # encoded once or many times
_REFERENCE: Final = re.compile(r"&(?:#[0-9]{1,8}+;?|#[xX][0-9A-Fa-f]{1,8}+;?|([A-Za-z][A-Za-z0-9]{1,31}+)(;?)(?!=))")
_HUGE_REFERENCE: Final = re.compile(r"&#[xX]?[0-9A-Fa-f]{9,}+;?")  # no character
_BEFORE_A_DIGIT: Final = re.compile(r"([A-Za-z]+)([0-9].*)")
# What a program wrote for a line end, a quote or a letter. A backslash before a word ("with \navy print") is none: an
# escaped line end follows a word. Nor is one before a colour ("black\navy"), of which no word would be left.
_ESCAPED_BLANKS: Final = re.compile(
    r"(?!\\(?:n(?:avy|atural|ude|ickel)|r(?:ed|ose|ust|uby|aspberry|oyal)|t(?:eal|aupe|urquoise|erracotta))\b)(?:"
    r"(?<=\S)(?<!\\)(?:\\[nrt])+|(?:\\[nrt]){2,}|(?:\\[nrt])+(?![a-z]))"
)
_ESCAPED: Final = re.compile(
    r"\\(?:(?P<quote>[\"'])|u(?P<high>[dD][89abAB][0-9A-Fa-f]{2})\\u(?P<low>[dD][c-fC-F][0-9A-Fa-f]{2})"
    r"|u(?P<wide>[0-9A-Fa-f]{4})|x(?P<narrow>[0-9A-Fa-f]{2}))"
)
_ESCAPED_MARKUP: Final = re.compile(r"\\(?:u00|x)(?:3[cC]|26)")
_EXCEL_ESCAPE: Final = re.compile(r"_x([0-9A-Fa-f]{4})_")
_EXCEL_TEXT: Final = re.compile(r'="([^"]*+)"')
_MOJIBAKE: Final = re.compile("[ÂÃ][\u0080-\u00bf\u2018-\u2026€™œž]|â€|ï»¿")


def clean(text: str | None, limit: int = LIMIT) -> str:
    """Return `text` as the model reads it; '' where it says nothing.

    Markup is removed, entities and escapes are read, UTF-8 that was read as Latin is repaired where that is certain,
    characters are normalised (NFKC), invisible and control characters removed, white space made single spaces.
    Placeholders ("NA", "-", "Style Note") become ''.

    Entities are read to the end, however often they were encoded. HTML that was encoded as text is markup all the same:
    shops' systems encode descriptions once too often, and no shop shows its customers a tag.

    Args:
        text: the shop's text; None is ''.
        limit: longest text returned, in characters; a longer one is cut at a word.
    """
    if not text:
        return ""
    if "\\" in text and _ESCAPED_MARKUP.search(text):  # a tag that JSON wrote as \u003cp\u003e
        text = _ESCAPED.sub(_escaped_character, text)
    text = _without_markup(text, 4 * _RAW_FACTOR * limit)[: _RAW_FACTOR * limit]
    if "\\" in text:
        text = _ESCAPED.sub(_escaped_character, _ESCAPED_BLANKS.sub(" ", text))
    if "_x" in text:
        text = _EXCEL_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
    if text.startswith('="') and (whole := _EXCEL_TEXT.fullmatch(text.strip())):
        text = whole[1]
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
    return not any(c.isalnum() for c in text) or _bare(text) in PLACEHOLDERS


def _bare(text: str) -> str:
    return text.casefold() if text[0] in "#\\" else text.strip(" .-_*:;,()[]<>'\"").casefold()


def _without_markup(text: str, enough: int) -> str:
    """Return `text` without markup, its entities read."""
    text = visible_text(text, enough)
    for _ in range(_LAYERS):
        if "&" not in text:
            return text
        encoded = text
        text = _decoded(text)
        if text == encoded or not has_markup(text):
            return text
        text = visible_text(text, enough)
    return text


def _decoded(text: str) -> str:
    """Return `text` with the characters that its entities stand for."""
    text = _AMPERSANDS.sub("&", _ENTITY.sub(r"&\1;", text))
    return _REFERENCE.sub(_character, _HUGE_REFERENCE.sub(" ", text)) if "&" in text else text


def _character(found: re.Match[str]) -> str:
    """Return the character of a reference; the reference where it is none.

    Without its semicolon a name is one only where it ends: no browser's "cotton&notebook" is meant to be "cotton¬ebook".
    """
    name, semicolon = found.groups()
    if name is None:
        return html.unescape(found[0])
    if semicolon:
        return html5.get(f"{name};") or html5.get(f"{name.lower()};") or _unended(name, found[0])
    return _unended(name, found[0])


def _unended(name: str, reference: str) -> str:
    """Return the character of `name`, which has no semicolon; `reference` where it is none."""
    if name in html5:
        return html5[name]
    if name.startswith("nbsp"):  # no word begins so
        return " " + name.removeprefix("nbsp")
    number = _BEFORE_A_DIGIT.fullmatch(name)
    if number is not None and number[1] in html5:
        return html5[number[1]] + number[2]
    return reference


def _escaped_character(found: re.Match[str]) -> str:
    if found["quote"]:
        return found["quote"]
    if found["high"]:  # one character in two halves
        return chr(0x10000 + (int(found["high"], 16) - 0xD800 << 10) + int(found["low"], 16) - 0xDC00)
    return chr(int(found["wide"] or found["narrow"], 16))
