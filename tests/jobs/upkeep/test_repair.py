"""Repair of the history index, the pointer for readers and the champion file from what the runs left.

Run with ``make test TESTS=tests/jobs/upkeep/test_repair.py``.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cma_clip_core.model_documents import Difference, Interval
from jobs.cli import app
from jobs.errors import JobError
from jobs.lake import history, publication, storage
from jobs.lake.layout import PRODUCTS, Lake
from jobs.models import champion_pointer
from jobs.models.verdict import MEAN, Verdict
from jobs.nightly import publish
from jobs.upkeep import published_tables
from jobs.upkeep.repair import repair_champion, repair_tables
from schemas.documents import Expired, HistoryDay, HistoryIndex, Ledger, Plan, PublishedFile, RunManifest
from tests.conftest import settings_for

FIRST = date(2026, 11, 1)


def day(n: int) -> str:
    return (FIRST + timedelta(days=n)).isoformat()


@dataclass
class Shop:
    """A lake whose nights are published by the real swap; each table and each day's changes have one row."""

    lake: Lake
    numbers: Any = field(default_factory=itertools.count)
    clock: Any = field(default_factory=itertools.count)

    def now(self) -> datetime:
        return datetime(2026, 12, 1, tzinfo=UTC) + timedelta(minutes=next(self.clock))

    def file(self, path: Path, table: str) -> PublishedFile:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"product_id": ["a"]}), path)
        return PublishedFile(
            path=self.lake.relative(path), table=table, rows=1, bytes=path.stat().st_size, sha256=storage.sha256(path)
        )

    def night(self, ds: str, *, quiet: bool = False) -> str:
        """Publish a run of `ds` made from the live run, as a backfill if a later day is done. Return its id."""
        lake = self.lake
        run_id, base = f"{ds}-{next(self.numbers):08x}", publication.base(lake, lake.read_history_index(), ds)
        plan = Plan.model_construct(
            run_id=run_id, ds=ds, base_run=base.run, history_base=base.days, backfill=base.backfill
        )
        manifest = None
        if not quiet:
            days, changes = {}, []
            for each in base.days:
                folder = lake.history_run(each, run_id)
                changes += [self.file(folder / table / "part-00000.parquet", table) for table in history.SCHEMAS]
                files = dict.fromkeys(history.SCHEMAS, 1)
                days[each] = HistoryDay(run_id=run_id, path=lake.relative(folder), rows=2, files=files)
            made = () if base.backfill else ("colour", PRODUCTS)
            manifest = RunManifest(
                run_id=run_id, ds=ds, parent=base.run, model_version="20261120-0123abcd", taxonomy_fingerprint="t",
                raw_version="v", files=tuple(self.file(lake.run(run_id) / t / "part-00000.parquet", t) for t in made),
                rows=1, products=1, history=days, history_files=tuple(changes), history_base=base.days, created_at=self.now(),
            )  # fmt: skip
            storage.write_document(lake.run(run_id) / "manifest.json", manifest)
        self.publish(plan, manifest)
        return run_id

    def publish(self, plan: Plan, manifest: RunManifest | None) -> None:
        publication.swap(self.lake, lambda index: publish._enter(self.lake, index, plan, manifest))
        counts = dict.fromkeys(
            ("raw", "unparsable", "quarantined", "superseded", "valid", "unchanged", "tagged_both", "tagged_text",
             "tagged_image", "untaggable", "changed", "model_changed", "removed", "held", "published_products",
             "published_rows"), 0,
        )  # fmt: skip
        ledger = Ledger(
            run_id=plan.run_id, ds=plan.ds, model_version="m", backfill=plan.backfill, new=int(manifest is not None),
            created_at=self.now(), **counts,
        )  # fmt: skip
        storage.write_document(self.lake.reports(plan.run_id) / "ledger.json", ledger)

    def again(self, run_id: str) -> bool:
        """Publish again a run that a rollback removed; return whether it still fits."""
        manifest = self.lake.read_manifest(run_id)
        index = self.lake.read_history_index()
        if manifest is None or history.own_run(self.lake, index, run_id[:10]) == run_id:
            return False
        plan = Plan.model_construct(
            run_id=run_id, ds=run_id[:10], base_run=manifest.parent, history_base=manifest.history_base,
            backfill=not manifest.files,
        )  # fmt: skip
        if publication.base(self.lake, index, plan.ds) != publication.Base.from_plan(plan):
            return False
        self.publish(plan, manifest)
        return True

    def expire(self, run_id: str) -> None:
        """Expire a run as `maintenance` does: remove its tables and left index, and keep its changes and ledger."""
        record = self.lake.read_manifest(run_id)
        storage.write_document(
            self.lake.expired(run_id),
            Expired(run_id=run_id, ds=run_id[:10], manifest=record, expired_at=self.now()),
        )
        shutil.rmtree(self.lake.run(run_id), ignore_errors=True)
        self.lake.left_index(run_id).unlink(missing_ok=True)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(Lake(tmp_path / "lake"))


def lose(lake: Lake, how: str) -> None:
    path = lake.history_index
    if how == "deleted":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "half":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.write_bytes(path.read_bytes().replace(b"11-0", b"11-1", 1))


@pytest.mark.parametrize("how", ["deleted", "empty", "half", "one day changed"])
def test_a_lost_index_is_made_again_and_what_was_there_is_kept(shop: Shop, how: str) -> None:
    lake, settings = shop.lake, settings_for(shop.lake.root)
    for n in (1, 2, 5):
        shop.night(day(n))
    shop.night(day(6), quiet=True)
    shop.night(day(3))  # a backfill
    expected = lake.read_history_index()
    lose(lake, how)
    lost = storage.read_bytes(lake.history_index)
    with pytest.raises(JobError, match=r"attribute_history/index\.json.*tables repair"):
        lake.read_history_index()
    shown = repair_tables(settings, write=False)
    assert storage.read_bytes(lake.history_index) == lost  # nothing is changed without being asked for
    assert f"live: {expected.live}" in shown.lines
    assert [line.split()[0] for line in shown.lines if line.startswith("  ")] == list(expected.days)
    assert shown.sure
    repair_tables(settings, write=True)
    assert lake.read_history_index() == expected
    kept = list(lake.history.glob("index.json.broken-*"))
    assert [path.read_bytes() for path in kept] == ([] if lost is None else [lost])
    assert "nothing to do" in repair_tables(settings, write=True).lines[-1]
    shop.night(day(7))
    assert lake.read_history_index().live != expected.live


@pytest.mark.parametrize("seed", range(15))
def test_the_index_of_any_course_of_nights_backfills_rollbacks_and_expiries_is_found_again(
    shop: Shop, seed: int
) -> None:
    lake, settings, draw = shop.lake, settings_for(shop.lake.root), random.Random(seed)
    runs = [shop.night(day(1))]
    for _ in range(draw.randint(3, 14)):
        what = draw.choice(
            ["night", "night", "quiet", "the day again", "backfill", "rollback", "published again", "expired"]
        )
        index = lake.read_history_index()
        newest = max(int(ds[-2:]) for ds in index.days) - 1
        if what == "night":
            runs.append(shop.night(day(newest + draw.randint(1, 3))))
        elif what == "quiet":
            shop.night(day(newest + 1), quiet=True)
        elif what == "the day again":
            runs.append(shop.night(day(newest)))
        elif what == "backfill":
            shop.night(day(draw.randint(0, newest)))
        elif what == "rollback":
            try:
                published_tables.rollback(settings, draw.choice(runs))
            except JobError:
                continue  # it has expired
        elif what == "published again":
            shop.again(draw.choice(runs))
        elif (old := draw.choice(runs)) != index.live:
            shop.expire(old)
    expected, pointer = lake.read_history_index(), lake.current.read_bytes()
    lose(lake, draw.choice(["deleted", "empty", "half"]))
    found = repair_tables(settings, write=True)
    assert (lake.read_history_index() == expected) or not found.sure, "\n".join(found.lines)
    assert lake.read_history_index().live == expected.live
    assert lake.current.read_bytes() == pointer


def test_an_index_that_was_never_there_is_no_error(shop: Shop) -> None:
    assert shop.lake.read_history_index() == HistoryIndex()
    # A first night that was killed before its swap left a manifest.
    path = shop.lake.run("2026-11-01-00000009") / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert shop.lake.read_history_index() == HistoryIndex()


def test_a_damaged_pointer_is_found_again_by_the_index(shop: Shop) -> None:
    lake, settings = shop.lake, settings_for(shop.lake.root)
    shop.night(day(1))
    shop.night(day(2))
    expected = lake.current.read_bytes()
    for damaged in (b"", b"\xff\xfe\x00", expected[:-4], b"/somewhere/else\n", None):
        if damaged is None:
            lake.current.unlink()
        else:
            lake.current.write_bytes(damaged)
            with pytest.raises(JobError, match=r"attribute_tables/current.*tables repair"):
                lake.current_lines()
        assert not (shown := repair_tables(settings, write=False)).lines[-1].endswith("nothing to do"), shown
        repair_tables(settings, write=True)
        assert lake.current.read_bytes() == expected
        lake.current.write_bytes(damaged or b"")
        publication.settle(lake)  # the next night does the same
        assert lake.current.read_bytes() == expected


def test_with_the_pointer_lost_too_it_says_what_it_is_not_sure_of(shop: Shop) -> None:
    lake, settings = shop.lake, settings_for(shop.lake.root)
    shop.night(day(1))
    shop.night(day(2))
    expected = lake.read_history_index()
    lake.history_index.unlink()
    lake.current.unlink()
    found = repair_tables(settings, write=True)
    assert not found.sure
    assert "a rollback after the newest publication cannot be detected" in "\n".join(found.lines)
    assert lake.read_history_index() == expected
    assert lake.current_run() == expected.live


def test_repair_by_the_command_line_shows_and_then_writes(shop: Shop) -> None:
    shop.night(day(1))
    shop.lake.history_index.write_text("{")
    root = ["--root", str(shop.lake.root)]
    shown = CliRunner().invoke(app, [*root, "tables", "repair"])
    assert shown.exit_code == 0, shown.exception
    assert json.loads(shown.stdout.splitlines()[-1])["written"] is False
    assert shop.lake.history_index.read_text() == "{"
    done = CliRunner().invoke(app, [*root, "tables", "repair", "--write"])
    assert json.loads(done.stdout.splitlines()[-1])["written"] is True
    assert shop.lake.read_history_index().live is not None


# --- the champion


@pytest.fixture
def versions(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three versions, the second of which tagged the live tables."""
    names = ["20261119-00000001", "20261120-0123abcd", "20261121-00000003"]
    for name in names:
        (shop.lake.models / name).mkdir(parents=True)
    monkeypatch.setattr(champion_pointer, "check_files", lambda *_: None)  # they have no files
    shop.night(day(1))
    return names


@pytest.mark.parametrize("damage", [b"", b"20261120-0123abc", b"\xff\xff", b"20261120-ffffffff\n20261119-00000001\n"])
def test_a_damaged_champion_is_told_and_named_again_by_the_live_tables(
    shop: Shop, versions: list[str], damage: bytes
) -> None:
    lake, settings = shop.lake, settings_for(shop.lake.root)
    lake.champion.write_bytes(damage)
    if b"ffffffff" not in damage:
        with pytest.raises(JobError, match=r"models/champion: damaged: .*models repair"):
            champion_pointer.champion(settings)
    same = Difference(mean=0, interval=Interval(low=0, high=0), below_zero=0)
    accepted = Verdict(challenger=versions[2], champion=versions[1], products=1, differences={MEAN: same}, worse=())
    storage.write_document(lake.models_reports / "v.json", accepted)
    found = repair_champion(settings, write=False)
    assert any(f"the champion should be {versions[1]}: the live run" in line for line in found.lines)
    assert any(f"not sure: {versions[2]} was accepted" in line for line in found.lines)
    assert lake.champion.read_bytes() == damage
    repair_champion(settings, write=True)
    assert champion_pointer.champion(settings) == versions[1]
    assert champion_pointer.champions(settings).versions[1:] == ((versions[0],) if b"00000001" in damage else ())
    assert [path.read_bytes() for path in lake.models.glob("champion.broken-*")] == [damage]
    assert "nothing to do" in repair_champion(settings, write=True).lines[-1]


def test_a_missing_champion_is_told_apart_from_one_that_never_was(shop: Shop, versions: list[str]) -> None:
    settings = settings_for(shop.lake.root)
    assert champion_pointer.champion(settings) is None
    assert f"models promote {versions[-1]}" in champion_pointer.never_promoted(shop.lake)
    assert "models repair" in champion_pointer.never_promoted(shop.lake)
    repair_champion(settings, write=True)
    assert champion_pointer.champion(settings) == versions[1]
    assert champion_pointer.never_promoted(Lake(shop.lake.root / "none")) == ""
