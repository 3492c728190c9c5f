"""Inventory of the lake's folders by run.

Each parent folder is listed once. The contents of the runs' folders are not listed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jobs.lake import s3_files, storage
from jobs.lake.layout import Lake, is_run
from jobs.lake.storage import AnyPath, Entry
from jobs.training import workdir

TABLES, INDEXES, HISTORY, PLANS, PREDICTIONS = "tables", "indexes", "history", "plans", "predictions"
EXAMPLES, VALIDATED, UNFINISHED = "examples", "validated", "unfinished"
KINDS: Final = (TABLES, INDEXES, HISTORY, PLANS, PREDICTIONS, EXAMPLES, VALIDATED, UNFINISHED)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that belongs to a run."""

    kind: str
    run_id: str
    path: AnyPath


@dataclass(slots=True)
class Listing:
    """Inventory of everything in the lake that can expire."""

    runs: list[Folder] = field(default_factory=list)
    versions: dict[str, list[AnyPath]] = field(default_factory=dict)  # day -> folders of valid and quarantined records
    aside: list[tuple[str, AnyPath]] = field(default_factory=list)  # kinds and folders that a killed maintenance left
    temporary: list[AnyPath] = field(default_factory=list)  # files that killed `storage.whole_file` calls left
    trainings: list[AnyPath] = field(default_factory=list)  # folders of unfinished trainings
    scratch: list[AnyPath] = field(default_factory=list)

    def of_kind(self, *kinds: str) -> list[Folder]:
        """Return the runs' folders of these kinds."""
        return [folder for folder in self.runs if folder.kind in kinds]


def list_lake(lake: Lake) -> Listing:
    """Return everything in the lake of the kinds that expire."""
    listing = Listing()
    for kind, parent in _parents(lake):
        for entry in storage.entries(parent):
            path, name = entry.path, entry.path.name
            if entry.is_folder and name.startswith(storage.ASIDE):
                listing.aside.append((kind, path))
            elif _is_temporary(entry):
                listing.temporary.append(path)
            elif kind == VALIDATED and entry.is_folder and re.fullmatch(r"[0-9a-f]{12}", name):
                listing.versions.setdefault(parent.name.removeprefix("ds="), []).append(path)
            elif kind == UNFINISHED and parent == lake.scratch:
                listing.scratch.append(path)
            elif kind == UNFINISHED and entry.is_folder and name.startswith(workdir.PREFIX):
                listing.trainings.append(path)
            elif entry.is_folder and (folder := _run_folder(lake, kind, path)) is not None:
                listing.runs.append(folder)
    for parent in _document_folders(lake, listing):
        listing.temporary += [entry.path for entry in storage.entries(parent) if _is_temporary(entry)]
    listing.temporary += _permanent_folders_temporaries(lake)
    return listing


def _permanent_folders_temporaries(lake: Lake) -> list[Path]:
    """Return the temporary files in folders that never expire: reports, raw records, suspects. A lake on S3 has none."""
    if not storage.on_disk(lake.root):
        return []
    temporary: list[Path] = []
    for parent in (lake.root / "reports", lake.raw("-").parent, lake.root / "suspects"):
        for folder, _, names in os.walk(str(parent)):
            temporary += [Path(folder) / name for name in names if name.startswith(".") and name.endswith(".tmp")]
    return sorted(temporary)


def plans(lake: Lake) -> list[Folder]:
    """Return the folders of all plans that exist now."""
    paths = (path for day in subfolders(lake.root / "plans", "ds=") for path in subfolders(day, "run="))
    return [folder for path in paths if (folder := _run_folder(lake, PLANS, path)) is not None]


def subfolders(folder: AnyPath, prefix: str) -> list[AnyPath]:
    """Return the folders in `folder` whose names begin with `prefix`, in order; none if `folder` does not exist."""
    return [e.path for e in storage.entries(folder) if e.path.name.startswith(prefix) and e.is_folder]


def _is_temporary(entry: Entry) -> bool:
    name = entry.path.name
    return name.startswith(".") and name.endswith(".tmp") and not entry.is_folder


def _parents(lake: Lake) -> Iterator[tuple[str, AnyPath]]:
    """Yield the parent folders of each kind of folder."""
    yield TABLES, lake.run("-").parent
    yield PREDICTIONS, lake.predictions("-").parent
    yield from ((UNFINISHED, parent) for parent in (lake.work / "models", lake.work / "towers", lake.scratch))
    by_day = [(HISTORY, lake.history), (PLANS, lake.root / "plans"), (EXAMPLES, lake.all_examples)]
    by_day += [(VALIDATED, lake.valid("-").parent), (VALIDATED, lake.quarantine("-").parent)]
    for kind, zone in by_day:
        yield from ((kind, day) for day in subfolders(zone, "ds="))


def _document_folders(lake: Lake, listing: Listing) -> Iterator[AnyPath]:
    """Yield the other folders in which `storage.whole_file` may have left temporary files."""
    yield from (lake.current.parent, lake.history, lake.left_index("-").parent, lake.expired("-").parent)
    yield from (folder.path for folder in listing.of_kind(PREDICTIONS))
    for day in subfolders(lake.root / "labelled", "ds="):
        yield from subfolders(day, "set=")


def _run_folder(lake: Lake, kind: str, path: AnyPath) -> Folder | None:
    run_id = path.name if kind == TABLES else path.name.removeprefix("run=")
    own = {
        TABLES: lake.run(run_id),
        PREDICTIONS: lake.predictions(run_id),
        PLANS: lake.plan(run_id),
        EXAMPLES: lake.examples(run_id),
        HISTORY: path.parent / f"run={run_id}",
    }
    # A folder under another day or name is not one that the steps read.
    return Folder(kind, run_id, path) if is_run(run_id) and own.get(kind) == path else None


def left_indexes(lake: Lake) -> dict[str, float]:
    """Return the runs that were live before, each with the time at which it was last replaced."""
    return {path.stem: last_written(path) for path in _documents(lake.left_index("-").parent)}


def expired_runs(lake: Lake) -> frozenset[str]:
    """Return the runs that have expired."""
    return frozenset(path.stem for path in _documents(lake.expired("-").parent))


def _documents(folder: AnyPath) -> list[AnyPath]:
    return [path for path in storage.children(folder) if path.suffix == ".json" and is_run(path.stem)]


def last_written(path: AnyPath) -> float:
    """Return when the file or folder at `path`, not its content, was last written; 0 if it does not exist.

    On S3, the time of a folder is that of its newest direct entry.
    """
    if not storage.on_disk(path):
        inside = [entry.written for entry in storage.entries(path)]
        own = [e.written or 0.0 for e in s3_files.entries(path.parent, path.name) if e.path.name == path.name]
        return max([*inside, *own], default=0.0)
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def newest(path: AnyPath) -> float:
    """Return when the file at `path`, or anything in the folder at `path`, was last written."""
    if not storage.on_disk(path):
        return max((each.written for each in s3_files.below(path)), default=last_written(path))
    inside = (Path(parent) / name for parent, folders, files in os.walk(path) for name in (*folders, *files))
    return max(last_written(path), max(map(last_written, inside), default=0.0))


def size(path: AnyPath) -> int:
    """Return the size in bytes of the file, or of all files in the folder, at `path`."""
    if not storage.on_disk(path):
        return storage.size(path) or sum(each.bytes for each in s3_files.below(path))
    if not path.is_dir():
        return path.lstat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
