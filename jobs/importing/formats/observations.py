"""Counters of what an import noticed in an export, for the manifest and the log, each with an example."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from jobs.records.rejected_lines import RejectedLine

log = logging.getLogger(__name__)

_KINDS: Final = 20  # reasons that are counted separately; all others are counted together
_OTHERS: Final = "other reasons"
_SHOWN: Final = 120  # characters of a line in a message


class StructureError(Exception):
    """Error for a file that does not consist of records; the message describes what it looks like."""


def shown(value: object) -> str:
    """Return the start of `value` as one line that is safe to log."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text[:_SHOWN].rstrip("\r\n")) + ("..." if len(text) > _SHOWN else "")


class Observations:
    """Counters of repairs that the readers made, and of lines that are not records."""

    def __init__(self) -> None:
        self.file, self.line = "", 0  # the reader's position
        self.notes: Counter[str] = Counter()
        self.unreadable: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._in_file: Counter[str] = Counter()
        self._rows = 0

    def note(self, description: str, count: int = 1) -> None:
        """Count an observation that does not reject a line."""
        self.notes[description] += count

    def begin_file(self, file: str) -> None:
        """Start counting the rows of `file`."""
        self.file, self.line, self._rows = file, 0, 0
        self._in_file.clear()

    def count_row(self) -> None:
        """Count a row of the file, readable or not."""
        self._rows += 1

    def reject(self, reason: str, detail: str, raw: bytes) -> RejectedLine:
        """Count a line that is not a record, and return it with its reason and position."""
        self.count_rejected(detail, raw)
        return RejectedLine(reason, detail, self.file, self.line, raw)

    def count_rejected(self, detail: str, raw: bytes) -> None:
        """Count a line that is not a record and that the caller passes on byte for byte."""
        kind = detail if detail in self.unreadable or len(self.unreadable) < _KINDS else _OTHERS
        self.unreadable[kind] += 1
        self._in_file[kind] += 1
        self._examples.setdefault(kind, f"{self.file}, line {self.line:,}: {shown(raw)}")

    def check_file(self) -> None:
        """Raise StructureError if most rows of the file are not records."""
        failed = self._in_file.total()
        if failed * 2 > self._rows:
            detail, count = self._in_file.most_common(1)[0]
            raise StructureError(
                f"{failed:,} of {self._rows:,} rows are not records; {count:,} of them: {detail} "
                f"({self._examples[detail]}); nothing was imported: correct the export or the mapping"
            )

    def report(self) -> None:
        """Log everything that was noticed in all files."""
        for description, count in self.notes.items():
            log.info("import-catalog: %s: %s", description, f"{count:,}")
        for detail, count in self.unreadable.most_common():
            log.warning(
                "import-catalog: lines that are not records: %s: %s (%s)", f"{count:,}", detail, self._examples[detail]
            )
