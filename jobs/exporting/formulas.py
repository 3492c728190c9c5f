"""Texts that a spreadsheet program would run as a formula."""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = re.compile(r"[+-]?\d[\d.,]*\s?%?")
_SIGNS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # Excel reads full-width signs too


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet program may run `text` as a formula (OWASP, CSV injection). A number is none."""
    return text.startswith(_SIGNS) and not _NUMBER.fullmatch(text)


def quoted(text: str) -> str:
    """Return `text` with an apostrophe before it if it would be a formula."""
    return f"'{text}" if is_formula(text) else text
