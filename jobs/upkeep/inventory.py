"""Which folders there are in the lake, by the runs they are of. Lists what holds them, each once, and none of them itself."""

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
    """A folder of a run."""

    kind: str
    run_id: str
    path: AnyPath


@dataclass(slots=True)
class Listing:
    """What there is."""

    runs: list[Folder] = field(default_factory=list)
    versions: dict[str, list[AnyPath]] = field(default_factory=dict)  # by day, the valid and the quarantined records
    aside: list[tuple[str, AnyPath]] = field(default_factory=list)  # what a killed maintenance has not removed yet
    temporary: list[AnyPath] = field(
        default_factory=list
    )  # what `storage.whole_file` leaves where its process is killed
    trainings: list[AnyPath] = field(default_factory=list)  # that are not finished
    scratch: list[AnyPath] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Folder]:
        """Return the folders of runs of these kinds."""
        return [folder for folder in self.runs if folder.kind in kinds]


def look(lake: Lake) -> Listing:
    """Return what there is of the kinds that expire."""
    found = Listing()
    for kind, place in _places(lake):
        for entry in storage.entries(place):
            path, name = entry.path, entry.path.name
            if entry.is_folder and name.startswith(storage.ASIDE):
                found.aside.append((kind, path))
            elif _is_temporary(entry):
                found.temporary.append(path)
            elif kind == VALIDATED and entry.is_folder and re.fullmatch(r"[0-9a-f]{12}", name):
                found.versions.setdefault(place.name.removeprefix("ds="), []).append(path)
            elif kind == UNFINISHED and place == lake.scratch:
                found.scratch.append(path)
            elif kind == UNFINISHED and entry.is_folder and name.startswith(workdir.PREFIX):
                found.trainings.append(path)
            elif entry.is_folder and (folder := _of_run(lake, kind, path)) is not None:
                found.runs.append(folder)
    for place in _with_documents(lake, found):
        found.temporary += [entry.path for entry in storage.entries(place) if _is_temporary(entry)]
    found.temporary += _left_by_killed_writers(lake)
    return found


def _left_by_killed_writers(lake: Lake) -> list[Path]:
    """Return the temporary files of what stays for ever: reports, raw records, suspects. On S3 there are none in the lake."""
    if not storage.on_disk(lake.root):
        return []
    found: list[Path] = []
    for place in (lake.root / "reports", lake.raw("-").parent, lake.root / "suspects"):
        for at, _, names in os.walk(str(place)):
            found += [Path(at) / name for name in names if name.startswith(".") and name.endswith(".tmp")]
    return sorted(found)


def plans(lake: Lake) -> list[Folder]:
    """Return the folders of plans that there are now."""
    paths = (path for day in subfolders(lake.root / "plans", "ds=") for path in subfolders(day, "run="))
    return [folder for path in paths if (folder := _of_run(lake, PLANS, path)) is not None]


def subfolders(folder: AnyPath, prefix: str) -> list[AnyPath]:
    """Return the folders in `folder` whose name begins so, in order; none where it is not there."""
    return [e.path for e in storage.entries(folder) if e.path.name.startswith(prefix) and e.is_folder]


def _is_temporary(entry: Entry) -> bool:
    name = entry.path.name
    return name.startswith(".") and name.endswith(".tmp") and not entry.is_folder


def _places(lake: Lake) -> Iterator[tuple[str, AnyPath]]:
    """Yield each folder that holds folders of a kind."""
    yield TABLES, lake.run("-").parent
    yield PREDICTIONS, lake.predictions("-").parent
    yield from ((UNFINISHED, place) for place in (lake.work / "models", lake.work / "towers", lake.scratch))
    by_day = [(HISTORY, lake.history), (PLANS, lake.root / "plans"), (EXAMPLES, lake.all_examples)]
    by_day += [(VALIDATED, lake.valid("-").parent), (VALIDATED, lake.quarantine("-").parent)]
    for kind, zone in by_day:
        yield from ((kind, day) for day in subfolders(zone, "ds="))


def _with_documents(lake: Lake, found: Listing) -> Iterator[AnyPath]:
    """Yield the other folders with documents or files that are written whole, and that no run's folder goes with."""
    yield from (lake.current.parent, lake.history, lake.left_index("-").parent, lake.expired("-").parent)
    yield from (folder.path for folder in found.of(PREDICTIONS))
    for day in subfolders(lake.root / "labelled", "ds="):
        yield from subfolders(day, "set=")


def _of_run(lake: Lake, kind: str, path: AnyPath) -> Folder | None:
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


def _documents(folder: AnyPath) -> list[AnyPath]:
    return [path for path in storage.children(folder) if path.suffix == ".json" and is_run(path.stem)]


def last_written(path: AnyPath) -> float:
    """Return when the file or the folder at `path` itself was last written; 0 where it is not there."""
    if not storage.on_disk(path):
        # A folder is what is in it; the first entry that is named so is the object itself.
        inside = [entry.written for entry in storage.entries(path)]
        itself = [e.written or 0.0 for e in s3_files.entries(path.parent, path.name) if e.path.name == path.name]
        return max([*inside, *itself], default=0.0)
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def newest(path: AnyPath) -> float:
    """Return when anything in the folder, or the file, at `path` was last written."""
    if not storage.on_disk(path):
        return max((each.written for each in s3_files.below(path)), default=last_written(path))
    inside = (Path(at) / name for at, folders, files in os.walk(path) for name in (*folders, *files))
    return max(last_written(path), max(map(last_written, inside), default=0.0))


def size(path: AnyPath) -> int:
    """Return the bytes of the file, or of all files in the folder, at `path`."""
    if not storage.on_disk(path):
        return storage.size(path) or sum(each.bytes for each in s3_files.below(path))
    if not path.is_dir():
        return path.lstat().st_size
    return sum((Path(at) / name).lstat().st_size for at, _, names in os.walk(path) for name in names)
