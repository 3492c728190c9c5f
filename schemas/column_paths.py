"""Paths into nested records: ``media.0.url``, ``item_name[language_tag=en].value``, ``colors[].name``."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

_SEGMENT: Final = re.compile(r"(?:[^.\[]|\[[^\]]*\]|\[)+")
_SELECTION: Final = re.compile(r"\[(?:([^\[\]=]+)=([^\[\]]*))?\]")
_SELECTED: Final = re.compile(r"([^\[\]]*)((?:\[(?:[^\[\]=]+=[^\[\]]*)?\])+)")


@dataclass(frozen=True, slots=True)
class Selection:
    """Part of a path that takes the items of a list: those whose `key` has the `value`, or all if `key` is empty."""

    key: str = ""
    value: str = ""

    def takes(self, given: object) -> bool:
        """Return whether an item whose key holds `given` is selected. The language ``en`` includes ``en_GB`` and ``en-US``."""
        if given == self.value or (not isinstance(given, str | bool) and str(given) == self.value):
            return True
        language = "lang" in self.key.casefold() or "locale" in self.key.casefold()
        return language and isinstance(given, str) and given.replace("-", "_").startswith(f"{self.value}_")


@functools.lru_cache(maxsize=4096)
def parse_path(column: str) -> tuple[str | Selection, ...]:
    """Return the parts of a path, from the outside in. A bracket that selects nothing is part of a name: ``Material [EN]``."""
    parts: list[str | Selection] = []
    for segment in _SEGMENT.findall(column):
        selected = _SELECTED.fullmatch(segment)
        if selected is None:
            parts.append(segment)
            continue
        if selected[1]:
            parts.append(selected[1])
        parts += (Selection(match[1] or "", match[2] or "") for match in _SELECTION.finditer(selected[2]))
    return tuple(parts)


def selects(column: str) -> bool:
    """Return whether the path `column` takes items of a list, so that it may have several values."""
    return "[" in column and any(isinstance(part, Selection) for part in parse_path(column))
