"""Rebuild the history index, the pointer for readers and the champion file from what the runs left. Deletes nothing.

The history index is rebuilt in two ways:

- By replaying the runs in the order of their publication. A ledger is written right after its run is published. A manifest
  names the runs that its tables and each day's changes were made from.
- From the index that the run before the live one left in `attribute_history/left/`. It is the index as it was before the
  newest publication, so it takes precedence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cma_clip_core import registry
from cma_clip_core.versions import is_version
from jobs.errors import JobError
from jobs.lake import history, publication, storage
from jobs.lake.layout import Lake, is_run
from jobs.lake.storage import AnyPath
from jobs.models import champion_pointer
from jobs.models.verdict import Verdict
from jobs.settings import Settings
from jobs.upkeep import inventory
from schemas.documents import HistoryDay, HistoryIndex, Ledger, RunManifest


@dataclass(slots=True)
class Repair:
    """Outcome of a repair: the new content of files, and an explanation."""

    lines: list[str] = field(default_factory=list)  # the explanation
    writes: dict[AnyPath, bytes] = field(default_factory=dict)

    @property
    def sure(self) -> bool:
        """True if the repair needed no guess."""
        return not any("not sure" in line for line in self.lines)


@dataclass(frozen=True, slots=True)
class _Publication:
    """A published run and the time of its publication."""

    run_id: str
    at: datetime
    manifest: RunManifest | None  # None: the run changed nothing

    @property
    def ds(self) -> str:
        return self.run_id[:10]


def repair_tables(settings: Settings, *, write: bool) -> Repair:
    """Rebuild the history index and the pointer for readers if they are broken or missing.

    Args:
        settings: settings, including the root of the lake.
        write: True to write the files and keep their previous content beside them, False to only report.

    Raises:
        JobError: a document needed for the repair is broken, or another run was published in the meantime.
    """
    lake, repair = Lake(settings.root), Repair()
    with storage.locked(lake.history):
        content = storage.read_bytes(lake.history_index)
        try:
            index = lake.read_history_index(content)
        except JobError as error:
            repair.lines.append(str(error))
            index = _rebuild(lake, repair)
            repair.writes[lake.history_index] = storage.to_bytes(index)
        if index.live is not None and (lines := publication.pointer(lake, index.live)) != storage.read_bytes(
            lake.current
        ):
            repair.lines.append(f"{lake.current}: it should list the files of {index.live}, but does not")
            repair.writes[lake.current] = lines
        if not repair.writes:
            repair.lines.append(f"{lake.history_index}, {lake.current}: intact; nothing to do")
        _finish(repair, write, content_of_index=content, index=lake.history_index)
    return repair


def repair_champion(settings: Settings, *, write: bool) -> Repair:
    """Rebuild the file that names the champion if it is broken or missing.

    The champion is the version that tagged the live tables. A later promotion cannot be detected, so accepted challengers of
    that version are named.

    Args:
        settings: settings, including the root of the lake.
        write: True to write the file and keep its previous content beside it, False to only report.

    Raises:
        JobError: no version exists, the chosen one is incomplete, or another one was promoted in the meantime.
    """
    lake, repair = Lake(settings.root), Repair()
    content = storage.read_bytes(lake.champion)
    versions = registry.list_versions(lake.models)
    named = [
        word for word in (content or b"").decode(errors="replace").split() if is_version(word) and word in versions
    ]
    try:
        known = champion_pointer.champions(settings)
        problem = (
            None if known.live in versions else f"{lake.champion}: it names {known.live}, but no such version exists"
        )
    except JobError as error:
        problem = str(error)
    if problem is None:
        repair.lines.append(f"{lake.champion}: intact; nothing to do")
        return repair
    repair.lines.append(problem)
    chosen, reason = _choose_champion(lake, versions)
    repair.lines.append(f"the champion should be {chosen}: {reason}")
    repair.lines += [
        f"not sure: {verdict.challenger} was accepted against {verdict.champion} and may have been promoted since; if so, run "
        f"`python -m jobs models promote {verdict.challenger}`"
        for verdict in _verdicts(lake)
        if verdict.accepted and verdict.champion == chosen and verdict.challenger in versions
    ]
    champion_pointer.check_files(lake, chosen)
    before = [version for version in dict.fromkeys(named) if version != chosen]
    repair.writes[lake.champion] = "".join(f"{version}\n" for version in (chosen, *before)).encode()
    _finish(repair, write)
    return repair


def _choose_champion(lake: Lake, versions: list[str]) -> tuple[str, str]:
    """Return the version that should be the champion, and the reason."""
    try:
        run_id = lake.read_history_index().live
        record = lake.read_record(run_id) if run_id is not None else None
    except JobError:
        record = None
    if record is not None and record.model_version in versions:
        return record.model_version, f"the live run {record.run_id} was tagged with it"
    if not versions:
        raise JobError(f"{lake.models}: no model version exists; train one: `python -m jobs train --ds DAY`")
    return versions[-1], "not sure: no live run shows a champion, so this is the newest version"


def _verdicts(lake: Lake) -> Iterator[Verdict]:
    for path in storage.children(lake.models_reports):
        if path.suffix == ".json" and (verdict := storage.find_document(path, Verdict, "it is ignored")):
            yield verdict


def _finish(
    repair: Repair, write: bool, *, content_of_index: bytes | None = None, index: AnyPath | None = None
) -> None:
    """Write the repaired files and keep their previous content, or only report what `write` would do."""
    for path, data in repair.writes.items():
        before = content_of_index if path == index else storage.read_bytes(path)
        kept = path.with_name(f"{path.name}.broken-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        if write:
            if before is not None:
                storage.write_bytes(kept, before)
            storage.compare_and_swap(path, before, data)
            repair.lines.append(
                f"{path}: written; "
                + (f"the previous content is in {kept}" if before is not None else "it was missing")
            )
        else:
            repair.lines.append(
                f"{path}: --write writes it"
                + (" and keeps the previous content beside it" if before is not None else "")
            )


# --- the index


def _rebuild(lake: Lake, repair: Repair) -> HistoryIndex:
    """Return the index, rebuilt as far as possible, and explain it in `repair`."""
    left = _read_left_indexes(lake)
    pointed = _read_pointer(lake, repair)
    published = _publications(lake, left, pointed, repair)
    index, doubtful = _replay(lake, published, left)
    rolled_back = pointed is not None and index.live != pointed
    if pointed is not None and index.live != pointed:
        repair.lines.append(f"the tables were rolled back to {pointed}, according to {lake.current}")
        index = _roll_back(lake, index, pointed, left) or _cut_to_run(index, pointed, published)
    known = _from_left(lake, index, published, left)
    if known is None:
        repair.lines.append("rebuilt only from the runs' manifests and ledgers")
        if rolled_back or _may_have_rolled_back(lake, published, left):
            repair.lines.append(
                "not sure: the tables were rolled back to an earlier run, or runs have expired, so some days and backfills that "
                "were removed then may be unknown"
            )
    else:
        agree = "; the runs' manifests agree" if known == index else ""
        repair.lines.append(
            f"rebuilt from the index that the run before {known.live} left, and from later publications{agree}"
        )
        index = known
    repair.lines.append(f"live: {index.live}")
    for ds, day in index.days.items():
        repair.lines.append(f"  {ds}  {day.run_id}  {_describe_changes(lake, index, ds)}")
    if pointed is None:
        repair.lines.append(
            "not sure: the pointer for readers cannot be read, so a rollback after the newest publication cannot be detected"
        )
    repair.lines += [
        f"not sure: {run} was published but does not fit the runs that the others were made from; it is left out"
        for run in doubtful
    ]
    return index


def _read_left_indexes(lake: Lake) -> dict[str, HistoryIndex]:
    """Return the readable indexes that runs left, by run."""
    remedy = "it is ignored"
    indexes = {
        run: storage.find_document(lake.left_index(run), HistoryIndex, remedy) for run in inventory.left_indexes(lake)
    }
    return {run: index for run, index in indexes.items() if index is not None}


def _publications(lake: Lake, left: dict[str, HistoryIndex], pointed: str | None, repair: Repair) -> list[_Publication]:
    """Return the published runs in the order of their publication, including runs that have expired since."""
    ledgers: dict[str, Ledger | None] = {}
    for path in storage.files_below(lake.root / "reports"):
        day, _, rest = path.partition("/")
        run, _, name = rest.partition("/")
        run_id = run.removeprefix("run=")
        if name == "ledger.json" and day.startswith("ds=") and is_run(run_id):
            ledgers[run_id] = lake.find_ledger(run_id)
    runs = {path.name for path in storage.children(lake.run("-").parent) if is_run(path.name)}
    published = []
    for run_id in sorted(runs | inventory.expired_runs(lake) | ledgers.keys()):
        if run_id not in ledgers and run_id not in left and run_id != pointed:
            continue  # no trace of a publication: the run was killed before
        ledger, record = ledgers.get(run_id), _read_record(lake, run_id, repair)
        if record is not None:
            published.append(_Publication(run_id, ledger.created_at if ledger else record.created_at, record))
        elif run_id in runs or ledger is None or ledger.new + ledger.changed + ledger.model_changed + ledger.removed:
            repair.lines.append(f"not sure: {lake.run(run_id)} has no readable manifest; the run is left out")
        else:
            published.append(_Publication(run_id, ledger.created_at, None))
    return sorted(published, key=lambda each: (each.at, each.run_id))


def _read_record(lake: Lake, run_id: str, repair: Repair) -> RunManifest | None:
    try:
        return lake.read_record(run_id)
    except JobError as error:
        repair.lines.append(str(error))
        return None


def _read_pointer(lake: Lake, repair: Repair) -> str | None:
    """Return the run that the pointer for readers names; None if it names none or cannot be read."""
    try:
        return lake.current_run()
    except JobError as error:
        repair.lines.append(str(error))
        return None


def _replay(
    lake: Lake, published: Iterable[_Publication], left: dict[str, HistoryIndex]
) -> tuple[HistoryIndex, list[str]]:
    """Return the index after all publications, and the runs that do not fit into it."""
    index, snapshots, doubtful = HistoryIndex(), dict(left), list[str]()
    for each in published:
        if each.manifest is not None and each.manifest.files and index.live != each.manifest.parent:
            # The tables had been rolled back, or earlier runs have expired.
            before = _roll_back(lake, index, each.manifest.parent, snapshots)
            index = index if before is None else before
        after = _add_publication(index, each)
        if after is None:
            doubtful.append(each.run_id)
            continue
        if index.live is not None and index.live != after.live:
            snapshots[index.live] = index
        index = after
    return index, doubtful


def _add_publication(index: HistoryIndex, added: _Publication) -> HistoryIndex | None:
    """Return the index after a publication; None if the run was made from a different history."""
    manifest = added.manifest
    if manifest is None:
        days = {added.ds: HistoryDay(run_id=added.run_id, path="", rows=0)} | index.days
        return HistoryIndex(live=index.live, days=dict(sorted(days.items())))
    if any(history.run_of(index, ds) != base for ds, base in manifest.history_base.items()):
        return None
    days = dict(sorted((index.days | manifest.history).items()))
    return HistoryIndex(live=manifest.run_id if manifest.files else index.live, days=days)


def _roll_back(
    lake: Lake, index: HistoryIndex, run_id: str | None, snapshots: dict[str, HistoryIndex]
) -> HistoryIndex | None:
    """Return the index as `tables rollback` to a run would make it; None if it cannot be determined."""
    if run_id is None:
        return HistoryIndex()
    if history.own_run(lake, index, run_id[:10]) == run_id:
        return HistoryIndex(live=run_id, days={ds: day for ds, day in index.days.items() if ds <= run_id[:10]})
    return snapshots.get(run_id)


def _cut_to_run(index: HistoryIndex, run_id: str, published: Iterable[_Publication]) -> HistoryIndex:
    """Return the known part of the index after a rollback to a run whose own index is unknown."""
    own = next((each.manifest.history for each in published if each.run_id == run_id and each.manifest is not None), {})
    days = {ds: day for ds, day in index.days.items() if ds <= run_id[:10]} | own
    return HistoryIndex(live=run_id, days=dict(sorted(days.items())))


def _may_have_rolled_back(lake: Lake, published: Sequence[_Publication], left: dict[str, HistoryIndex]) -> bool:
    """Return whether signs of a rollback exist, or runs have expired that might have shown one."""
    parents = [each.manifest.parent for each in published if each.manifest is not None and each.manifest.files]
    return len(set(parents)) < len(parents) or not left.keys() <= set(parents) or bool(inventory.expired_runs(lake))


def _from_left(
    lake: Lake, replayed: HistoryIndex, published: Sequence[_Publication], left: dict[str, HistoryIndex]
) -> HistoryIndex | None:
    """Return the index, derived from the one that the run before the live run left; None if that is missing or outdated.

    The live run itself left no index, so only backfills and days without changes were published after it.
    """
    newest = next((each for each in published if each.run_id == replayed.live), None)
    parent = newest.manifest.parent if newest is not None and newest.manifest is not None else None
    if newest is None or parent is None or parent not in left or storage.exists(lake.left_index(newest.run_id)):
        return None
    index = _add_publication(left[parent], newest)
    if index is None:
        return None
    for each in published:
        if each.at > newest.at and not (each.manifest is not None and each.manifest.files):
            index = _add_publication(index, each) or index
    return index


def _describe_changes(lake: Lake, index: HistoryIndex, ds: str) -> str:
    """Describe whether the files of a day's changes are intact."""
    try:
        files = [file for table in history.SCHEMAS for file in history.day_files(lake, index, table, ds)]
    except JobError as error:
        return str(error)
    return f"{len(files)} files, intact" if index.days[ds].path else "it changed nothing"
