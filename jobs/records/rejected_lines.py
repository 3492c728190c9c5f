"""Lines of the raw catalog that import could not read as a record: their bytes, and the reason that import has seen.

Import knows why a line is no record (seven cells where the header has six, bytes that are no UTF-8), and where the shop
wrote it. Both travel with the line, so that validate reports the cause, and quarantine keeps the shop's own bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

_MARK: Final = "rejected_line"  # no column of a record: import writes records by our own names alone
_START: Final = f'{{"{_MARK}":'.encode()
_LIMIT: Final = 300  # characters of a reason, or of a file's name


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """A line that is no record."""

    reason: str  # one word: csv_cells, bad_utf8, not_json, ...
    detail: str  # for people: "7 cells where the header has 6"
    file: str  # of the export
    line: int  # in that file, counted from 1; 0: not known
    raw: bytes  # as the shop wrote it

    def encoded(self) -> bytes:
        """Return it as one line of the raw catalog, without its end."""
        said = {
            _MARK: self.reason[:_LIMIT],
            "detail": self.detail[:_LIMIT],
            "file": self.file[:_LIMIT],
            "line": self.line,
            "raw": self.raw.decode("latin-1"),  # any bytes, and the same ones back
        }
        return json.dumps(said, separators=(",", ":")).encode()

    @property
    def note(self) -> str:
        """The reason, and where it was found, for people."""
        place = f" ({self.file}, line {self.line:,})" if self.line else f" ({self.file})"
        return f"{self.detail}{place if self.file else ''}"


def read_rejected(line: bytes) -> RejectedLine | None:
    """Return what `RejectedLine.encoded` wrote; None for any other line, such as a shop's that looks like one."""
    if not line.startswith(_START):
        return None
    try:
        said: dict[str, Any] = json.loads(line)
        found = RejectedLine(said[_MARK], said["detail"], said["file"], said["line"], said["raw"].encode("latin-1"))
        return found if found.encoded() == line else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
