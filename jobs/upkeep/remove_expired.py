"""Remove from the lake, or only count, everything that has expired according to `jobs.upkeep.retention`.

1. Each expiring run is recorded in ``expired/R.json``. From then on every step ignores what still exists of it.
2. Each of its folders is renamed, which makes it disappear in a single step, and then removed.

A kill therefore leaves nothing that looks complete but is not, and the next maintenance continues.
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
    """Number of items of one kind that stay and that expire."""

    kept: int = 0
    expired: int = 0
    bytes: int = 0  # size of the expired items


@dataclass(slots=True)
class Sweep:
    """One pass of maintenance, which removes or only counts expired items, by kind."""

    lake: Lake
    delete: bool  # False: only count
    counts: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in KINDS})
    _aside: list[Path] = field(default_factory=list)

    @property
    def expired(self) -> dict[str, int]:
        """Number of expired items of each kind."""
        return {kind: count.expired for kind, count in self.counts.items()}

    @property
    def bytes(self) -> int:
        """Total size of the expired items in bytes."""
        return sum(count.bytes for count in self.counts.values())

    def lines(self) -> list[str]:
        """Return the lines of a table of the counts."""
        counts = self.counts.values()
        total = Count(sum(c.kept for c in counts), sum(c.expired for c in counts), self.bytes)
        table = [f"{'':<12}{'kept':>10}{'expired':>10}{'bytes':>18}"]
        table += [
            f"{kind:<12}{c.kept:>10,}{c.expired:>10,}{c.bytes:>18,}"
            for kind, c in {**self.counts, "all": total}.items()
        ]
        return table if self.delete else [*table, "nothing was removed: --delete removes what has expired"]

    def keep(self, kind: str, number: int = 1) -> None:
        """Count items that stay."""
        self.counts[kind].kept += number

    def take(self, kind: str, path: AnyPath) -> None:
        """Count an expired item and, with `delete`, make it disappear in a single step.

        A link, or a path behind a link, does not belong to the lake and stays.
        """
        if not storage.exists(path) and not (storage.on_disk(path) and path.is_symlink()):
            return  # removed in the meantime
        if storage.on_disk(path) and path.resolve() != path:
            log.warning("maintenance: %s is a link or is behind one, so it stays", path)
            self.keep(kind)
            return
        size = inventory.size(path)
        self.counts[kind].expired += 1
        self.counts[kind].bytes += size
        log.info(
            "maintenance: %s %s, %s bytes",
            self.lake.relative(path),
            "is removed" if self.delete else "can be removed",
            f"{size:,}",
        )
        if not self.delete:
            return
        if not storage.on_disk(path):
            storage.remove_folder(path)
        elif path.is_dir():
            self._aside.append(path if path.name.startswith(storage.ASIDE) else storage.set_aside(path))
        else:
            storage.remove(path)

    def sort(self, folders: Iterable[Folder], expired: Iterable[Folder]) -> None:
        """Take the expired folders and count the others as kept."""
        taken = set(expired)
        for folder in folders:
            if folder in taken:
                self.take(folder.kind, folder.path)
            else:
                self.keep(folder.kind)

    def empty(self) -> None:
        """Remove the folders that `take` renamed."""
        while self._aside:
            storage.remove(self._aside.pop())


def maintenance(settings: Settings, *, days: int = 30, keep: int = 7, delete: bool = False) -> Sweep:
    """Remove, or only count, what the lake no longer needs.

    Args:
        settings: settings, including the root of the lake.
        days: minimum age in days of what is removed. A run's age counts from its last work and from when it was last live.
        keep: number of newest published runs that stay whatever their age, in addition to the live one.
        delete: True to remove what has expired, False to only count it and change nothing.

    Returns:
        The counts of what expired and what stays.

    Raises:
        JobError: the lake does not exist, another maintenance is running, a document is broken, or something cannot be
            removed. The next maintenance continues.
    """
    lake = Lake(settings.root)
    if not storage.exists(lake.raw("-").parent):
        raise JobError(f"{lake.root} is not a lake: no day was ever imported there")
    limits, sweep = Limits(days, keep, time.time()), Sweep(lake, delete)
    maintenance_lock = _lock(sweep, lake.expired("-").parent, busy="another maintenance is running; wait for it")
    with maintenance_lock, measure("maintenance") as measured:
        _sweep(lake, limits, sweep)
        measured.rows = sum(sweep.expired.values())
    return sweep


def _lock(sweep: Sweep, path: AnyPath, busy: str | None = None) -> AbstractContextManager[None]:
    """Return the lock of `path`; a null context if nothing is removed, so that a count neither waits nor writes."""
    return storage.locked(path, busy=busy) if sweep.delete else contextlib.nullcontext()


def _sweep(lake: Lake, limits: Limits, sweep: Sweep) -> None:
    if sweep.delete:
        publication.settle(lake)  # readers still read the run that the pointer names
    with _lock(sweep, lake.history):
        listing = inventory.list_lake(lake)
        state = _expire(lake, limits, listing, sweep)
    for kind, path in listing.aside:
        sweep.take(kind, path)
    sweep.empty()
    with _lock(sweep, lake.all_examples):
        for kind in (PREDICTIONS, PLANS):
            sweep.sort(listing.of_kind(kind), [each for each in listing.of_kind(kind) if each.run_id in state.gone])
        sweep.sort(listing.of_kind(EXAMPLES), retention.unneeded_examples(lake, listing, state, limits))
    sweep.empty()
    sweep.sort(listing.of_kind(TABLES), [each for each in listing.of_kind(TABLES) if each.run_id in state.gone])
    sweep.empty()
    for run in inventory.left_indexes(lake):
        if run in state.gone:
            sweep.take(INDEXES, lake.left_index(run))
        else:
            sweep.keep(INDEXES)
    sweep.sort(listing.of_kind(HISTORY), retention.unneeded_changes(lake, listing, state, limits))
    sweep.empty()
    _sweep_versions(lake, limits, sweep, listing, state)
    for path in retention.given_up(listing, limits):
        sweep.take(UNFINISHED, path)
    sweep.empty()


def _expire(lake: Lake, limits: Limits, listing: Listing, sweep: Sweep) -> State:
    """Record the runs that expire, and return the state of all runs."""
    state = retention.judge(lake, listing, limits)
    busy = [run for run in sorted(state.expiring) if not _expire_one(lake, run, limits, sweep)]
    return retention.judge(lake, listing, limits, busy) if busy else state


def _expire_one(lake: Lake, run_id: str, limits: Limits, sweep: Sweep) -> bool:
    """Record that a run has expired; return False if a step is working on it or has just done so."""
    with contextlib.ExitStack() as stack:
        folders = (lake.plan(run_id), lake.examples(run_id), lake.run(run_id))
        free = [stack.enter_context(storage.unless_busy(folder)) for folder in folders]
        if not all(free) or retention.last_used(lake, run_id) > limits.now:
            log.info("maintenance: %s is in use, so it stays", run_id)
            return False
        if sweep.delete:
            manifest = lake.read_manifest(run_id)
            expired = Expired(run_id=run_id, ds=run_id[:10], manifest=manifest, expired_at=datetime.now(UTC))
            storage.write_document(lake.expired(run_id), expired)
    return True


def _sweep_versions(lake: Lake, limits: Limits, sweep: Sweep, listing: Listing, state: State) -> None:
    several = {ds: paths for ds, paths in listing.versions.items() if len({path.name for path in paths}) > 1}
    named = retention.versions_of_plans(lake, state) if several else frozenset()
    for ds, paths in listing.versions.items():
        expired: list[AnyPath] = []
        if ds in several:
            with storage.unless_busy(lake.valid(ds)) as free:
                expired = retention.superseded(lake, ds, paths, named, limits) if free else []
                for path in expired:
                    sweep.take(VALIDATED, path)
        sweep.keep(VALIDATED, len(paths) - len(expired))
    sweep.empty()
