"""Lines of the raw catalog that import could not read as records, with their bytes and the reason.

Import knows why a line is not a record (seven cells where the header has six, bytes that are not UTF-8) and its position in
the export. Both are stored with the line, so that validate can report the cause. Quarantine keeps the shop's own bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

_MARK: Final = "rejected_line"  # never a column of a record, because import writes only our own column names
_START: Final = f'{{"{_MARK}":'.encode()
_LIMIT: Final = 300  # characters of a reason, a detail or a file's name


@dataclass(frozen=True, slots=True)
class RejectedLine:
    """A line that is not a record."""

    reason: str  # one word: csv_cells, bad_utf8, not_json, ...
    detail: str  # for people: "7 cells where the header has 6"
    file: str  # name of the file in the export
    line: int  # line number in that file, counted from 1; 0 if unknown
    raw: bytes  # the line as the shop wrote it

    def encoded(self) -> bytes:
        """Return the rejected line as one line of the raw catalog, without the line end."""
        document = {
            _MARK: self.reason[:_LIMIT],
            "detail": self.detail[:_LIMIT],
            "file": self.file[:_LIMIT],
            "line": self.line,
            "raw": self.raw.decode("latin-1"),  # maps every byte to a character and back
        }
        return json.dumps(document, separators=(",", ":")).encode()

    @property
    def note(self) -> str:
        """Detail and position of the line, for people."""
        position = f" ({self.file}, line {self.line:,})" if self.line else f" ({self.file})"
        return f"{self.detail}{position if self.file else ''}"


def read_rejected(line: bytes) -> RejectedLine | None:
    """Return the rejected line that `RejectedLine.encoded` wrote; None for any other line, even a similar one."""
    if not line.startswith(_START):
        return None
    try:
        document: dict[str, Any] = json.loads(line)
        raw = document["raw"].encode("latin-1")
        rejected = RejectedLine(document[_MARK], document["detail"], document["file"], document["line"], raw)
        return rejected if rejected.encoded() == line else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
