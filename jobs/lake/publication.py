"""Publication of a run by one atomic swap, and the check that the run's plan is not stale.

``attribute_history/index.json`` names the live run and the location of each day's changes. One swap of this file
publishes a run, a backfill or a rollback as a whole. ``attribute_tables/current``, the pointer for readers, is updated
right after it. If the process is killed in between, or the pointer is damaged, the next plan, publish or rollback of
any day repairs the pointer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobs.errors import JobError, StalePlanError
from jobs.lake import history, storage, verified_files
from jobs.lake.layout import PRODUCTS, Lake, rewrite
from schemas.documents import HistoryIndex, Plan, RunManifest


@dataclass(frozen=True, slots=True)
class Base:
    """The published state that a run is based on. A plan with another base is stale."""

    run: str | None  # the run whose tables the catalog is compared with
    days: dict[str, str | None]  # the days of history that the run will write, each with the run that wrote it last

    @classmethod
    def from_plan(cls, plan: Plan) -> Base:
        """Return the base of `plan`."""
        return cls(plan.base_run, plan.history_base)

    @property
    def backfill(self) -> bool:
        """True if the history has a later day. The run then rewrites that day too, so that its tables stay the same."""
        return len(self.days) > 1


def base(lake: Lake, index: HistoryIndex, ds: str) -> Base:
    """Return the base that a run of `ds` would have now."""
    following = history.next_day(index, ds)
    written = [ds] if following is None else [ds, following]
    if following is None:
        run = index.live
    else:
        newest = max((day for day in index.days if day <= ds), default=None)
        run = history.own_run(lake, index, newest) if newest is not None else None
    return Base(run, {day: history.run_of(index, day) for day in written})


def check_base(lake: Lake, index: HistoryIndex, plan: Plan) -> None:
    """Raise StalePlanError if `plan` has another base than `index` gives."""
    if base(lake, index, plan.ds) == Base.from_plan(plan):
        return
    if not plan.backfill and index.live != plan.base_run:
        reason = f"run {plan.run_id} was planned on {plan.base_run}, but {index.live} is live now"
    else:
        reason = f"{lake.history_index}: another run changed the days that {plan.run_id} was planned on"
    raise StalePlanError(
        f"{reason}; nothing is published. Start the night of {plan.ds} again: it plans and tags the day again"
    )


def swap(lake: Lake, change: Callable[[HistoryIndex], HistoryIndex]) -> HistoryIndex:
    """Replace the index by ``change(index)``, update the pointer, and return the new index.

    A lock serializes swaps, so `change` gets the index that the previous swap wrote. Nothing is written if it raises.

    Raises:
        JobError: the run that would become live has no manifest.
    """
    with storage.locked(lake.history):
        content = storage.read_bytes(lake.history_index)
        before = lake.read_history_index(content)
        after = change(before)
        lines = None if after.live is None else pointer(lake, after.live)  # before any write: the run may be gone
        if lines == storage.read_bytes(lake.current):
            lines = None
        if before.live is not None and after.live != before.live:
            storage.write_document(lake.left_index(before.live), before)  # a rollback may come back to it
        if after != before:  # a lost lease does no harm: the comparison fails if another process has swapped
            storage.compare_and_swap(lake.history_index, content, storage.to_bytes(after))
        if lines is not None:
            storage.write_bytes(lake.current, lines)
    return after


def settle(lake: Lake) -> HistoryIndex:
    """Finish a swap that was interrupted, if any, and return the index."""
    return swap(lake, lambda index: index)


def manifest_of(lake: Lake, run_id: str) -> RunManifest:
    """Return the manifest of a run that is live or about to be. Raises JobError if it is missing."""
    lake.check_not_expired(run_id)
    manifest = lake.read_manifest(run_id)
    if manifest is None:
        raise JobError(
            f"{lake.run(run_id) / 'manifest.json'} is missing, and this run is live; {rewrite(run_id)}, or go back to "
            "another run: `python -m jobs tables` lists them"
        )
    return manifest


def check_tables(lake: Lake, manifest: RunManifest, *tables: str) -> None:
    """Verify the files of published tables before they are used: the size of every file, and the content of `tables`.

    Args:
        lake: the lake of the tables.
        manifest: the manifest of the run that wrote them.
        tables: the tables whose SHA-256 is compared too; none means all.

    Raises:
        JobError: a file differs from what was written.
    """
    read = [file for file in manifest.files if not tables or file.table in tables]
    verified_files.check(
        lake, [file for file in manifest.files if file not in read], rewrite(manifest.run_id), digest=False
    )
    verified_files.check(lake, read, rewrite(manifest.run_id))


def pointer(lake: Lake, run_id: str) -> bytes:
    """Return the content of ``attribute_tables/current`` for a run: the paths of its attribute files, one per line.

    Raises:
        JobError: the run has no manifest.
    """
    files = manifest_of(lake, run_id).files
    return "".join(f"{lake.root / file.path}\n" for file in files if file.table != PRODUCTS).encode()
