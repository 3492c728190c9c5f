"""Cleaning of product texts for the model. Pure functions; no torch, because Spark's workers import this.

Each step runs in linear time on a bounded text. Markup is removed before the text is cut to the model's length, so
that a style sheet before a description does not displace it.
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

LIMIT: Final = 4_000  # characters of a clean text, far more than the 77 tokens that the model reads
_RAW_FACTOR: Final = 4  # allowed length of a text with white space and invisible characters, relative to the clean text
_LAYERS: Final = 3  # nested encodings of HTML as text that are decoded

PLACEHOLDERS: Final = load_words("placeholders")

# Entities that shops misspell, with or without the semicolon: "& rsquo s", "&trade ", "& amp amp nbsp".
_ENTITY: Final = re.compile(
    r"&\s?(?:amp\s){0,9}(amp|quot|apos|nbsp|[lr][sd]quo|[nm]dash|hellip|bull|trade|reg|copy|deg)\b(?!=)\s?;?"
)
_AMPERSANDS: Final = re.compile(r"&(?:(?:amp|#0{0,5}38|#x0{0,5}26);)+", re.IGNORECASE)  # encoded once or many times
_REFERENCE: Final = re.compile(r"&(?:#[0-9]{1,8}+;?|#[xX][0-9A-Fa-f]{1,8}+;?|([A-Za-z][A-Za-z0-9]{1,31}+)(;?)(?!=))")
_HUGE_REFERENCE: Final = re.compile(r"&#[xX]?[0-9A-Fa-f]{9,}+;?")  # beyond all characters
_BEFORE_A_DIGIT: Final = re.compile(r"([A-Za-z]+)([0-9].*)")
# Escapes that a program wrote for white space. A backslash before a word ("with \navy print") is not an escape: an
# escaped line end follows a word. Nor is one before a colour ("black\navy"), since the rest would not be a word.
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
    """Return `text` as the model reads it; '' if it says nothing.

    The steps in order:

    1. Remove markup, and decode entities however often they were encoded. HTML that was encoded as text, up to three
       times, is markup too, because shops' systems encode descriptions once too often.
    2. Decode escapes of programs and of Excel.
    3. Repair UTF-8 that was read as Latin, if it certainly was.
    4. Normalise characters (NFKC), remove invisible ones, and collapse white space to single spaces.
    5. Cut the text to `limit`. Placeholders ("NA", "-", "Style Note") become ''.

    Args:
        text: the shop's text; None is ''.
        limit: maximum length in characters; a longer text is cut at a word.
    """
    if not text:
        return ""
    if "\\" in text and _ESCAPED_MARKUP.search(text):  # a tag that JSON escaped as \u003cp\u003e
        text = _ESCAPED.sub(_escaped_character, text)
    text = _without_markup(text, 4 * _RAW_FACTOR * limit)[: _RAW_FACTOR * limit]
    if "\\" in text:
        text = _ESCAPED.sub(_escaped_character, _ESCAPED_BLANKS.sub(" ", text))
    if "_x" in text:
        text = _EXCEL_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text)
    if text.startswith('="') and (whole := _EXCEL_TEXT.fullmatch(text.strip())):
        text = whole[1]
    if not text.isascii():
        if _MOJIBAKE.search(text):
            text = ftfy.fix_encoding(text)
        # Normalising a long run of combining marks takes quadratic time, and it has no meaning.
        text = unicodedata.normalize("NFKC", MARKS.sub(r"\1", text))
    if not text.isprintable():
        text = INVISIBLE.sub("", text)
    text = " ".join(text.split())
    if len(text) > limit:
        text = cut(text, limit)
    return "" if is_placeholder(text) else text


def cut(text: str, limit: int) -> str:
    """Return at most the first `limit` characters of `text`, cut at a word unless that would lose half of them."""
    if len(text) <= limit:
        return text
    space = text.rfind(" ", 0, limit + 1)
    return text[: space if space > limit // 2 else limit].rstrip()


def is_placeholder(text: str) -> bool:
    """Return whether `text` means "nothing given": a placeholder, or a text without letters and digits."""
    if len(text) > 40:
        return False
    return not any(c.isalnum() for c in text) or _bare(text) in PLACEHOLDERS


def _bare(text: str) -> str:
    return text.casefold() if text[0] in "#\\" else text.strip(" .-_*:;,()[]<>'\"").casefold()


def _without_markup(text: str, enough: int) -> str:
    """Return `text` without markup and with its entities decoded."""
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
    """Return `text` with its entities replaced by their characters."""
    text = _AMPERSANDS.sub("&", _ENTITY.sub(r"&\1;", text))
    return _REFERENCE.sub(_character, _HUGE_REFERENCE.sub(" ", text)) if "&" in text else text


def _character(reference: re.Match[str]) -> str:
    """Return the character of a reference, or the reference itself if it has none.

    A name without a semicolon counts only as a whole word: browsers turn "cotton&notebook" into "cotton¬ebook", but no
    shop means that.
    """
    name, semicolon = reference.groups()
    if name is None:
        return html.unescape(reference[0])
    if semicolon:
        return html5.get(f"{name};") or html5.get(f"{name.lower()};") or _without_semicolon(name, reference[0])
    return _without_semicolon(name, reference[0])


def _without_semicolon(name: str, reference: str) -> str:
    """Return the character of `name`, which has no known semicolon form; `reference` if it has none."""
    if name in html5:
        return html5[name]
    if name.startswith("nbsp"):  # no word begins with it
        return " " + name.removeprefix("nbsp")
    number = _BEFORE_A_DIGIT.fullmatch(name)
    if number is not None and number[1] in html5:
        return html5[number[1]] + number[2]
    return reference


def _escaped_character(escape: re.Match[str]) -> str:
    if escape["quote"]:
        return escape["quote"]
    if escape["high"]:  # a surrogate pair
        return chr(0x10000 + (int(escape["high"], 16) - 0xD800 << 10) + int(escape["low"], 16) - 0xDC00)
    return chr(int(escape["wide"] or escape["narrow"], 16))
