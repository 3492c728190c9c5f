"""Retention rules: which runs have expired, and which of their files nothing references. Decides only; deletes nothing.

A run expires completely and permanently: its tables, predictions and plan go together. Its changes stay while a history
index names them. Its examples stay while anything that stays names them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import pyarrow as pa

from cma_clip_core import registry
from cma_clip_core.content.paths import AnyPath, open_parquet
from jobs.errors import JobError
from jobs.lake import history, storage
from jobs.lake.layout import PRODUCTS, Lake, replan
from jobs.training import workdir
from jobs.upkeep import inventory
from jobs.upkeep.inventory import EXAMPLES, HISTORY, TABLES, Folder, Listing, last_written
from schemas.documents import HistoryIndex, LabelledManifest, Plan, RunManifest, Validation

_DAY: Final = 86_400  # seconds
_DAYS_OF_A_SET: Final = 7  # minimum days that a labelled set counts as in use after a step used it: trainings are long


@dataclass(frozen=True, slots=True)
class Limits:
    """Minimum ages for removal."""

    days: int
    keep: int  # number of newest published runs that stay, in addition to the live one
    now: float  # seconds since 1970

    def is_old(self, time: float) -> bool:
        """Return whether something last used at `time` may be removed."""
        return self.now - time >= self.days * _DAY

    def is_idle(self, time: float, least: int = 1) -> bool:
        """Return whether something that a step may still be using may be removed: after `days`, but at least `least` days."""
        return self.now - time >= max(self.days, least) * _DAY


@dataclass(frozen=True, slots=True)
class State:
    """State of the runs. A run that is neither expiring nor expired stays complete."""

    expiring: frozenset[str]  # runs that may be removed now
    expired: frozenset[str]  # runs that expired before; some of their files may still exist
    changes: frozenset[str]  # folders of changes, relative to the lake, named by an index that stays

    @property
    def gone(self) -> frozenset[str]:
        """Runs that have expired, now or before."""
        return self.expiring | self.expired


# --- runs


def judge(lake: Lake, listing: Listing, limits: Limits, busy: Iterable[str] = ()) -> State:
    """Decide which of the listed runs stay and which may be removed.

    The caller must hold the lock of the history index while it acts on the result, so that no run becomes live or part of
    the history in the meantime.

    Args:
        lake: the lake.
        listing: the lake's content.
        limits: minimum ages for removal.
        busy: runs that a step is working on; they stay.

    Raises:
        JobError: a document of an existing run is broken.
    """
    index, expired, left = lake.read_history_index(), inventory.expired_runs(lake), inventory.left_indexes(lake)
    runs = {folder.run_id for folder in listing.runs} - expired
    live = {run for run in (index.live, lake.current_run()) if run is not None}
    made = _tables_made(lake, listing)
    ever_live = {run for run in made if run in left or history.own_run(lake, index, run[:10]) == run}
    newest = sorted(ever_live - live, key=lambda run: made[run], reverse=True)[: limits.keep]
    kept = runs & {*live, *newest, *busy}
    # A run that has tables but left no index was last live before any index was left, or never.
    first_left = min(left.values(), default=limits.now)
    for run in runs - kept:
        time = max(last_used(lake, run), left.get(run, first_left if run in made else 0))
        if not (limits.is_old(time) if _is_done(lake, index, run) else limits.is_idle(time)):
            kept.add(run)
    # A published run without a ledger is unfinished; a later step completes it.
    cut_off = {run for run in runs - kept if lake.find_ledger(run) is None}
    changes = set[str]()
    for each in _indexes(lake, index, ((kept | cut_off) & left.keys()) - {index.live}):
        changes |= {day.path for day in each.days.values() if day.path}
        kept |= {run for run in cut_off if history.own_run(lake, each, run[:10]) == run}
    return State(frozenset(runs - kept), expired, frozenset(changes))


def _tables_made(lake: Lake, listing: Listing) -> dict[str, datetime]:
    """Return the runs that have tables, each with the time when the tables were made."""
    manifests = (lake.read_manifest(folder.run_id) for folder in listing.of_kind(TABLES))
    return {manifest.run_id: manifest.created_at for manifest in manifests if manifest is not None and manifest.files}


def _indexes(lake: Lake, index: HistoryIndex, left: Iterable[str]) -> Iterator[HistoryIndex]:
    """Yield the index, then those that runs left; one at a time, because each names all days."""
    yield index
    for run in sorted(left):
        remedy = f"put it back from a copy of the lake, or move it away: then a rollback to {run} is no longer possible"
        left_index = storage.read_document(lake.left_index(run), HistoryIndex, remedy)
        if left_index is not None:
            yield left_index


def _is_done(lake: Lake, index: HistoryIndex, run_id: str) -> bool:
    """Return whether all steps of a run are done, including its report, and the history contains it."""
    ledger, page = (lake.reports(run_id) / name for name in ("ledger.json", "report.html"))
    reported = storage.exists(ledger) and last_written(page) >= last_written(ledger)
    return reported and history.own_run(lake, index, run_id[:10]) == run_id


def last_used(lake: Lake, run_id: str) -> float:
    """Return when a step last worked on a run."""
    locked = (lake.plan(run_id), lake.examples(run_id), lake.run(run_id))
    files = (lake.reports(run_id) / name for name in ("ledger.json", "report.html"))
    more = (lake.predictions(run_id), lake.history_run(run_id[:10], run_id), *files)
    return max(map(last_written, (*locked, *map(storage.lock_file, locked), *more)))


# --- changes


def unneeded_changes(lake: Lake, listing: Listing, state: State, limits: Limits) -> list[Folder]:
    """Return the change folders of expired runs that no index has named for long enough.

    The time when an index last named a folder is not recorded. The latest work of any run on the same day is an upper bound,
    because that run replaced the folder. After a rollback, the run that was live before left an index that still names the
    folder, and that run stays long enough.
    """
    by_day: dict[AnyPath, list[Folder]] = {}
    for folder in listing.of_kind(HISTORY):
        by_day.setdefault(folder.path.parent, []).append(folder)
    unneeded = []
    for folders in by_day.values():
        idle = [f for f in folders if f.run_id in state.gone and lake.relative(f.path) not in state.changes]
        if idle:
            times = (last_written(p) for f in folders for p in (f.path, storage.lock_file(lake.run(f.run_id))))
            unneeded += idle if limits.is_old(max(times)) else []
    return unneeded


# --- examples


def unneeded_examples(lake: Lake, listing: Listing, state: State, limits: Limits) -> list[Folder]:
    """Return the example folders of expired runs that no plan, product or labelled set that stays refers to.

    The caller must hold the lock of `Lake.all_examples` exclusively while it acts on the result. The function reads the plan
    of each run that stays, and one column of its products.

    Raises:
        JobError: a file that may refer to examples cannot be read.
    """
    idle = [folder for folder in listing.of_kind(EXAMPLES) if folder.run_id in state.gone]
    if not idle:
        return []
    named = _named_by_sets(lake, listing, limits)
    for plan in _plans(lake, state):  # including plans of runs that have begun since the listing
        named |= {_examples_folder(path) for shard in plan.shards for path in shard.example_paths}
    for folder in listing.of_kind(TABLES):
        manifest = lake.read_manifest(folder.run_id) if folder.run_id not in state.gone else None
        named |= _named_by_products(lake, manifest) if manifest is not None else set()
    return [folder for folder in idle if lake.relative(folder.path) not in named]


def _plans(lake: Lake, state: State) -> Iterator[Plan]:
    """Yield the plans that exist now, except those of expired runs."""
    for folder in inventory.plans(lake):
        gone, remedy = folder.run_id in state.gone, replan(folder.run_id[:10])
        plan = None if gone else storage.read_document(folder.path / "plan.json", Plan, remedy)
        if plan is not None:
            yield plan


def _examples_folder(path: str) -> str:
    """Return the run's folder, ``examples/ds=D/run=R``, of the path of an example shard."""
    return "/".join(path.split("/")[:3])


def _named_by_products(lake: Lake, manifest: RunManifest) -> set[str]:
    folders = set[str]()
    for path in (lake.root / file.path for file in manifest.files if file.table == PRODUCTS):
        try:
            with open_parquet(path, read_dictionary=["example_path"]) as file:
                for batch in file.iter_batches(columns=["example_path"]):
                    folders |= {_examples_folder(name) for name in batch.column(0).unique().to_pylist()}
        except (OSError, pa.ArrowException) as error:
            raise JobError(f"{path}: it cannot be read, so its examples are unknown: {error}") from error
    return folders


def _named_by_sets(lake: Lake, listing: Listing, limits: Limits) -> set[str]:
    """Return the example folders of labelled sets that are needed.

    A labelled set is needed if one of these holds:

    - a model version was trained on it
    - an unfinished training on it may continue
    - a step used it recently
    """
    of_models = {_set_of(lake.models / version) for version in registry.list_versions(lake.models)}
    begun = {workdir.labelled_set(path) for path in listing.trainings if not _is_given_up(path, limits)}
    named = set[str]()
    for day in inventory.subfolders(lake.root / "labelled", "ds="):
        for folder in inventory.subfolders(day, "set="):
            in_use = not limits.is_idle(last_written(folder), _DAYS_OF_A_SET)
            if in_use or lake.relative(folder) in of_models or folder.name.removeprefix("set=") in begun:
                remedy = f"`python -m jobs dataset --ds {day.name.removeprefix('ds=')}` makes it again"
                manifest = storage.read_document(folder / "manifest.json", LabelledManifest, remedy)
                named |= set(manifest.inputs.examples) if manifest else set()
    return named


def _set_of(model: AnyPath) -> str:
    """Return the folder of the labelled set that a model version was trained on. Raises JobError if it cannot be read."""
    try:
        return str(json.loads(storage.read_bytes(model / registry.METRICS) or b"").get("labelled_set"))
    except (OSError, ValueError, AttributeError) as error:
        raise JobError(
            f"{model / registry.METRICS}: cannot be read ({error}), so the examples that the model was trained on are unknown; "
            "put it back from a copy of the lake"
        ) from error


# --- days that were validated again


def versions_of_plans(lake: Lake, state: State) -> frozenset[str]:
    """Return the folders of records, relative to the lake, that the remaining plans were made from."""
    both = ((plan.validation.valid_path, plan.validation.quarantine_path) for plan in _plans(lake, state))
    return frozenset(path for paths in both for path in paths)


def superseded(
    lake: Lake, ds: str, versions: Iterable[AnyPath], named: frozenset[str], limits: Limits
) -> list[AnyPath]:
    """Return those of a day's versions that were superseded long enough ago and that no plan refers to.

    The caller must hold the lock of the day while it acts on the result.

    Args:
        lake: the lake.
        ds: the day.
        versions: folders of the day's valid and quarantined records.
        named: folders that plans refer to, from `versions_of_plans`.
        limits: minimum ages for removal.
    """
    remedy = f"`python -m jobs validate --ds {ds}` makes it again"
    current = storage.read_document(lake.valid(ds) / "current.json", Validation, remedy)
    if current is None or not limits.is_idle(last_written(lake.valid(ds) / "current.json")):
        return []  # a plan in progress may still read the previous version
    stay = {current.valid_path, current.quarantine_path, *named}
    return [path for path in versions if lake.relative(path) not in stay]


# --- unfinished work


def given_up(listing: Listing, limits: Limits) -> Iterator[AnyPath]:
    """Yield the paths of abandoned work.

    - temporary files and entries of ``scratch`` that were not written for a day
    - unfinished trainings that are older than the limit
    """
    day_limit = Limits(0, 0, limits.now)  # `is_idle` waits at least a day
    yield from (path for path in listing.temporary if day_limit.is_idle(last_written(path)))
    yield from (path for path in listing.scratch if day_limit.is_idle(inventory.newest(path)))
    yield from (path for path in listing.trainings if _is_given_up(path, limits))


def _is_given_up(training: AnyPath, limits: Limits) -> bool:
    return limits.is_idle(inventory.newest(training))
