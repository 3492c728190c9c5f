"""Display of numbers and of the shop's texts for people."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Final

from markupsafe import Markup, escape

# Characters that are invisible or move others: controls, formats (bidi, zero width), surrogates, unassigned ones.
_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_MARKS: Final = 2  # most combining marks in a row; more would cover the lines above and below
_SIGNS: Final = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\0": "␀"}


def visible(text: str | bytes | None, limit: int = 140, size: int | None = None) -> Markup:
    """Return a text of the shop as HTML: escaped, cut at `limit` characters, with invisible characters spelled out.

    Args:
        text: the text, or its start.
        limit: number of characters to show.
        size: length of the whole text, if `text` is only its start.
    """
    if text is None:
        return Markup('<span class="none">none</span>')
    whole = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    parts = [
        str(escape(character)) if sign is None else f'<span class="ctl">{sign}</span>'
        for character, sign in _with_signs(whole[:limit])
    ]
    if len(whole) > limit or (size is not None and size > len(text)):
        total = f" of {human_bytes(size)}" if size is not None and size > len(text) else ""
        parts.append(f'<span class="cut">…{total}</span>')
    return Markup("<bdi>{}</bdi>").format(Markup("".join(parts)))


def plain(text: str, limit: int) -> str:
    """Return a text of the shop as one terminal line: cut at `limit` characters, with invisible characters spelled out."""
    parts = [character if sign is None else f"<{sign}>" for character, sign in _with_signs(text[:limit])]
    return "".join(parts)[:limit]


def _with_signs(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield each character with a substitute, or with None if it is visible and hides no other character."""
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        needs_sign = category in _INVISIBLE or marks > _MARKS
        yield character, _SIGNS.get(character, f"U+{ord(character):04X}") if needs_sign else None


def count(n: int, singular: str, plural: str | None = None) -> str:
    """Return `n` with its noun: ``1 product``, ``37,507 products``."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def percent(share: float | None) -> str:
    """Return a share as percent. A share close to 0 or 1 is not rounded to 0% or 100%."""
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.999 < share < 1:
        return ">99.9%"
    return f"{share:.0%}" if share in (0.0, 1.0) else f"{share:.1%}"


def points(shift: float) -> str:
    """Return a change of a share in percentage points, with its sign."""
    return f"{shift * 100:+.1f} pp".replace("-", "−")


def seconds(value: float) -> str:
    """Return a duration: ``320 ms``, ``4.1 s``, ``12 min 5 s``, ``3 h 20 min``."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def rate(rows: int, duration: float) -> str:
    """Return rows per second, or a dash if either is zero."""
    if not rows or not duration:
        return "–"
    value = rows / duration
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def human_bytes(n: int) -> str:
    """Return a size: ``312 B``, ``4.2 kB``, ``8.0 MB``."""
    value, units = float(n), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
