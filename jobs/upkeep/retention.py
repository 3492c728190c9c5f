"""What the lake no longer needs: which runs have expired, and what of them nothing names any more. It removes nothing.

A run expires whole and for good: its tables, its predictions and its plan go together. Its changes stay as long as an
index of the history names them, its examples as long as anything names them that stays.
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
_DAYS_OF_A_SET: Final = 7  # that a labelled set is in use at least, once a step has asked for it: trainings are long


@dataclass(frozen=True, slots=True)
class Limits:
    """From which age on something may go."""

    days: int
    keep: int  # of the published runs the newest, beside the live one
    now: float  # seconds since 1970

    def is_old(self, time: float) -> bool:
        """Whether what was last used at `time` may go."""
        return self.now - time >= self.days * _DAY

    def is_idle(self, time: float, least: int = 1) -> bool:
        """Whether what a step may still be at work on may go: not before some days, whatever age was asked for."""
        return self.now - time >= max(self.days, least) * _DAY


@dataclass(frozen=True, slots=True)
class State:
    """What becomes of the runs: those that are in neither set stay whole."""

    expiring: frozenset[str]  # they may go now
    expired: frozenset[str]  # they went before; something of them may still be there
    changes: frozenset[str]  # folders of changes, relative to the lake, that an index which stays names

    @property
    def gone(self) -> frozenset[str]:
        """The runs that have expired, now or before."""
        return self.expiring | self.expired


# --- runs


def judge(lake: Lake, found: Listing, limits: Limits, busy: Iterable[str] = ()) -> State:
    """Return which of the runs that were found stay, and which may go.

    Who acts on it holds the lock of the index meanwhile, so that no run becomes live, or part of the history.

    Args:
        busy: runs that a step is at work on; they stay.

    Raises:
        JobError: a document of a run that is there is broken.
    """
    index, expired, left = lake.read_history_index(), inventory.expired_runs(lake), inventory.left_indexes(lake)
    runs = {folder.run_id for folder in found.runs} - expired
    live = {run for run in (index.live, lake.current_run()) if run is not None}
    made = _tables_made(lake, found)
    ever_live = {run for run in made if run in left or history.own_run(lake, index, run[:10]) == run}
    newest = sorted(ever_live - live, key=lambda run: made[run], reverse=True)[: limits.keep]
    kept = runs & {*live, *newest, *busy}
    # A run with tables that left no index was last live before there were any, or never.
    first_left = min(left.values(), default=limits.now)
    for run in runs - kept:
        time = max(last_used(lake, run), left.get(run, first_left if run in made else 0))
        if not (limits.is_old(time) if _is_done(lake, index, run) else limits.is_idle(time)):
            kept.add(run)
    # What is published and has no ledger is taken up again.
    cut_off = {run for run in runs - kept if lake.find_ledger(run) is None}
    changes = set[str]()
    for each in _indexes(lake, index, ((kept | cut_off) & left.keys()) - {index.live}):
        changes |= {day.path for day in each.days.values() if day.path}
        kept |= {run for run in cut_off if history.own_run(lake, each, run[:10]) == run}
    return State(frozenset(runs - kept), expired, frozenset(changes))


def _tables_made(lake: Lake, found: Listing) -> dict[str, datetime]:
    """Return the runs that have tables, each with when they were made."""
    manifests = (lake.read_manifest(folder.run_id) for folder in found.of(TABLES))
    return {manifest.run_id: manifest.created_at for manifest in manifests if manifest is not None and manifest.files}


def _indexes(lake: Lake, index: HistoryIndex, left: Iterable[str]) -> Iterator[HistoryIndex]:
    """Yield the index and those that runs have left, one at a time: each names all days."""
    yield index
    for run in sorted(left):
        remedy = f"put it back from a copy of the lake, or move it away: then nobody can go back to {run}"
        found = storage.read_document(lake.left_index(run), HistoryIndex, remedy)
        if found is not None:
            yield found


def _is_done(lake: Lake, index: HistoryIndex, run_id: str) -> bool:
    """Whether each step of a run is done, its report too, and the history has it: nothing will work on it any more."""
    ledger, page = (lake.reports(run_id) / name for name in ("ledger.json", "report.html"))
    reported = storage.exists(ledger) and last_written(page) >= last_written(ledger)
    return reported and history.own_run(lake, index, run_id[:10]) == run_id


def last_used(lake: Lake, run_id: str) -> float:
    """Return when something was last at work on a run."""
    places = (lake.plan(run_id), lake.examples(run_id), lake.run(run_id))
    files = (lake.reports(run_id) / name for name in ("ledger.json", "report.html"))
    more = (lake.predictions(run_id), lake.history_run(run_id[:10], run_id), *files)
    return max(map(last_written, (*places, *map(storage.lock_file, places), *more)))


# --- changes


def unneeded_changes(lake: Lake, found: Listing, state: State, limits: Limits) -> list[Folder]:
    """Return the folders of changes of expired runs that no index names, and have not named for long enough.

    Since when is written nowhere. Not later than the newest run that wrote the same day was at work: it took their
    place. Or the day was rolled back, by a run that left an index which names them, and stays as long.
    """
    by_day: dict[AnyPath, list[Folder]] = {}
    for folder in found.of(HISTORY):
        by_day.setdefault(folder.path.parent, []).append(folder)
    unneeded = []
    for of_day in by_day.values():
        idle = [f for f in of_day if f.run_id in state.gone and lake.relative(f.path) not in state.changes]
        if idle:
            times = (last_written(p) for f in of_day for p in (f.path, storage.lock_file(lake.run(f.run_id))))
            unneeded += idle if limits.is_old(max(times)) else []
    return unneeded


# --- examples


def unneeded_examples(lake: Lake, found: Listing, state: State, limits: Limits) -> list[Folder]:
    """Return the folders of examples of expired runs that nothing names which stays: no plan, product or labelled set.

    Who acts on it has the lock of `Lake.all_examples` alone meanwhile. Reads the plan of each run that stays, and one
    column of its products.

    Raises:
        JobError: what may name examples cannot be read.
    """
    idle = [folder for folder in found.of(EXAMPLES) if folder.run_id in state.gone]
    if not idle:
        return []
    named = _named_by_sets(lake, found, limits)
    for plan in _plans(lake, state):  # those of runs too that have begun since
        named |= {_of_run(path) for shard in plan.shards for path in shard.example_paths}
    for folder in found.of(TABLES):
        manifest = lake.read_manifest(folder.run_id) if folder.run_id not in state.gone else None
        named |= _named_by_products(lake, manifest) if manifest is not None else set()
    return [folder for folder in idle if lake.relative(folder.path) not in named]


def _plans(lake: Lake, state: State) -> Iterator[Plan]:
    """Yield the plans that there are now, but for those of runs that have expired."""
    for folder in inventory.plans(lake):
        gone, remedy = folder.run_id in state.gone, replan(folder.run_id[:10])
        plan = None if gone else storage.read_document(folder.path / "plan.json", Plan, remedy)
        if plan is not None:
            yield plan


def _of_run(path: str) -> str:
    """Return the folder of the run, ``examples/ds=D/run=R``, of one of its shards."""
    return "/".join(path.split("/")[:3])


def _named_by_products(lake: Lake, manifest: RunManifest) -> set[str]:
    found = set[str]()
    for path in (lake.root / file.path for file in manifest.files if file.table == PRODUCTS):
        try:
            with open_parquet(path, read_dictionary=["example_path"]) as file:
                for batch in file.iter_batches(columns=["example_path"]):
                    found |= {_of_run(name) for name in batch.column(0).unique().to_pylist()}
        except (OSError, pa.ArrowException) as error:
            raise JobError(f"{path}: it cannot be read, so which examples it names is not known: {error}") from error
    return found


def _named_by_sets(lake: Lake, found: Listing, limits: Limits) -> set[str]:
    """Return the examples of the labelled sets of models, of trainings that may go on, and of those that are in use."""
    of_models = {_set_of(lake.models / version) for version in registry.list_versions(lake.models)}
    begun = {workdir.labelled_set(path) for path in found.trainings if not _is_given_up(path, limits)}
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
    """Return the folder of the labelled set that a model version was trained on. Raises JobError where it is not told."""
    try:
        return str(json.loads(storage.read_bytes(model / registry.METRICS) or b"").get("labelled_set"))
    except (OSError, ValueError, AttributeError) as error:
        raise JobError(
            f"{model / registry.METRICS}: cannot be read ({error}), so which examples the model was trained on is not known; "
            "put it back from a copy of the lake"
        ) from error


# --- days that were validated anew


def versions_of_plans(lake: Lake, state: State) -> frozenset[str]:
    """Return the folders of records, relative to the lake, that the plans which stay were made from."""
    both = ((plan.validation.valid_path, plan.validation.quarantine_path) for plan in _plans(lake, state))
    return frozenset(path for paths in both for path in paths)


def superseded(
    lake: Lake, ds: str, versions: Iterable[AnyPath], named: frozenset[str], limits: Limits
) -> list[AnyPath]:
    """Return those of a day's versions that were superseded long enough ago, and are not `named`.

    Who acts on it holds the lock of the day meanwhile.
    """
    remedy = f"`python -m jobs validate --ds {ds}` makes it again"
    current = storage.read_document(lake.valid(ds) / "current.json", Validation, remedy)
    if current is None or not limits.is_idle(last_written(lake.valid(ds) / "current.json")):
        return []  # a plan that is being made may still read the version before
    stay = {current.valid_path, current.quarantine_path, *named}
    return [path for path in versions if lake.relative(path) not in stay]


# --- what was begun and never ended


def given_up(found: Listing, limits: Limits) -> Iterator[AnyPath]:
    """Yield what killed writers left, what in ``scratch`` was not written for a day, and trainings long left alone."""
    any_age = Limits(0, 0, limits.now)
    yield from (path for path in found.temporary if any_age.is_idle(last_written(path)))
    yield from (path for path in found.scratch if any_age.is_idle(inventory.newest(path)))
    yield from (path for path in found.trainings if _is_given_up(path, limits))


def _is_given_up(training: AnyPath, limits: Limits) -> bool:
    return limits.is_idle(inventory.newest(training))
