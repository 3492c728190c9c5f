"""Readers of a record's fields, which accept unambiguous values and reject others with a description.

For a title, a number becomes its digits and a list of one text becomes that text. An object, or a list of several brands, is
rejected, because it is unknown which part is meant.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from jobs.records.values import instant, is_no_id, plain, price

Json: TypeAlias = Any

# A text that has only blanks, control characters and invisible characters counts as not given.
BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]*")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Characters that are examined to see whether a text is blank. The start is enough, however long the text is.
TEXT_START: Final = 2000
_EXACT: Final = 2**53  # beyond it, a float does not determine which whole number was meant
_SHOWN: Final = 120  # characters of a value in its description
_USUAL: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:|$)")  # the form that import writes; fast to parse
_YEARS: Final = range(1900, 2201)  # years of a plausible time


class FieldError(ValueError):
    """Error for a value that cannot be read as its field; holds a description of the value."""

    def __init__(self, value: Json) -> None:
        self.description = described(value)
        super().__init__(self.description)


def whole(value: str) -> str:
    """Return `value` as valid Unicode: a lone surrogate, which JSON can contain, becomes U+FFFD."""
    return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)


def read_text(value: Json) -> str | None:
    """Return a text, a number's digits, or the only text of a list; None if none is given. Raises FieldError."""
    if isinstance(value, str):
        if not value.isascii():
            value = whole(value)
        value = value.strip(" ")
        return None if BLANK.fullmatch(value, 0, TEXT_START) else value
    if value is None or value in ([], {}):
        return None
    if isinstance(value, list):
        given = [item for item in value if item is not None]
        if len(given) <= 1 and not any(isinstance(item, list) for item in given):
            return read_text(given[0]) if given else None
    elif (number := _digits(value)) is not None:
        return number
    raise FieldError(value)


def read_long_text(value: Json) -> str | None:
    """Return the text like `read_text`, but join the texts of a list with blank lines. Raises FieldError."""
    if isinstance(value, list) and len(value) > 1 and not any(isinstance(item, list | dict) for item in value):
        parts = [text for item in value if (text := read_text(item)) is not None]
        return "\n\n".join(parts) or None
    return read_text(value)


def read_picture(value: Json) -> str | None:
    """Return the picture's name or URI, the first one if it is a list. Raises FieldError."""
    if isinstance(value, list) and all(item is None or isinstance(item, str) for item in value):
        return next((text for item in value if (text := read_text(item)) is not None), None)
    return read_text(value)


def read_id(value: Json) -> str | None:
    """Return the id without surrounding invisible characters. Raises FieldError, also for words such as "null"."""
    text = read_text(value)
    if text is None:
        return None
    text = plain(text)
    if is_no_id(text):
        raise FieldError(value)
    return text or None


def read_price(value: Json) -> float | None:
    """Return the price, from a number or a text that writes one. Raises FieldError."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value in ([], {}):
        return None
    if isinstance(value, str):
        if BLANK.fullmatch(value, 0, TEXT_START):
            return None
        if not isinstance(number := price(value, ""), int | float):
            raise FieldError(value)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(value)
    else:
        try:
            number = float(value)
        except OverflowError:
            raise FieldError(value) from None
    if not math.isfinite(number):
        raise FieldError(value)
    return float(number)


READERS: Final[Mapping[str, Callable[[Json], str | float | None]]] = {
    "product_id": read_id,
    "title": read_text,
    "brand": read_text,
    "description": read_long_text,
    "image_uri": read_picture,
    "image_version": read_text,
    "updated_at": read_text,
    "price": read_price,
}


def read_time(text: str) -> datetime:
    """Return the time that `text` writes, in UTC if it names no zone. Import and validate understand the same forms.

    Raises:
        FieldError: the time is ambiguous, so it cannot be ordered: 05/11/2026 is a day in May or in November.
    """
    time = None
    if _USUAL.match(text):
        with contextlib.suppress(ValueError):  # for example, a zone in another form
            time = datetime.fromisoformat(text)
    if time is None and (written := instant(text)) is not None:
        time = datetime.fromisoformat(written)
    if time is None or time.year not in _YEARS:
        raise FieldError(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _digits(value: Json) -> str | None:
    """Return the digits of a number, 1163 for 1163.0; None if it is not a finite number that is known exactly."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if isinstance(value, int):
        return str(value)
    if value.is_integer():
        return str(int(value)) if abs(value) < _EXACT else None
    return repr(value)


def described(value: Json) -> str:
    """Describe a field's value for a note: its start as JSON, after its kind if it is a list or an object."""
    match value:
        case str():
            shown = json.dumps(value[:_SHOWN], ensure_ascii=False)
            return f"{shown}... ({len(value):,} characters)" if len(value) > _SHOWN else shown
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)[:_SHOWN]
        case list():
            kind = f"a list of {len(value):,}"
        case _:
            kind = "an object"
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (RecursionError, ValueError):
        return f"{kind}, deeply nested"
    return f"{kind}, {text[:_SHOWN]}{'...' if len(text) > _SHOWN else ''}"
