"""Maintenance removes only what the lake no longer needs, despite kills, restarts and steps that run at the same time.

Run with ``make test TESTS=tests/jobs/upkeep/test_remove_expired.py``.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from jobs.errors import JobError
from jobs.lake import history, storage
from jobs.lake.layout import Lake
from jobs.models import champion_pointer
from jobs.nightly import publish
from jobs.runs import whole_night
from jobs.runs.prepare_examples import prepare
from jobs.settings import Settings
from jobs.training.dataset import dataset
from jobs.upkeep import published_tables
from jobs.upkeep.remove_expired import maintenance
from schemas.documents import HistoryIndex, LabelledManifest
from tests.conftest import DAY1, DAY2, DAY3, DAY4, Night, raw_lines, settings_for, split_raw, write_raw
from tests.jobs.runs.test_whole_night import as_of, live, second_day, values

pytestmark = [pytest.mark.spark, pytest.mark.long]

DAY5 = "2026-11-24"


def age(root: Path, days: float) -> None:
    """Set the write time of everything at and below `root` to the given number of days ago."""
    then = time.time() - 86_400 * days
    for path in (root, *root.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


def all_rows(settings: Settings, ds: str) -> pa.Table:
    """Return the complete tables as of a day."""
    with duckdb.connect() as connection:
        found = published_tables.as_of(connection, settings, ds)
        return connection.sql("from found order by all").to_arrow_table() if found.columns else None


def files(lake: Lake, zones: tuple[str, ...] = (".",)) -> set[str]:
    """Return the files in the lake, or in some of its folders, except locks."""
    paths = (path for zone in zones for path in (lake.root / zone).rglob("*"))
    return {lake.relative(path) for path in paths if path.is_file() and path.suffix != ".lock"}


@dataclass(frozen=True)
class Weeks:
    """A lake with several days, last written two days ago, and its runs."""

    night: Night
    runs: dict[str, str]  # by day; "again" is the second backfill, "prepared" the run that made the first examples

    def restored(self, zones: tuple[str, ...] = (".",)) -> tuple[Lake, Settings]:
        """Restore the lake, or some of its folders."""
        for zone in zones:
            source, target = self.night.copies / "weeks" / zone, self.night.root / zone
            shutil.rmtree(target, ignore_errors=True)
            if source.exists():
                shutil.copytree(source, target, copy_function=os.link)  # no file is ever written in place
        return Lake(self.night.root), settings_for(self.night.root)


@pytest.fixture(scope="module")
def weeks(night_of_day1: Night) -> Weeks:
    """A lake with several nights, a backfill and a rollback.

    It has the nights of DAY1, DAY2 and DAY4, two backfills of DAY3, a new model that tags everything on DAY5, and a rollback
    to DAY4. The products that DAY2 made examples of are changed again, or gone, on DAY4.
    """
    lake = night_of_day1.after("report")
    settings, runs = settings_for(lake.root), {DAY1: night_of_day1.run_id}
    runs["prepared"] = next(lake.root.glob("plans/*/run=*-prepare-*")).name.removeprefix("run=")

    def one(ds: str, lines: list[Any], name: str = "") -> None:
        write_raw(lake, ds, lines)
        runs[name or ds] = whole_night.night(settings, ds)[0].run_id

    second_day(lake)
    one(DAY2, raw_lines(lake, DAY2))
    records, unreadable = split_raw(lake, DAY2)
    for record in records[:3]:
        record["title"] += " and pockets"
    one(DAY4, [*records[:-2], *unreadable])
    records, _ = split_raw(lake, DAY2)
    records[9]["title"] = "Red bag"
    one(DAY3, [*records, *unreadable])
    one(DAY3, [*records[:-3], *records[-2:], *unreadable], "again")
    first = champion_pointer.champion(settings) or ""
    shutil.copytree(lake.models / first, lake.models / f"20991231-{first[-8:]}")
    champion_pointer.promote(settings, f"20991231-{first[-8:]}")
    one(DAY5, raw_lines(lake, DAY4))
    published_tables.rollback(settings, runs[DAY4])
    age(lake.root, 2)
    night_of_day1.keep("weeks")
    return Weeks(night_of_day1, runs)


def test_what_is_left_is_a_whole_lake(weeks: Weeks, capsys: pytest.CaptureFixture[str]) -> None:
    (lake, settings), runs = weeks.restored(), weeks.runs
    published_tables.rollback(settings, runs[DAY5])
    newest = all_rows(settings, DAY5)
    published_tables.rollback(settings, runs[DAY4])
    days, now = (DAY1, DAY2, DAY3, DAY4), live(lake)
    before, index, there = {day: all_rows(settings, day) for day in days}, lake.read_history_index(), files(lake)
    labelled = dataset(settings, DAY1)

    counted = maintenance(settings, days=0, keep=1)
    assert files(lake) == there
    done = maintenance(settings, days=0, keep=1, delete=True)
    assert done.counts == counted.counts
    assert done.expired == {
        "tables": 4, "indexes": 2, "history": 2, "plans": 5, "predictions": 3, "examples": 2, "validated": 3, "unfinished": 0
    }  # fmt: skip
    assert set(maintenance(settings, days=0, keep=1, delete=True).expired.values()) == {0}

    # Every day, the live tables and the run available for a rollback are unchanged.
    assert {day: all_rows(settings, day) for day in days} == before
    assert (live(lake), lake.read_history_index()) == (now, index)
    assert index.days[DAY4].run_id == runs["again"]  # a backfill that has expired is looked through
    assert history.own_run(lake, index, DAY4) == runs[DAY4]
    published_tables.show(settings)
    told = capsys.readouterr().out
    assert [run for run in runs.values() if run in told] == [runs[DAY4], runs[DAY5]]
    published_tables.rollback(settings, runs[DAY5])
    assert all_rows(settings, DAY5) == newest
    published_tables.rollback(settings, runs[DAY4])
    assert (live(lake), lake.read_history_index()) == (now, index)
    with pytest.raises(JobError, match=rf"{runs[DAY2]} has expired"):
        published_tables.rollback(settings, runs[DAY2])

    # Finished days stay finished; a replaced run cannot come back.
    for ds in (DAY1, DAY2):
        assert publish.publish(settings, runs[ds]) == lake.read_ledger(runs[ds])
    with pytest.raises(JobError, match=f"{runs[DAY3]} has expired"):
        publish.publish(settings, runs[DAY3])

    # The model's labelled set and all its examples still exist, so `prepare` has nothing to do.
    assert dataset(settings, DAY1) == labelled
    assert all(lake.root.joinpath(folder).is_dir() for folder in labelled.manifest.inputs.examples)
    assert prepare(settings, DAY1) == 0
    prepared = {path.name.removeprefix("run=") for path in lake.root.glob("plans/*/run=*-prepare-*")}
    assert len(prepared) == 1
    assert runs["prepared"] not in prepared

    # The next night reuses the examples of unchanged products and makes those of changed ones.
    records, unreadable = split_raw(lake, DAY4)
    records[20]["title"] = "Something else"
    write_raw(lake, DAY5, [*records, *unreadable])
    ledger, _ = whole_night.night(settings, DAY5)
    made = lake.read_plan(ledger.run_id)
    assert (ledger.changed, ledger.new, made.to_preprocess) == (1, 0, 1)
    assert ledger.model_changed == ledger.valid - 1
    assert live(lake) == as_of(settings, DAY5)

    # The new model tags a day again whose examples are gone, so they are made again.
    ledger, _ = whole_night.night(settings, DAY2)
    made = lake.read_plan(ledger.run_id)
    assert (made.model_changed, made.to_preprocess) == (ledger.valid, 5)
    assert values(as_of(settings, DAY2)) == values_of(before[DAY2])
    assert {day: all_rows(settings, day) for day in (DAY1, DAY3, DAY4)} == {d: before[d] for d in (DAY1, DAY3, DAY4)}


def values_of(found: pa.Table) -> list[tuple[Any, ...]]:
    """Return the same as `values`, for rows that were read completely."""
    names = ("product_id", "attribute", "value", "source", "catalog_value", "model_value")
    return sorted(zip(*(found[name].to_pylist() for name in names), strict=True), key=repr)


class _Killed(BaseException):
    """Stand-in for the death of a process."""


def killed_at(n: int, patch: pytest.MonkeyPatch, step: Callable[[], object]) -> bool:
    """Run `step` and let it die at its `n`-th change of the lake, counted from 0; return whether it died.

    It dies before a document is written, before a rename, or in the middle of a removal.
    """
    count = itertools.count()

    def dying(work: Callable[..., Any]) -> Callable[..., Any]:
        def changed(path: Path, *arguments: Any) -> Any:
            if next(count) >= n:
                for file in [p for p in sorted(path.rglob("*")) if p.is_file()][:1] if work is remove else []:
                    file.unlink()
                raise _Killed
            return work(path, *arguments)

        return changed

    remove = storage.remove
    with patch.context() as context:
        for name in ("write_bytes", "set_aside", "remove"):
            context.setattr(storage, name, dying(getattr(storage, name)))
        try:
            step()
        except _Killed:
            return True
    return False


def check_whole(lake: Lake) -> None:
    """Check that everything that looks complete is complete."""
    index = lake.read_history_index()
    for found in (index, *(storage.read_document(p, HistoryIndex) for p in lake.history.glob("left/*.json"))):
        assert found is not None
        if found == index or (found.live and lake.read_manifest(found.live)):
            assert all(history.files_until(lake, found, kind, DAY5) for kind in history.SCHEMAS)
    for manifest in published_tables.runs(lake):
        assert all((lake.root / file.path).exists() for file in (*manifest.files, *manifest.history_files))
    assert all(Path(line).exists() for line in lake.current_lines())
    for path in lake.root.glob("plans/ds=*/run=*/plan.json"):
        run_id = path.parent.name.removeprefix("run=")
        if not lake.has_expired(run_id):
            assert all(lake.has_examples(p) for shard in lake.read_plan(run_id).shards for p in shard.example_paths)
    for path in lake.root.glob("labelled/*/*/manifest.json"):
        manifest_of_set = storage.read_document(path, LabelledManifest)
        assert manifest_of_set is not None
        assert all((lake.root / p / "_manifest.json").exists() for p in manifest_of_set.inputs.examples)


def test_killed_anywhere_and_started_again_it_ends_the_same(weeks: Weeks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    lake, settings = weeks.restored()
    before = {day: all_rows(settings, day) for day in (DAY1, DAY2, DAY3, DAY4)}

    def step() -> object:
        return maintenance(settings, days=0, keep=1, delete=True)

    step()
    zones = ("attribute_history", "attribute_tables", "plans", "predictions", "examples", "expired")
    zones += ("catalog/valid", "catalog/quarantine")
    expected, n = files(lake, zones), 0
    while True:
        weeks.restored(zones)
        if not killed_at(n, monkeypatch, step):
            break
        check_whole(lake)
        step()
        assert files(lake, zones) == expected, n
        n += 1
    assert n == 5 + 2 + 2 * 19  # runs written down, indexes, folders renamed and removed
    check_whole(lake)
    assert {day: all_rows(settings, day) for day in before} == before
