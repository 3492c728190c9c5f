"""Take out of the lake what it no longer needs. What may go, `jobs.upkeep.retention` says; here it goes, or is only counted.

First each run that expires is written down (``expired/R.json``): from then on no step takes it for one that is there,
whatever of it still is. Then each of its folders is renamed, which takes it away in one step, and removed. So a kill
leaves nothing that looks whole and is not, and the next maintenance goes on.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jobs.errors import JobError
from jobs.lake import publication, storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.runtime.step_metrics import measure
from jobs.settings import Settings
from jobs.upkeep import inventory, retention
from jobs.upkeep.inventory import (
    EXAMPLES,
    HISTORY,
    INDEXES,
    KINDS,
    PLANS,
    PREDICTIONS,
    TABLES,
    UNFINISHED,
    VALIDATED,
    Folder,
    Listing,
)
from jobs.upkeep.retention import Limits, State
from schemas.documents import Expired

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Count:
    """How much of a kind stays and goes."""

    kept: int = 0
    expired: int = 0
    bytes: int = 0  # of what goes


@dataclass(slots=True)
class Sweep:
    """What goes, kind by kind; where `delete` is not set, it is counted and stays."""

    lake: Lake
    delete: bool
    counts: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    _aside: list[Path] = field(default_factory=list)

    @property
    def expired(self) -> dict[str, int]:
        """How many of each kind go."""
        return {kind: count.expired for kind, count in self.counts.items()}

    @property
    def bytes(self) -> int:
        """How many bytes go."""
        return sum(count.bytes for count in self.counts.values())

    def lines(self) -> list[str]:
        """Return the table of what stays and what goes."""
        counts = self.counts.values()
        total = Count(sum(c.kept for c in counts), sum(c.expired for c in counts), self.bytes)
        found = [f"{'':<12}{'kept':>10}{'expired':>10}{'bytes':>18}"]
        found += [
            f"{kind:<12}{c.kept:>10,}{c.expired:>10,}{c.bytes:>18,}"
            for kind, c in {**self.counts, "all": total}.items()
        ]
        return found if self.delete else [*found, "nothing was removed: --delete removes what has expired"]

    def keep(self, kind: str, number: int = 1) -> None:
        """Count what stays."""
        self.counts[kind].kept += number

    def take(self, kind: str, path: AnyPath) -> None:
        """Count what goes; take it away in one step. What lies behind a link is not the lake's, and stays."""
        if not storage.exists(path) and not (storage.on_disk(path) and path.is_symlink()):
            return  # someone else has removed it
        if storage.on_disk(path) and path.resolve() != path:
            log.warning("maintenance: %s is or lies behind a link, and is left alone", path)
            self.keep(kind)
            return
        size = inventory.size(path)
        self.counts[kind].expired += 1
        self.counts[kind].bytes += size
        log.info(
            "maintenance: %s %s, %s bytes", self.lake.relative(path), "goes" if self.delete else "may go", f"{size:,}"
        )
        if not self.delete:
            return
        if not storage.on_disk(path):
            storage.remove_folder(path)
        elif path.is_dir():
            self._aside.append(path if path.name.startswith(storage.ASIDE) else storage.set_aside(path))
        else:
            storage.remove(path)

    def sort(self, found: Iterable[Folder], gone: Iterable[Folder]) -> None:
        """Take those of the folders that are gone, and count the others."""
        away = set(gone)
        for folder in found:
            if folder in away:
                self.take(folder.kind, folder.path)
            else:
                self.keep(folder.kind)

    def empty(self) -> None:
        """Remove what was taken away."""
        while self._aside:
            storage.remove(self._aside.pop())


def maintenance(settings: Settings, *, days: int = 30, keep: int = 7, delete: bool = False) -> Sweep:
    """Remove what the lake no longer needs, or say what that is.

    Args:
        settings: names the lake.
        days: least age of what goes: of a run, since it was last worked on and was last live.
        keep: of the published runs the newest so many stay, whatever their age, beside the live one.
        delete: remove it; else it is only counted, and nothing is changed.

    Returns:
        What goes and what stays.

    Raises:
        JobError: there is no such lake, another maintenance is at work, a document is broken, or something cannot be
            removed. Started again, it goes on.
    """
    lake = Lake(settings.root)
    if not storage.exists(lake.raw("-").parent):
        raise JobError(f"{lake.root} is no lake: no day was ever imported there")
    limits, sweep = Limits(days, keep, time.time()), Sweep(lake, delete)
    alone = _lock(sweep, lake.expired("-").parent, busy="another maintenance is at work; wait for it")
    with alone, measure("maintenance") as measured:
        _sweep(lake, limits, sweep)
        measured.rows = sum(sweep.expired.values())
    return sweep


def _lock(sweep: Sweep, path: AnyPath, busy: str | None = None) -> AbstractContextManager[None]:
    """Return the lock of `path`; where nothing is removed, none: nothing is waited for, and no file is written."""
    return storage.locked(path, busy=busy) if sweep.delete else contextlib.nullcontext()


def _sweep(lake: Lake, limits: Limits, sweep: Sweep) -> None:
    if sweep.delete:
        publication.settle(lake)  # readers have the run that the pointer names
    with _lock(sweep, lake.history):
        found = inventory.look(lake)
        state = _expire(lake, limits, found, sweep)
    for kind, path in found.aside:
        sweep.take(kind, path)
    sweep.empty()
    with _lock(sweep, lake.all_examples):
        for kind in (PREDICTIONS, PLANS):
            sweep.sort(found.of(kind), [folder for folder in found.of(kind) if folder.run_id in state.gone])
        sweep.sort(found.of(EXAMPLES), retention.unneeded_examples(lake, found, state, limits))
    sweep.empty()
    sweep.sort(found.of(TABLES), [folder for folder in found.of(TABLES) if folder.run_id in state.gone])
    sweep.empty()
    for run in inventory.left_indexes(lake):
        if run in state.gone:
            sweep.take(INDEXES, lake.left_index(run))
        else:
            sweep.keep(INDEXES)
    sweep.sort(found.of(HISTORY), retention.unneeded_changes(lake, found, state, limits))
    sweep.empty()
    _sweep_versions(lake, limits, sweep, found, state)
    for path in retention.given_up(found, limits):
        sweep.take(UNFINISHED, path)
    sweep.empty()


def _expire(lake: Lake, limits: Limits, found: Listing, sweep: Sweep) -> State:
    """Let runs expire, and return what has become of them all."""
    state = retention.judge(lake, found, limits)
    busy = [run for run in sorted(state.expiring) if not _expire_one(lake, run, limits, sweep)]
    return retention.judge(lake, found, limits, busy) if busy else state


def _expire_one(lake: Lake, run_id: str, limits: Limits, sweep: Sweep) -> bool:
    """Write down that a run has expired; return False where a step is, or was just now, at work on it."""
    with contextlib.ExitStack() as stack:
        places = (lake.plan(run_id), lake.examples(run_id), lake.run(run_id))
        free = [stack.enter_context(storage.unless_busy(place)) for place in places]
        if not all(free) or retention.last_used(lake, run_id) > limits.now:
            log.info("maintenance: %s is in use, and stays", run_id)
            return False
        if sweep.delete:
            manifest = lake.read_manifest(run_id)
            expired = Expired(run_id=run_id, ds=run_id[:10], manifest=manifest, expired_at=datetime.now(UTC))
            storage.write_document(lake.expired(run_id), expired)
    return True


def _sweep_versions(lake: Lake, limits: Limits, sweep: Sweep, found: Listing, state: State) -> None:
    several = {ds: paths for ds, paths in found.versions.items() if len({path.name for path in paths}) > 1}
    named = retention.versions_of_plans(lake, state) if several else frozenset()
    for ds, paths in found.versions.items():
        gone: list[AnyPath] = []
        if ds in several:
            with storage.unless_busy(lake.valid(ds)) as free:
                gone = retention.superseded(lake, ds, paths, named, limits) if free else []
                for path in gone:
                    sweep.take(VALIDATED, path)
        sweep.keep(VALIDATED, len(paths) - len(gone))
    sweep.empty()
