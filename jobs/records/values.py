"""Readers of single values of an export: ids, prices and times. Ambiguous values stay unchanged."""

from __future__ import annotations

import contextlib
import email.utils
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

Json: TypeAlias = Any
# The decimal mark in a file's prices; "" if no price shows it, "?" if prices disagree.
DecimalMark: TypeAlias = Literal[".", ",", "", "?"]

_INVISIBLE: Final = " \t\r\n\x00\x0b\x0c\x85\xa0\xad\u1680\u180e\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(
    map(chr, (*range(0x2000, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)))
)
_FORMULA: Final = re.compile(r'="([^"]*)"')
_WHOLE: Final = re.compile(r"(\d{1,300})\.0")
# The way spreadsheets show a wide number: one digit before the decimal point, and the rest rounded off.
_SCIENTIFIC: Final = re.compile(r"\d([.,]\d+)?E\+\d{2,3}|\d[.,]\d+E\d{2,3}", re.IGNORECASE)
_EXACT: Final = 2**53  # from here on, floats do not represent every whole number

_LONGEST: Final = 100  # characters of a price or a time
_PLAIN: Final = re.compile(r"[+-]?(\d{1,300}(\.\d{0,300})?|\.\d{1,300})([eE][+-]?\d{1,3})?")
_CURRENCY: Final = re.compile(
    r"[A-Z]{3}|kr\.?|zł|Kč|Ft|lei|Lei|Rs\.?|Fr\.?|SFr\.?|TL|kn|din\.?|руб\.?|р\.|лв\.?|RM|R|Rp"
)
_MINUS: Final = str.maketrans({"\u2212": "-", "\u2013": "-"})
_DIGITS: Final = re.compile(r"[+-]?\d[\d.,'’]*")
_GROUPED: Final = re.compile(r"\d{1,3}([.,'’])\d{3}(\1\d{3})*")


def plain(value: Json) -> Json:
    """Return a text without surrounding blanks and invisible characters and without a spreadsheet's ="..." or leading '.

    Any other value is returned unchanged.
    """
    if not isinstance(value, str):
        return value
    text = value.strip(_INVISIBLE)
    if formula := _FORMULA.fullmatch(text):
        text = formula[1].strip(_INVISIBLE)
    if text.startswith("'") and text.count("'") == 1 and len(text) > 1:
        text = text[1:]  # spreadsheets mark a text with an apostrophe
    return text


def identity(value: Json) -> Json:
    """Return an id as text: 1163.0 and 1163, as a number or a text, become "1163". Other values stay unchanged."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else str(value)
    value = plain(value)
    if isinstance(value, str) and (whole := _WHOLE.fullmatch(value)):
        return whole[1]
    return value


def has_lost_digits(value: Json) -> bool:
    """Return whether an id is a number whose last digits are lost, so that several products may share it."""
    if isinstance(value, float):
        return abs(value) >= _EXACT
    return isinstance(value, str) and _SCIENTIFIC.fullmatch(plain(value)) is not None


# Words that programs write for a missing id.
_NO_ID: Final = frozenset(
    {"nan", "null", "none", "nil", "na", "n/a", "<na>", "#n/a", "undefined", "(null)", "\\n", "-", "--"}
)
# First words of a row of totals, counts or averages.
_TOTAL: Final = re.compile(
    r"(grand |sub-?)?(totals?|totale|totaal|sum|summe|gesamt(summe)?|somme|suma|сумма|итого|toplam|razem|合計|总计|"
    r"count|anzahl|nombre|average|avg|mean|durchschnitt|moyenne)\b[\s:\d]*",
    re.IGNORECASE,
)


def is_no_id(value: Json) -> bool:
    """Return whether an id is a word for "missing": NULL, nan, N/A."""
    return isinstance(value, str) and len(value) < 10 and value.strip().casefold() in _NO_ID


def is_total(product_id: Json, others: Iterable[Json], columns: int) -> bool:
    """Return whether a row is a row of totals, not a product.

    Args:
        product_id: the row's id.
        others: values of the row's other columns.
        columns: number of the row's columns.
    """
    if not isinstance(product_id, str) or not _TOTAL.fullmatch(product_id.strip()[:50]):
        return False
    given = [text for value in others if value is not None and (text := str(value).strip())]
    return all(any(map(str.isdigit, text)) for text in given) or 3 * len(given) < columns


# --- prices


def price(value: Json, mark: DecimalMark) -> Json:
    """Return a price as a number, whatever its currency; the value unchanged if its meaning is ambiguous.

    Args:
        value: the price as the shop writes it.
        mark: the decimal mark of the file's other prices. It decides prices such as 1.299 and 1,299.
    """
    if not isinstance(value, str) or len(value) > _LONGEST:
        return value
    text = _amount(value)
    if text is None:
        return value
    if _PLAIN.fullmatch(text) and mark in (".", ""):
        return _number(text, value)  # programs write a decimal point, even before three digits
    return _separated(text, mark, value)


def decimal_mark(values: Iterable[Json]) -> DecimalMark:
    """Return the decimal mark of a file's prices, from those that show it clearly."""
    texts = (_amount(value) for value in values if isinstance(value, str) and len(value) <= _LONGEST)
    marks: set[DecimalMark] = {mark for text in texts if text and (mark := _shown_mark(text))}
    return "?" if len(marks) > 1 else next(iter(marks), "")


def _amount(value: str) -> str | None:
    """Return the digits and separators of a price without its currency; None if the text has anything else."""
    text = plain(value).translate(_MINUS)
    if _PLAIN.fullmatch(text):
        return str(text)
    signs = [c for c in text if unicodedata.category(c) == "Sc"]
    if len(signs) > 1:
        return None
    for sign in signs:
        text = text.replace(sign, " ")
    match = re.search(r"[+-]?[ \u00a0\u202f\u2009]?\d[\d.,'’ \u00a0\u202f\u2009]*", text)
    if match is None:
        return None
    around = [part.strip(_INVISIBLE) for part in (text[: match.start()], text[match.end() :])]
    if len([part for part in around if part]) > 1 or any(part and not _CURRENCY.fullmatch(part) for part in around):
        return None
    digits = re.sub(r"(?<=\d)[ \u00a0\u202f\u2009](?=\d{3}(\D|$))", "'", match[0].strip(_INVISIBLE + "'"))
    digits = re.sub(r"^([+-])\s", r"\1", digits)
    return digits if _DIGITS.fullmatch(digits) else None


def _shown_mark(text: str) -> Literal[".", ","] | None:
    """Return the decimal mark that a price shows clearly; None if it does not."""
    if "." in text and "," in text:
        return "." if text.rfind(".") > text.rfind(",") else ","
    mark: Literal[".", ","] = "," if "," in text else "."
    if text.count(mark) != 1:
        return None
    before, after = text.lstrip("+-").split(mark)
    return mark if len(after) != 3 or len(before) > 3 or before in ("", "0") else None


def _separated(text: str, usual: DecimalMark, value: str) -> Json:
    unsigned = text.lstrip("+-")
    mark: DecimalMark | None = _shown_mark(text)
    if mark is None and sum(unsigned.count(each) for each in ".,") == 1:
        if usual in ("", "?"):
            return value  # 1,299 could be about a thousand or about one
        mark = usual if usual in unsigned else None
    whole, _, fraction = unsigned.rpartition(mark) if mark else (unsigned, "", "")
    if fraction and not fraction.isdigit():
        return value
    if whole and not whole.isdigit():
        if not _GROUPED.fullmatch(whole):
            return value
        whole = re.sub(r"\D", "", whole)
    sign = "-" if text.startswith("-") else ""
    return _number(f"{sign}{whole or '0'}{'.' + fraction if fraction else ''}", value)


def _number(text: str, value: str) -> Json:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        return value
    return int(number) if number.is_integer() and "." not in text else number


# --- times

_EPOCH: Final = re.compile(r"\d{10}(\.\d+)?|\d{13}|\d{16}|\d{19}")
_ISO: Final = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}.*|\d{8}(T.*)?|\d{4}-W\d{2}.*", re.DOTALL)
_ZONE: Final = re.compile(r"\s*(UTC|GMT|Z)$", re.IGNORECASE)
# RFC 2822, with only the zones that it names. The standard library's parser ignores anything it does not know, such as
# PM or CET.
_RFC_2822: Final = re.compile(
    r"([A-Za-z]{3,9},?\s+)?\d{1,2}\s+[A-Za-z]{3,9}\s+\d{4}\s+\d{1,2}:\d{2}(:\d{2})?"
    r"(\s*([+-]\d{4}|Z|UTC?|GMT|[ECMP][SD]T))?(\s*\([^()]*\))?"
)
_PROGRAM_FORMATS: Final = (  # C's ctime, the date command, JavaScript
    "%a %b %d %H:%M:%S %Y",
    "%a %b %d %H:%M:%S UTC %Y",
    "%a %b %d %H:%M:%S GMT %Y",
    "%a %b %d %Y %H:%M:%S GMT%z",
)


def instant(value: Json, time_format: str = "") -> str | None:
    """Return a time as ISO 8601 in UTC; None if it is not an unambiguous time.

    Accepted forms are ISO 8601, RFC 2822, and seconds, milliseconds, microseconds or nanoseconds since 1970. A time without
    a zone is taken as UTC.

    Args:
        value: the time as the shop writes it.
        time_format: the shop's format for `datetime.strptime`; if given, the only form that is accepted.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = plain(value) if isinstance(value, str) else repr(value).removesuffix(".0")
    if len(text) > _LONGEST:
        return None
    try:
        time = datetime.strptime(text, time_format) if time_format else _parse_time(text)
        if time is None:
            return None
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return time.isoformat().replace("+00:00", "Z")


def _parse_time(text: str) -> datetime | None:
    if _EPOCH.fullmatch(text):
        whole, _, fraction = text.partition(".")
        scale = 10 ** (len(whole) - 10)
        since = timedelta(seconds=int(whole) // scale, microseconds=int(whole) % scale * 10**6 // scale)
        return datetime(1970, 1, 1, tzinfo=UTC) + since + timedelta(seconds=float(f"0.{fraction or 0}"))
    if _ISO.fullmatch(text):
        text = re.sub(r"\s+(?=[+-]\d{2}:?\d{2}$)", "", _ZONE.sub("+00:00", text))
        if year_first := re.match(r"(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?!\d)", text):
            text = f"{year_first[1]}-{year_first[2]:0>2}-{year_first[3]:0>2}{text[year_first.end() :]}"
        text = re.sub(r"(?<=[T ])(?=\d:)", "0", text, count=1)  # 9:30
        text = re.sub(r"(?<=\d)[.,](\d+)", lambda m: "." + m[1][:6].ljust(6, "0"), text, count=1)
        return datetime.fromisoformat(text)
    if _RFC_2822.fullmatch(text):
        return email.utils.parsedate_to_datetime(text)
    if text[:3].isalpha():
        text = re.sub(r"\s*\([^()]*\)$", "", text)
        for time_format in _PROGRAM_FORMATS:
            with contextlib.suppress(ValueError):
                return datetime.strptime(text, time_format)
    return None
