"""Make again what names the live run, its history and the champion, from what the runs have left. Nothing is deleted.

The history index is found again by taking the runs in the order in which they were published: a ledger is written right after a
run is, and a manifest says which run the tables and each day's changes were made from. The index that the run before the live
one has left (`attribute_history/left/`) is the index itself, as it was before the newest publication, so it counts for more.
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
    """What would be written, and why."""

    lines: list[str] = field(default_factory=list)
    writes: dict[AnyPath, bytes] = field(default_factory=dict)

    @property
    def sure(self) -> bool:
        """Whether nothing was left to guess."""
        return not any("not sure" in line for line in self.lines)


@dataclass(frozen=True, slots=True)
class _Publication:
    """A run that was published, and when."""

    run_id: str
    at: datetime
    manifest: RunManifest | None  # None: it changed nothing

    @property
    def ds(self) -> str:
        return self.run_id[:10]


def repair_tables(settings: Settings, *, write: bool) -> Repair:
    """Say how the history index and the pointer for readers would be made again where they are broken or missing, or do it.

    Args:
        settings: names the lake.
        write: do it; what was there is kept beside it, under another name.

    Raises:
        JobError: a document that is needed for it is broken, or somebody published meanwhile.
    """
    lake, found = Lake(settings.root), Repair()
    with storage.locked(lake.history):
        content = storage.read_bytes(lake.history_index)
        try:
            index = lake.read_history_index(content)
        except JobError as error:
            found.lines.append(str(error))
            index = _rebuilt(lake, found)
            found.writes[lake.history_index] = storage.to_bytes(index)
        if index.live is not None and (lines := publication.pointer(lake, index.live)) != storage.read_bytes(
            lake.current
        ):
            found.lines.append(f"{lake.current}: it is to list the files of {index.live}, and does not")
            found.writes[lake.current] = lines
        if not found.writes:
            found.lines.append(f"{lake.history_index}, {lake.current}: whole; there is nothing to do")
        _finish(found, write, content_of_index=content, index=lake.history_index)
    return found


def repair_champion(settings: Settings, *, write: bool) -> Repair:
    """Say which version is to be the champion where the file that names it is broken or missing, or write it.

    What the live tables were tagged by was the champion then. Whether another one was promoted since cannot be told: a
    challenger that was accepted since is named.

    Raises:
        JobError: no version is whole, or somebody promoted one meanwhile.
    """
    lake, found = Lake(settings.root), Repair()
    content = storage.read_bytes(lake.champion)
    versions = registry.list_versions(lake.models)
    named = [
        word for word in (content or b"").decode(errors="replace").split() if is_version(word) and word in versions
    ]
    try:
        known = champion_pointer.champions(settings)
        problem = (
            None if known.live in versions else f"{lake.champion}: it names {known.live}, and there is no such version"
        )
    except JobError as error:
        problem = str(error)
    if problem is None:
        found.lines.append(f"{lake.champion}: whole; there is nothing to do")
        return found
    found.lines.append(problem)
    chosen, why = _champion(lake, versions)
    found.lines.append(f"the champion is to be {chosen}: {why}")
    found.lines += [
        f"not sure: {verdict.challenger} was accepted against {verdict.champion}, and may have been promoted since: then "
        f"`python -m jobs models promote {verdict.challenger}`"
        for verdict in _verdicts(lake)
        if verdict.accepted and verdict.champion == chosen and verdict.challenger in versions
    ]
    champion_pointer.check_files(lake, chosen)
    before = [version for version in dict.fromkeys(named) if version != chosen]
    found.writes[lake.champion] = "".join(f"{version}\n" for version in (chosen, *before)).encode()
    _finish(found, write)
    return found


def _champion(lake: Lake, versions: list[str]) -> tuple[str, str]:
    try:
        run_id = lake.read_history_index().live
        record = lake.read_record(run_id) if run_id is not None else None
    except JobError:
        record = None
    if record is not None and record.model_version in versions:
        return record.model_version, f"the live run {record.run_id} was tagged by it"
    if not versions:
        raise JobError(f"{lake.models}: there is no model version; train one: `python -m jobs train --ds DAY`")
    return versions[-1], "not sure: no live run tells of a champion; it is the newest version there is"


def _verdicts(lake: Lake) -> Iterator[Verdict]:
    for path in storage.children(lake.models_reports):
        if path.suffix == ".json" and (verdict := storage.find_document(path, Verdict, "it is not looked at")):
            yield verdict


def _finish(found: Repair, write: bool, *, content_of_index: bytes | None = None, index: AnyPath | None = None) -> None:
    """Write what is to be written; what was there is kept."""
    for path, data in found.writes.items():
        before = content_of_index if path == index else storage.read_bytes(path)
        kept = path.with_name(f"{path.name}.broken-{datetime.now(UTC):%Y%m%dT%H%M%S}")
        if write:
            if before is not None:
                storage.write_bytes(kept, before)
            storage.compare_and_swap(path, before, data)
            found.lines.append(
                f"{path}: written; " + (f"what it was is {kept}" if before is not None else "it was missing")
            )
        else:
            found.lines.append(
                f"{path}: --write writes it" + (", and keeps what it is beside it" if before is not None else "")
            )


# --- the index


def _rebuilt(lake: Lake, found: Repair) -> HistoryIndex:
    """Return the index as it was, as far as can be told, and say so."""
    left = _left(lake)
    pointed = _pointed(lake, found)
    published = _publications(lake, left, pointed, found)
    index, doubtful = _replayed(lake, published, left)
    gone_back = pointed is not None and index.live != pointed
    if pointed is not None and index.live != pointed:
        found.lines.append(f"the tables were gone back to {pointed}, as {lake.current} says")
        index = _rolled_back(lake, index, pointed, left) or _cut(index, pointed, published)
    known = _from_left(lake, index, published, left)
    if known is None:
        found.lines.append("from the runs' manifests and ledgers alone")
        if gone_back or _went_back(lake, published, left):
            found.lines.append(
                "not sure: the tables were gone back to an earlier run, or runs have expired: which days and backfills were taken "
                "out then cannot all be told"
            )
    else:
        agree = "; the runs' manifests say the same" if known == index else ""
        found.lines.append(
            f"from the index that the run before {known.live} has left, and what was published since{agree}"
        )
        index = known
    found.lines.append(f"live: {index.live}")
    for ds, day in index.days.items():
        found.lines.append(f"  {ds}  {day.run_id}  {_state(lake, index, ds)}")
    if pointed is None:
        found.lines.append(
            "not sure: the pointer for readers cannot be read, so a rollback after the newest publication cannot be seen"
        )
    found.lines += [
        f"not sure: {run} was published, and does not fit to what the others were made from; it is left out"
        for run in doubtful
    ]
    return index


def _left(lake: Lake) -> dict[str, HistoryIndex]:
    """Return the indexes that runs have left, by run."""
    remedy = "it is not looked at"
    found = {
        run: storage.find_document(lake.left_index(run), HistoryIndex, remedy) for run in inventory.left_indexes(lake)
    }
    return {run: index for run, index in found.items() if index is not None}


def _publications(lake: Lake, left: dict[str, HistoryIndex], pointed: str | None, found: Repair) -> list[_Publication]:
    """Return the runs that were published, in that order, be it that they have expired since."""
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
            continue  # nothing tells that it was published: it was killed before
        ledger, record = ledgers.get(run_id), _record(lake, run_id, found)
        if record is not None:
            published.append(_Publication(run_id, ledger.created_at if ledger else record.created_at, record))
        elif run_id in runs or ledger is None or ledger.new + ledger.changed + ledger.model_changed + ledger.removed:
            found.lines.append(f"not sure: {lake.run(run_id)} has no manifest that can be read; the run is left out")
        else:
            published.append(_Publication(run_id, ledger.created_at, None))
    return sorted(published, key=lambda each: (each.at, each.run_id))


def _record(lake: Lake, run_id: str, found: Repair) -> RunManifest | None:
    try:
        return lake.read_record(run_id)
    except JobError as error:
        found.lines.append(str(error))
        return None


def _pointed(lake: Lake, found: Repair) -> str | None:
    """Return the run that the pointer for readers names; None where it cannot be read."""
    try:
        return lake.current_run()
    except JobError as error:
        found.lines.append(str(error))
        return None


def _replayed(
    lake: Lake, published: Iterable[_Publication], left: dict[str, HistoryIndex]
) -> tuple[HistoryIndex, list[str]]:
    """Return the index after all publications, and the runs that do not fit."""
    index, snapshots, doubtful = HistoryIndex(), dict(left), list[str]()
    for each in published:
        if each.manifest is not None and each.manifest.files and index.live != each.manifest.parent:
            # The tables had gone back, or what is missing of the runs before has expired.
            before = _rolled_back(lake, index, each.manifest.parent, snapshots)
            index = index if before is None else before
        after = _with(index, each)
        if after is None:
            doubtful.append(each.run_id)
            continue
        if index.live is not None and index.live != after.live:
            snapshots[index.live] = index
        index = after
    return index, doubtful


def _with(index: HistoryIndex, each: _Publication) -> HistoryIndex | None:
    """Return the index after a publication; None where the run was not made from what the index holds."""
    manifest = each.manifest
    if manifest is None:
        days = {each.ds: HistoryDay(run_id=each.run_id, path="", rows=0)} | index.days
        return HistoryIndex(live=index.live, days=dict(sorted(days.items())))
    if any(history.run_of(index, ds) != base for ds, base in manifest.history_base.items()):
        return None
    days = dict(sorted((index.days | manifest.history).items()))
    return HistoryIndex(live=manifest.run_id if manifest.files else index.live, days=days)


def _rolled_back(
    lake: Lake, index: HistoryIndex, run_id: str | None, snapshots: dict[str, HistoryIndex]
) -> HistoryIndex | None:
    """Return the index after a rollback to a run, as `tables rollback` makes it; None where nothing tells."""
    if run_id is None:
        return HistoryIndex()
    if history.own_run(lake, index, run_id[:10]) == run_id:
        return HistoryIndex(live=run_id, days={ds: day for ds, day in index.days.items() if ds <= run_id[:10]})
    return snapshots.get(run_id)


def _cut(index: HistoryIndex, run_id: str, published: Iterable[_Publication]) -> HistoryIndex:
    """Return what is known of the index in which a run is live that nothing else tells of."""
    own = next((each.manifest.history for each in published if each.run_id == run_id and each.manifest is not None), {})
    days = {ds: day for ds, day in index.days.items() if ds <= run_id[:10]} | own
    return HistoryIndex(live=run_id, days=dict(sorted(days.items())))


def _went_back(lake: Lake, published: Sequence[_Publication], left: dict[str, HistoryIndex]) -> bool:
    """Whether anything tells of a rollback, or what would tell of one may have expired."""
    parents = [each.manifest.parent for each in published if each.manifest is not None and each.manifest.files]
    return len(set(parents)) < len(parents) or not left.keys() <= set(parents) or bool(inventory.expired_runs(lake))


def _from_left(
    lake: Lake, replayed: HistoryIndex, published: Sequence[_Publication], left: dict[str, HistoryIndex]
) -> HistoryIndex | None:
    """Return the index from the one that the run before the live one has left; None where there is none, or it is older.

    The live run has left none itself, so nothing but backfills and days without changes was published since.
    """
    newest = next((each for each in published if each.run_id == replayed.live), None)
    parent = newest.manifest.parent if newest is not None and newest.manifest is not None else None
    if newest is None or parent is None or parent not in left or storage.exists(lake.left_index(newest.run_id)):
        return None
    index = _with(left[parent], newest)
    if index is None:
        return None
    for each in published:
        if each.at > newest.at and not (each.manifest is not None and each.manifest.files):
            index = _with(index, each) or index
    return index


def _state(lake: Lake, index: HistoryIndex, ds: str) -> str:
    """Return whether the changes of a day are there, in words."""
    try:
        files = [file for table in history.SCHEMAS for file in history.day_files(lake, index, table, ds)]
    except JobError as error:
        return str(error)
    return f"{len(files)} files, whole" if index.days[ds].path else "it changed nothing"
