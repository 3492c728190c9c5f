"""What is live: the one swap that publishes a run, and what the run must still find for it.

``attribute_history/index.json`` names the live run and where each day's changes are, so that one swap of it publishes a
run, a backfill or a rollback whole. ``attribute_tables/current``, the file for readers, follows at once; where a kill
comes between the two, or the pointer was damaged, the next plan, publish or rollback of any day makes it follow.
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
    """What a run of a day is made from. A plan made from another one is stale."""

    run: str | None  # whose tables the catalog is compared with
    days: dict[str, str | None]  # the days of history that the run will write, each with its run so far

    @classmethod
    def of(cls, plan: Plan) -> Base:
        """Return what `plan` was made from."""
        return cls(plan.base_run, plan.history_base)

    @property
    def backfill(self) -> bool:
        """Whether a later day is done: the run writes that day too, so that it stays what it was."""
        return len(self.days) > 1


def base(lake: Lake, index: HistoryIndex, ds: str) -> Base:
    """Return what a run of `ds` would be made from now."""
    following = history.next_day(index, ds)
    written = [ds] if following is None else [ds, following]
    if following is None:
        run = index.live
    else:
        newest = max((day for day in index.days if day <= ds), default=None)
        run = history.own_run(lake, index, newest) if newest is not None else None
    return Base(run, {day: history.run_of(index, day) for day in written})


def check_base(lake: Lake, index: HistoryIndex, plan: Plan) -> None:
    """Raise StalePlanError where `plan` was made from something else than `index` holds."""
    if base(lake, index, plan.ds) == Base.of(plan):
        return
    if not plan.backfill and index.live != plan.base_run:
        what = f"run {plan.run_id} was planned on {plan.base_run}, but {index.live} is live now"
    else:
        what = f"{lake.history_index}: another run changed the days that {plan.run_id} was planned on"
    raise StalePlanError(
        f"{what}; nothing is published. Start the night of {plan.ds} again: it plans anew and tags anew"
    )


def swap(lake: Lake, change: Callable[[HistoryIndex], HistoryIndex]) -> HistoryIndex:
    """Put ``change(index)`` in the place of the index, let the pointer follow, and return the new index.

    Nothing is changed where `change` raises. One swap at a time: `change` sees what the last one left.

    Raises:
        JobError: the run to become live has no manifest.
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
        if after != before:  # a lease that was lost is no harm: then this finds other content
            storage.compare_and_swap(lake.history_index, content, storage.to_bytes(after))
        if lines is not None:
            storage.write_bytes(lake.current, lines)
    return after


def settle(lake: Lake) -> HistoryIndex:
    """Finish a swap that was killed, if there is one, and return the index."""
    return swap(lake, lambda index: index)


def manifest_of(lake: Lake, run_id: str) -> RunManifest:
    """Return the manifest of a run that is live, or about to be. Raises JobError where it is gone."""
    lake.check_not_expired(run_id)
    found = lake.read_manifest(run_id)
    if found is None:
        raise JobError(
            f"{lake.run(run_id) / 'manifest.json'} is missing, and this run is live; {rewrite(run_id)}, or go back to "
            "another run: `python -m jobs tables` lists them"
        )
    return found


def check_tables(lake: Lake, manifest: RunManifest, *tables: str) -> None:
    """Check the files of published tables before anything is built on them: the size of all, the content of `tables`.

    Args:
        lake: theirs.
        manifest: of the run that wrote them.
        tables: whose content is compared by its SHA-256; none: all.

    Raises:
        JobError: a file is not what was written.
    """
    read = [file for file in manifest.files if not tables or file.table in tables]
    verified_files.check(
        lake, [file for file in manifest.files if file not in read], rewrite(manifest.run_id), digest=False
    )
    verified_files.check(lake, read, rewrite(manifest.run_id))


def pointer(lake: Lake, run_id: str) -> bytes:
    """Return the content of ``attribute_tables/current`` for a run: its attribute files, one a line.

    Raises:
        JobError: the run has no manifest.
    """
    files = manifest_of(lake, run_id).files
    return "".join(f"{lake.root / file.path}\n" for file in files if file.table != PRODUCTS).encode()
