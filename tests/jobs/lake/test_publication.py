"""Publication: changes of the lake that make a plan stale, and swaps that are killed and finished by the next one.

Run with ``make test TESTS=tests/jobs/lake/test_publication.py``.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import JobError, StalePlanError
from jobs.lake import history, publication, storage
from jobs.lake.layout import Lake
from jobs.upkeep import published_tables
from schemas.documents import HistoryDay, HistoryIndex, Plan, PublishedFile, RunManifest
from tests.conftest import DAY1, DAY2, DAY3, DAY4, settings_for

DAY5 = "2026-11-24"


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def run(ds: str, n: int = 0) -> str:
    return f"{ds}-{n:08x}"


def wrote(lake: Lake, run_id: str, writes: dict[str, str | None], *, backfill: bool = False) -> RunManifest:
    """Write the manifest of a run that writes the days of `writes`, which name each day's previous run."""
    path = lake.run(run_id) / "colour" / "part-00000.parquet"
    file = PublishedFile(path=lake.relative(path), table="colour", rows=1, bytes=1, sha256="")
    manifest = RunManifest(
        run_id=run_id, ds=run_id[:10], parent=None, model_version="m", taxonomy_fingerprint="t", raw_version="v",
        files=() if backfill else (file,), rows=1, products=1, history={day: entry(run_id) for day in writes},
        history_files=(), history_base=writes, created_at=datetime.now(UTC),
    )  # fmt: skip
    storage.write_document(lake.run(run_id) / "manifest.json", manifest)
    return manifest


def entry(run_id: str) -> HistoryDay:
    return HistoryDay(run_id=run_id, path=f"attribute_history/{run_id}", rows=1)


def index_of(lake: Lake, *runs: str) -> HistoryIndex:
    """Write the manifests of the nights `runs`, and return the index after them."""
    for run_id in runs:
        wrote(lake, run_id, {run_id[:10]: None})
    return HistoryIndex(live=runs[-1], days={run_id[:10]: entry(run_id) for run_id in runs})


def backfilled(lake: Lake, index: HistoryIndex, run_id: str) -> HistoryIndex:
    """Write the manifest of the backfill `run_id`, and return the index after it."""
    manifest = wrote(lake, run_id, publication.base(lake, index, run_id[:10]).days, backfill=True)
    return index.model_copy(update={"days": index.days | manifest.history})


def test_own_run_is_found_behind_backfills(lake: Lake) -> None:
    index = index_of(lake, run(DAY1), run(DAY4))
    index = backfilled(lake, index, run(DAY3))
    index = backfilled(lake, index, run(DAY2))
    assert {day: history.run_of(index, day) for day in index.days} == {
        DAY1: run(DAY1), DAY2: run(DAY2), DAY3: run(DAY2), DAY4: run(DAY3)
    }  # fmt: skip
    assert all(history.own_run(lake, index, day) == run(day) for day in index.days)
    assert history.own_run(lake, index, DAY5) is None


Change = Callable[[Lake, HistoryIndex], HistoryIndex]


@pytest.mark.parametrize(
    ("ds", "change", "stale"),
    [
        pytest.param(DAY5, lambda _, i: i, False, id="nothing"),
        pytest.param(DAY5, lambda lake, i: backfilled(lake, i, run(DAY3)), False, id="backfill behind a night"),
        pytest.param(DAY4, lambda lake, i: backfilled(lake, i, run(DAY3)), True, id="backfill rewrites the night's day"),
        pytest.param(
            DAY5, lambda _, i: i.model_copy(update={"live": run(DAY4, 1)}), True, id="another run became live"
        ),
        pytest.param(
            DAY5, lambda _, i: i.model_copy(update={"days": i.days | {"2026-11-25": entry("q")}}), True,
            id="a later day is done meanwhile",
        ),
        pytest.param(DAY2, lambda lake, i: backfilled(lake, i, run(DAY3)), True, id="a day between is done meanwhile"),
        pytest.param(
            DAY3, lambda lake, i: backfilled(lake, i, run(DAY2)), True, id="a day before is done meanwhile"
        ),
        pytest.param(
            DAY2, lambda lake, i: backfilled(lake, i, run(DAY1, 1)), True, id="the day compared with is done again"
        ),
        pytest.param(
            DAY2, lambda lake, i: backfilled(lake, i, run("2026-11-19")), False,
            id="the day compared with is rewritten and stays what it was",
        ),
        pytest.param(
            DAY2, lambda _, i: i.model_copy(update={"live": run(DAY5), "days": i.days | {DAY5: entry(run(DAY5))}}), False,
            id="a night far behind a backfill",
        ),
    ],
)  # fmt: skip
def test_changes_that_make_a_plan_stale(lake: Lake, ds: str, change: Change, stale: bool) -> None:
    index = index_of(lake, run(DAY1), run(DAY4))
    made = publication.base(lake, index, ds)
    assert made.backfill == (ds < DAY4)
    plan = Plan.model_construct(
        run_id=run(ds, 7), ds=ds, base_run=made.run, history_base=made.days, backfill=made.backfill
    )
    now = change(lake, index)
    if not stale:
        publication.check_base(lake, now, plan)
        return
    with pytest.raises(StalePlanError, match=f"Start the night of {ds} again"):
        publication.check_base(lake, now, plan)


def forget(lake: Lake) -> None:
    """Reset the lake to the state before any publication."""
    shutil.rmtree(lake.history, ignore_errors=True)
    lake.current.unlink(missing_ok=True)


class _Killed(BaseException):
    """Stands for the death of the process."""


def killed_before_write(n: int, patch: pytest.MonkeyPatch, action: Callable[[], Any]) -> bool:
    """Run `action`, let it die before its write number `n`, counted from 0, and return whether it died."""
    write, count = storage.write_bytes, iter(range(1000))

    def dying(path: Path, data: bytes) -> None:
        if next(count) == n:
            raise _Killed
        write(path, data)

    with patch.context() as context:
        context.setattr(storage, "write_bytes", dying)
        try:
            action()
        except _Killed:
            return True
    return False


def test_killed_swap_is_finished_by_the_next_plan(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = index_of(lake, run(DAY1)), index_of(lake, run(DAY1), run(DAY2))
    n, seen = 0, set()
    while True:
        forget(lake)
        publication.swap(lake, lambda _: before)
        if not killed_before_write(n, monkeypatch, lambda: publication.swap(lake, lambda _: after)):
            break
        index = publication.settle(lake)
        assert index in (before, after)
        assert lake.current_run() == index.live
        seen.add(str(index.live))
        n += 1
    assert n == 3
    assert seen == {run(DAY1), run(DAY2)}
    assert lake.current_run() == run(DAY2)


def test_killed_rollback_is_finished_by_itself(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.nightly.publish.audit", lambda *_, **__: None)  # there are no files
    settings, whole = settings_for(lake.root), index_of(lake, run(DAY1), run(DAY2))
    n = 0
    while True:
        forget(lake)
        publication.swap(lake, lambda _: whole)
        if not killed_before_write(n, monkeypatch, lambda: published_tables.rollback(settings, run(DAY1))):
            break
        assert lake.current_run() in (run(DAY1), run(DAY2))
        published_tables.rollback(settings, run(DAY1))
        assert lake.current_run() == lake.read_history_index().live == run(DAY1)
        assert list(lake.read_history_index().days) == [DAY1]
        n += 1
    assert n == 3


def test_rollback_keeps_backfills_and_forward_brings_the_whole_history_back(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.nightly.publish.audit", lambda *_, **__: None)
    settings = settings_for(lake.root)
    whole = backfilled(lake, index_of(lake, run(DAY1), run(DAY3), run(DAY5)), run(DAY2))
    quiet = {DAY4: HistoryDay(run_id=run(DAY4), path="", rows=0)}
    whole = HistoryIndex(live=whole.live, days=dict(sorted((whole.days | quiet).items())))
    publication.swap(lake, lambda _: whole)
    published_tables.rollback(settings, run(DAY5))  # it is live already
    assert lake.read_history_index() == whole
    published_tables.rollback(settings, run(DAY3))
    expected = {DAY1: run(DAY1), DAY2: run(DAY2), DAY3: run(DAY2)}
    assert {ds: day.run_id for ds, day in lake.read_history_index().days.items()} == expected
    published_tables.rollback(settings, run(DAY5))
    assert lake.read_history_index() == whole
    assert lake.current_run() == run(DAY5)


def test_rollback_to_a_run_of_a_day_that_was_done_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.nightly.publish.audit", lambda *_, **__: None)
    settings, first = settings_for(lake.root), index_of(lake, run(DAY1))
    again = wrote(lake, run(DAY1, 1), {DAY1: run(DAY1)})
    publication.swap(lake, lambda _: first)
    publication.swap(lake, lambda _: HistoryIndex(live=again.run_id, days=again.history))
    published_tables.rollback(settings, run(DAY1))
    assert lake.read_history_index() == first
    published_tables.rollback(settings, again.run_id)
    assert lake.read_history_index().days == again.history
    wrote(lake, run(DAY2), {DAY2: None})
    with pytest.raises(JobError, match=rf"was never live.*night --ds {DAY2}"):
        published_tables.rollback(settings, run(DAY2))


def test_refused_swap_changes_nothing(lake: Lake) -> None:
    index = index_of(lake, run(DAY1))
    publication.swap(lake, lambda _: index)
    with pytest.raises(JobError, match=rf"{run(DAY2)}/manifest\.json is missing"):
        publication.swap(lake, lambda index: index.model_copy(update={"live": run(DAY2)}))
    assert lake.read_history_index() == index
    assert lake.current_run() == run(DAY1)


def test_index_of_the_first_version_names_no_live_run(lake: Lake) -> None:
    index = index_of(lake, run(DAY1))
    publication.swap(lake, lambda _: index)
    storage.write_document(lake.history_index, HistoryIndex(days=index.days))
    assert lake.read_history_index() == index


def test_lock_is_waited_for(lake: Lake) -> None:
    order = list[str]()

    def second() -> None:
        with storage.locked(lake.history_index):
            order.append("second")

    with storage.locked(lake.history_index):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
