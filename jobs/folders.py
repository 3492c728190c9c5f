"""Which folders there are in the lake, by the runs they are of. Lists what holds them, each once, and none of them itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from jobs import storage, unfinished
from jobs.lake import Lake, is_run

TABLES, INDEXES, HISTORY, PLANS, PREDICTIONS = "tables", "indexes", "history", "plans", "predictions"
EXAMPLES, VALIDATED, UNFINISHED = "examples", "validated", "unfinished"
KINDS: Final = (TABLES, INDEXES, HISTORY, PLANS, PREDICTIONS, EXAMPLES, VALIDATED, UNFINISHED)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of a run."""

    kind: str
    run_id: str
    path: Path


@dataclass(slots=True)
class Listing:
    """What there is."""

    runs: list[Folder] = field(default_factory=list)
    versions: dict[str, list[Path]] = field(default_factory=dict)  # by day, the valid and the quarantined records
    aside: list[tuple[str, Path]] = field(default_factory=list)  # what a killed maintenance has not removed yet
    temporary: list[Path] = field(default_factory=list)  # what `storage.whole_file` leaves where its process is killed
    trainings: list[Path] = field(default_factory=list)  # that are not finished
    scratch: list[Path] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Folder]:
        """Return the folders of runs of these kinds."""
        return [folder for folder in self.runs if folder.kind in kinds]


def look(lake: Lake) -> Listing:
    """Return what there is of the kinds that expire."""
    found = Listing()
    for kind, place in _places(lake):
        for entry in _entries(place):
            path = Path(entry.path)
            if entry.is_dir() and entry.name.startswith(storage.ASIDE):
                found.aside.append((kind, path))
            elif _is_temporary(entry):
                found.temporary.append(path)
            elif kind == VALIDATED and entry.is_dir() and re.fullmatch(r"[0-9a-f]{12}", entry.name):
                found.versions.setdefault(place.name.removeprefix("ds="), []).append(path)
            elif kind == UNFINISHED and place == lake.scratch:
                found.scratch.append(path)
            elif kind == UNFINISHED and entry.is_dir() and entry.name.startswith(unfinished.PREFIX):
                found.trainings.append(path)
            elif entry.is_dir() and (folder := _of_run(lake, kind, path)) is not None:
                found.runs.append(folder)
    for place in _with_documents(lake, found):
        found.temporary += [Path(entry.path) for entry in _entries(place) if _is_temporary(entry)]
    return found


def plans(lake: Lake) -> list[Folder]:
    """Return the folders of plans that there are now."""
    paths = (path for day in subfolders(lake.root / "plans", "ds=") for path in subfolders(day, "run="))
    return [folder for path in paths if (folder := _of_run(lake, PLANS, path)) is not None]


def subfolders(folder: Path, prefix: str) -> list[Path]:
    """Return the folders in `folder` whose name begins so, in order; none where it is not there."""
    return [Path(entry.path) for entry in _entries(folder) if entry.name.startswith(prefix) and entry.is_dir()]


def _is_temporary(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") and entry.name.endswith(".tmp") and entry.is_file(follow_symlinks=False)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _places(lake: Lake) -> Iterator[tuple[str, Path]]:
    """Yield each folder that holds folders of a kind."""
    yield TABLES, lake.run("-").parent
    yield PREDICTIONS, lake.predictions("-").parent
    yield from ((UNFINISHED, place) for place in (lake.models, lake.towers, lake.scratch))
    by_day = [(HISTORY, lake.history), (PLANS, lake.root / "plans"), (EXAMPLES, lake.all_examples)]
    by_day += [(VALIDATED, lake.valid("-").parent), (VALIDATED, lake.quarantine("-").parent)]
    for kind, zone in by_day:
        yield from ((kind, day) for day in subfolders(zone, "ds="))


def _with_documents(lake: Lake, found: Listing) -> Iterator[Path]:
    """Yield the other folders with documents or files that are written whole, and that no run's folder goes with."""
    yield from (lake.current.parent, lake.history, lake.left_index("-").parent, lake.expired("-").parent)
    yield from (folder.path for folder in found.of(PREDICTIONS))
    for day in subfolders(lake.root / "labelled", "ds="):
        yield from subfolders(day, "set=")


def _of_run(lake: Lake, kind: str, path: Path) -> Folder | None:
    run_id = path.name if kind == TABLES else path.name.removeprefix("run=")
    own = {
        TABLES: lake.run(run_id),
        PREDICTIONS: lake.predictions(run_id),
        PLANS: lake.plan(run_id),
        EXAMPLES: lake.examples(run_id),
        HISTORY: path.parent / f"run={run_id}",
    }
    # One that lies under another day or name is not what the steps read.
    return Folder(kind, run_id, path) if is_run(run_id) and own.get(kind) == path else None


def left_indexes(lake: Lake) -> dict[str, float]:
    """Return the runs that were live and are not any more, each with the last time it ceased to be."""
    return {path.stem: last_written(path) for path in _documents(lake.left_index("-").parent)}


def expired_runs(lake: Lake) -> frozenset[str]:
    """Return the runs that have expired."""
    return frozenset(path.stem for path in _documents(lake.expired("-").parent))


def _documents(folder: Path) -> list[Path]:
    paths = (Path(entry.path) for entry in _entries(folder))
    return [path for path in paths if path.suffix == ".json" and is_run(path.stem)]


def last_written(path: Path) -> float:
    """Return when the file or the folder at `path` itself was last written; 0 where it is not there."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def newest(path: Path) -> float:
    """Return when anything in the folder, or the file, at `path` was last written."""
    inside = (Path(at) / name for at, folders, files in os.walk(path) for name in (*folders, *files))
    return max(last_written(path), max(map(last_written, inside), default=0.0))


def size(path: Path) -> int:
    """Return the bytes of the file, or of all files in the folder, at `path`."""
    if not path.is_dir():
        return path.lstat().st_size
    return sum((Path(at) / name).lstat().st_size for at, _, names in os.walk(path) for name in names)
