"""Values of binary formats as JSON values: the texts and numbers that a shop's own tools show."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias
from uuid import UUID

Json: TypeAlias = Any

_DEPTH: Final = 100  # lists and objects within each other
_PLAIN: Final = (str, bool, int)


class TooDeepError(ValueError):
    """Error for a value that is nested too deeply."""


def json_value(value: object, note: Callable[[str], None], depth: int = 0) -> Json:
    """Return `value` as a JSON value.

    A whole number stays one (1163.0 becomes 1163), a decimal keeps its digits, and a time becomes ISO 8601. NaN and
    infinity become None, bytes the text that they hold; `note` is called for each value that is lost.

    Raises:
        TooDeepError: the value is nested too deeply.
    """
    if value is None or isinstance(value, _PLAIN):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return int(value) if value.is_integer() and abs(value) < 2**53 else value
        note("NaN or Infinity, read as not given")
        return None
    if isinstance(value, Decimal):
        return _decimal(value, note)
    if isinstance(value, datetime):
        midnight = value.tzinfo is None and value.time() == time.min
        return value.date().isoformat() if midnight else value.isoformat().replace("+00:00", "Z")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, bytes):
        return _text(value, note)
    if depth > _DEPTH:
        raise TooDeepError
    if isinstance(value, dict):
        return {str(name): json_value(each, note, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        if value and all(isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str) for each in value):
            return {name: json_value(each, note, depth + 1) for name, each in value}  # an Arrow map
        return [json_value(each, note, depth + 1) for each in value]
    if isinstance(value, UUID):
        return str(value)
    return str(value)


def _decimal(value: Decimal, note: Callable[[str], None]) -> Json:
    if not value.is_finite():
        note("NaN or Infinity, read as not given")
        return None
    if value == value.to_integral_value() and abs(value) < 2**53:
        return int(value)
    number = float(value)
    return number if Decimal(repr(number)) == value else format(value, "f")


def _text(value: bytes, note: Callable[[str], None]) -> Json:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        note("binary values, not read")
        return None
    if "\x00" in text:
        note("binary values, not read")
        return None
    return text
