"""Paths in SQL, which DuckDB takes as text alone, and the statement that finds the live tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jobs.lake import Lake


def quoted(text: str | Path) -> str:
    """Return `text` as an SQL literal."""
    return "'" + str(text).replace("'", "''") + "'"


def listed(files: Iterable[Path]) -> str:
    """Return `files` as an SQL list of literals."""
    return f"[{', '.join(map(quoted, files))}]"


def live_files(lake: Lake) -> str:
    """Return the statement that sets DuckDB's variable ``files`` to the paths of the live tables."""
    return (
        "SET VARIABLE files = (SELECT string_split(trim(content, chr(10)), chr(10)) "
        f"FROM read_text({quoted(lake.current)}));"
    )
