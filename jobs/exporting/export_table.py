"""Table of an export: each attribute's changes, the columns they were exported to, and those left out with reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.exporting.export_changes import Exported

_HEADER = ("attribute", "changes", "exported", "to column", "left out", "why")


def lines(exported: Exported) -> list[str]:
    """Return the lines of the table, one for each attribute and one more for each further column or reason."""
    rows: list[tuple[str, ...]] = [_HEADER]
    for attribute, count in sorted(exported.counts.items()):
        columns = [column for column, number in count.columns.most_common() if number > 0]
        reasons = sorted(count.left_out.items(), key=lambda item: (-item[1], item[0]))
        for n in range(max(1, len(columns), len(reasons))):
            first = (attribute, f"{count.changes:,}", f"{count.exported:,}") if n == 0 else ("", "", "")
            column = columns[n] if n < len(columns) else ""
            reason, number = reasons[n] if n < len(reasons) else ("", 0)
            rows.append((*first, column, f"{number:,}" if number else "", reason))
    if len(rows) == 1:
        return ["no changes since that day: the file has only a header"]
    widths = [max(len(row[n]) for row in rows) for n in range(len(_HEADER))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
