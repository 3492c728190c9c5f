"""The files of an export that hold its records, and a bounded sample of their rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jobs.drafting.analysis.column_profiles import Row
from jobs.drafting.analysis.shop_systems import ShopSystem, recognise
from jobs.errors import JobError
from jobs.importing.formats.format_registry import FileSample, find_candidates, read_sample

_START: Final = 200  # rows of each file that decide which files belong together
_FILES: Final = 100  # files that are looked at
_CELLS: Final = 4_000_000  # cells of the sample


@dataclass(slots=True)
class ExportSample:
    """A sample of an export, with the way in which its files are written."""

    folder: Path
    files: list[Path]  # of the records, relative to the folder
    rows: list[Row]
    start: FileSample  # of the first file
    system: ShopSystem | None
    why_system: str
    complete: bool  # whether the sample is the whole export
    not_read: list[str] = field(default_factory=list)  # other files that hold records, with the reason


def sample_export(folder: Path, limit: int) -> ExportSample:
    """Return the first `limit` rows of an export's records.

    Files belong together if they are of one shop system and format, or have the same columns. Of several such groups, the one with a
    known shop system is used, and otherwise the largest one.

    Raises:
        JobError: the folder does not exist, has no records, or the records cannot be read.
    """
    candidates = find_candidates(folder)
    names = [str(path.relative_to(folder)) for path in candidates]
    groups: dict[object, list[tuple[Path, FileSample]]] = {}
    faults = []
    for path in candidates[:_FILES]:
        try:
            start = read_sample(path, _START)
        except JobError as error:
            faults.append(str(error))
            continue
        if start.rows and start.columns:
            known = recognise(start.columns, names)
            groups.setdefault((known[0].mapping, start.format) if known else frozenset(start.columns), []).append(
                (path, start)
            )
        else:
            faults.append(f"{path}: no records")
    if not groups:
        seen = sorted(path.name for path in folder.iterdir())[:20]
        reason = f"; {faults[0]}" if faults else ""
        raise JobError(f"{folder}: no records; the folder has {seen}{reason}")
    chosen = max(groups, key=lambda group: (isinstance(group, tuple), sum(_size(path) for path, _ in groups[group])))
    members = groups[chosen]
    used = {path for path, _ in members}
    known = recognise(members[0][1].columns, names)
    rows, complete = _rows(members, limit)
    others = [path for path in candidates[:_FILES] if path not in used and not _failed(path, faults)]
    return ExportSample(
        folder=folder,
        files=[path.relative_to(folder) for path, _ in members],
        rows=rows,
        start=members[0][1],
        system=known[0] if known else None,
        why_system=known[1] if known else "its columns are not those of a known shop system",
        complete=complete,
        not_read=[
            *(f"{path.relative_to(folder)}: other columns" for path in others),
            *faults,
            *(f"{path.relative_to(folder)}: more than {_FILES} files" for path in candidates[_FILES:][:20]),
        ],
    )


def _failed(path: Path, faults: list[str]) -> bool:
    return any(fault.startswith(str(path)) for fault in faults)


def _rows(members: list[tuple[Path, FileSample]], limit: int) -> tuple[list[Row], bool]:
    """Return the sampled rows of all files, an equal share of each, and whether they are all rows."""
    rows: list[Row] = []
    complete = True
    for i, (path, start) in enumerate(members):
        columns = max(len(start.columns), 1)
        most = max(min(limit, _CELLS // columns) - len(rows), 0) // (len(members) - i)
        given = start.rows if len(start.rows) < _START else read_sample(path, most + 1).rows
        complete &= len(given) <= most
        rows += given[:most]
    return rows, complete


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return path.stat().st_size
