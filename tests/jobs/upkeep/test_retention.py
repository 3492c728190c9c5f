"""Retention of each kind of folder, in lakes of a few small files.

Run with ``make test TESTS=tests/jobs/upkeep/test_retention.py``. `test_remove_expired.py` has a lake of real nights.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.errors import JobError
from jobs.lake import history, publication, storage
from jobs.lake.layout import PRODUCTS, Lake
from jobs.nightly import publish
from jobs.upkeep import published_tables, retention
from jobs.upkeep.remove_expired import Sweep, maintenance
from jobs.upkeep.retention import State
from schemas.documents import (
    ExamplesManifest,
    HistoryDay,
    HistoryIndex,
    LabelledInputs,
    LabelledManifest,
    Ledger,
    Plan,
    PublishedFile,
    RunManifest,
    Shard,
    Validation,
)
from tests.conftest import DAY1, DAY2, DAY3, DAY4, settings_for

DAY5 = "2026-11-24"
NOW = datetime(2026, 11, 20, tzinfo=UTC)
CURRENT, BEFORE = "0" * 12, "1" * 12  # versions of a day's records


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # of the many small files of a lake it takes seconds
    (tmp_path / "lake" / "catalog" / "raw").mkdir(parents=True)
    return Lake(tmp_path / "lake")


def age(path: Path, days: float) -> None:
    """Set the write time of everything at and below `path` to the given number of days ago."""
    then = time.time() - 86_400 * days
    for each in (path, *path.rglob("*")):
        os.utime(each, (then, then), follow_symlinks=False)


def run(ds: str, n: int = 0) -> str:
    return f"{ds}-{n:08x}"


def validation(ds: str, version: str) -> Validation:
    return Validation(
        ds=ds, version=version, passed=True, failures=(), raw=1, unparsable=0, quarantined=0, superseded=0, valid=1,
        reasons={}, valid_path=f"catalog/valid/ds={ds}/{version}", quarantine_path=f"catalog/quarantine/ds={ds}/{version}",
        data_docs_path="", created_at=NOW,
    )  # fmt: skip


def plan(lake: Lake, run_id: str, examples: Iterable[Path] = (), version: str = CURRENT) -> Path:
    """Write a run's plan and predictions."""
    ds, paths = run_id[:10], tuple(f"{lake.relative(folder)}/shard=0" for folder in examples)
    made = Plan(
        run_id=run_id, ds=ds, base_run=None, backfill=False, prepare_only=False, model_version="m",
        taxonomy_path="", taxonomy_fingerprint="t", picture_height=1, picture_width=1, validation=validation(ds, version),
        shards=(Shard(id=0, rows=1, example_paths=paths),), new=1, changed=0, model_changed=0, unchanged=0, removed=0,
        held=0, to_preprocess=0, created_at=NOW,
    )  # fmt: skip
    with storage.locked(lake.plan(run_id)):
        storage.write_document(lake.plan(run_id) / "plan.json", made)
    storage.write_bytes(lake.prediction_file(run_id, 0), b"predictions")
    return lake.plan(run_id)


def examples(lake: Lake, run_id: str) -> Path:
    """Write a run's examples."""
    folder = lake.examples(run_id)
    storage.write_bytes(folder / "shard=0" / "part-00000.parquet", b"pixels")
    manifest = ExamplesManifest(
        run_id=run_id, ds=run_id[:10], picture_height=1, picture_width=1, taxonomy_fingerprint="t", rows=1,
        image_statuses={}, created_at=NOW,
    )  # fmt: skip
    storage.write_document(folder / "_manifest.json", manifest)
    return folder


def finish(lake: Lake, run_id: str, *, report: bool = True) -> None:
    """Write a run's ledger and report."""
    counts = {name: 0 for name, field in Ledger.model_fields.items() if field.annotation is int}
    ledger = Ledger(run_id=run_id, ds=run_id[:10], model_version="m", backfill=False, created_at=NOW, **counts)
    storage.write_document(lake.reports(run_id) / "ledger.json", ledger)
    if report:
        storage.write_bytes(lake.reports(run_id) / "report.html", b"")


def night(lake: Lake, run_id: str, named: Iterable[Path] = (), *, done: bool = True) -> None:
    """Write a published run whose products have the examples `named`."""
    ds, plan_of = run_id[:10], plan(lake, run_id)
    assert plan_of.is_dir()
    products = lake.run(run_id) / PRODUCTS / "part-00000.parquet"
    products.parent.mkdir(parents=True)
    paths = [f"{lake.relative(folder)}/shard=0" for folder in named]
    pq.write_table(pa.table({"example_path": pa.array(paths, pa.string())}), products)
    colours, changes = lake.run(run_id) / "colour" / "part-00000.parquet", lake.history_run(ds, run_id)
    for path in (colours, changes / "attributes" / "part-00000.parquet", changes / "products" / "part-00000.parquet"):
        storage.write_bytes(path, b"rows")
    day = HistoryDay(run_id=run_id, path=lake.relative(changes), rows=1)
    files = (
        PublishedFile(path=lake.relative(p), table=p.parent.name, rows=1, bytes=4, sha256="")
        for p in (products, colours)
    )
    manifest = RunManifest(
        run_id=run_id, ds=ds, parent=None, model_version="m", taxonomy_fingerprint="t", raw_version="v",
        files=tuple(files), rows=1, products=1, history={ds: day}, history_files=(), history_base={ds: None},
        created_at=datetime.fromisoformat(f"{ds}T02:00:00Z"),
    )  # fmt: skip
    with storage.locked(lake.run(run_id)):
        storage.write_document(lake.run(run_id) / "manifest.json", manifest)
        publication.swap(lake, lambda index: HistoryIndex(live=run_id, days=index.days | {ds: day}))
    if done:
        finish(lake, run_id)


def labelled(lake: Lake, set_id: str, named: Iterable[Path]) -> Path:
    """Write a labelled set."""
    folder = lake.labelled(DAY1, set_id)
    inputs = LabelledInputs(
        examples=tuple(map(lake.relative, named)), taxonomy_fingerprint="t", picture_height=1, picture_width=1,
        validation_share=0.1, test_share=0.2, rules=1,
    )  # fmt: skip
    manifest = LabelledManifest(
        set_id=set_id, ds=DAY1, inputs=inputs, examples=1, products=1, superseded=0, unlabelled=0, empty=0, sides={},
        families=1, largest_family=1, labels=1, silent=0, not_applicable={}, created_at=NOW,
    )  # fmt: skip
    storage.write_document(folder / "manifest.json", manifest)
    return folder


def model(lake: Lake, labelled_set: str) -> None:
    """Write the record of a model version's training set."""
    storage.write_bytes(
        lake.models / "20261120-0123abcd" / "metrics.json", json.dumps({"labelled_set": labelled_set}).encode()
    )


def sweep(lake: Lake, *, days: int = 30, keep: int = 0, delete: bool = True) -> Sweep:
    return maintenance(settings_for(lake.root), days=days, keep=keep, delete=delete)


def runs_in(folder: Path) -> set[str]:
    """Return the days of the runs in a folder."""
    return {path.name.removeprefix("run=")[:10] for path in folder.iterdir() if path.is_dir()}


def with_nights(lake: Lake) -> None:
    for ds in (DAY1, DAY2, DAY3, DAY4, DAY5):
        night(lake, run(ds))
    age(lake.root, 40)


@pytest.mark.parametrize(("keep", "stay"), [(0, {DAY5}), (1, {DAY4, DAY5}), (7, {DAY1, DAY2, DAY3, DAY4, DAY5})])
def test_the_live_run_and_the_newest_others_stay_whatever_their_age(lake: Lake, keep: int, stay: set[str]) -> None:
    with_nights(lake)
    index = lake.read_history_index()
    sweep(lake, keep=keep)
    for folder in (lake.run("-").parent, lake.predictions("-").parent):
        assert runs_in(folder) == stay
    assert {ds for ds in index.days if lake.plan(run(ds)).exists()} == stay
    assert {path.stem[:10] for path in lake.left_index("-").parent.glob("*.json")} == stay - {DAY5}
    assert [manifest.ds for manifest in published_tables.runs(lake)] == sorted(stay)
    # The days can be read as before.
    assert lake.read_history_index() == index
    assert all((lake.root / day.path / "attributes" / "part-00000.parquet").exists() for day in index.days.values())


def test_a_run_that_was_live_a_while_ago_stays_for_its_readers(lake: Lake) -> None:
    with_nights(lake)
    age(lake.left_index(run(DAY2)), 20)  # after a rollback to it
    sweep(lake, days=30)
    assert runs_in(lake.run("-").parent) == {DAY2, DAY5}
    sweep(lake, days=20)
    assert runs_in(lake.run("-").parent) == {DAY5}


def test_runs_of_the_first_version_left_no_index(lake: Lake) -> None:
    with_nights(lake)
    for ds in (DAY1, DAY2):
        lake.left_index(run(ds)).unlink()
    age(lake.left_index(run(DAY3)), 20)
    age(lake.left_index(run(DAY4)), 20)
    sweep(lake, days=30)  # they may have been live until the first index was left
    assert runs_in(lake.run("-").parent) == {DAY1, DAY2, DAY3, DAY4, DAY5}
    sweep(lake, days=20)
    assert runs_in(lake.run("-").parent) == {DAY5}


def test_what_a_run_one_can_go_back_to_needs_stays(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The changes of rolled-back runs stay for the run whose left index names them."""
    monkeypatch.setattr("jobs.nightly.publish.audit", lambda *_, **__: None)
    with_nights(lake)
    index = lake.read_history_index()
    published_tables.rollback(settings_for(lake.root), run(DAY2))
    age(lake.root, 40)
    sweep(lake, keep=1)
    assert runs_in(lake.run("-").parent) == {DAY2, DAY5}
    assert all((lake.root / day.path).is_dir() for day in index.days.values())
    with pytest.raises(JobError, match=rf"{run(DAY4)} has expired: .*night --ds {DAY4}"):
        published_tables.rollback(settings_for(lake.root), run(DAY4))
    published_tables.rollback(settings_for(lake.root), run(DAY5))
    assert lake.read_history_index() == index
    # After the final rollback, the kept indexes name only what was done again since.
    published_tables.rollback(settings_for(lake.root), run(DAY2))
    night(lake, run(DAY3, 1))
    age(lake.root, 40)
    sweep(lake, keep=0)
    assert runs_in(lake.run("-").parent) == {DAY3}
    assert {path.parent.name[3:] for path in lake.history.glob("ds=*/run=*")} == {DAY1, DAY2, DAY3}
    assert [path.name for path in lake.history.glob(f"ds={DAY3}/run=*")] == [f"run={run(DAY3, 1)}"]


@pytest.mark.parametrize(("written", "days", "stays"), [(0.5, 0, True), (2, 0, False), (2, 30, True), (31, 30, False)])
def test_a_plan_that_is_not_published_is_at_work_for_a_day_at_least(
    lake: Lake, written: float, days: int, stays: bool
) -> None:
    plan(lake, run(DAY1), [examples(lake, run(DAY1))])
    age(lake.root, written)
    found = sweep(lake, days=days)
    assert [
        folder.exists() for folder in (lake.plan(run(DAY1)), lake.predictions(run(DAY1)), lake.examples(run(DAY1)))
    ] == ([stays] * 3)
    assert found.expired == dict.fromkeys(found.expired, 0) | dict.fromkeys(
        ("plans", "predictions", "examples"), 0 if stays else 1
    )


def test_a_plan_that_was_found_again_is_at_work_again(lake: Lake) -> None:
    plan(lake, run(DAY1))
    age(lake.root, 40)
    with storage.locked(lake.plan(run(DAY1))):
        pass  # what `plan` does with one that is there
    sweep(lake)
    assert lake.plan(run(DAY1)).exists()


@pytest.mark.parametrize("folder", ["plan", "examples", "run"])
def test_a_run_that_a_step_is_at_work_on_stays(lake: Lake, folder: str) -> None:
    with_nights(lake)
    examples(lake, run(DAY1))
    with storage.locked(getattr(lake, folder)(run(DAY1))):
        age(lake.root, 40)
        sweep(lake)
        assert runs_in(lake.run("-").parent) == {DAY1, DAY5}
        assert lake.left_index(run(DAY1)).exists()
    sweep(lake)
    assert runs_in(lake.run("-").parent) == {DAY5}


def test_a_run_that_a_step_was_at_work_on_just_now_stays(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(lake, run(DAY1))
    age(lake.root, 40)
    judge = retention.judge

    def judged(*arguments: Any) -> State:
        state = judge(*arguments)
        with storage.locked(lake.plan(run(DAY1))):
            return state

    monkeypatch.setattr(retention, "judge", judged)
    sweep(lake)
    assert lake.plan(run(DAY1)).exists()


def test_a_published_run_without_a_ledger_is_taken_up_again_and_stays(lake: Lake) -> None:
    night(lake, run(DAY1), done=False)
    night(lake, run(DAY2))
    age(lake.root, 40)
    sweep(lake)
    assert lake.plan(run(DAY1)).exists()
    finish(lake, run(DAY1), report=False)
    sweep(lake, days=0)  # the night is at its report
    assert lake.plan(run(DAY1)).exists()
    age(lake.root, 2)
    sweep(lake, days=0)
    assert not lake.plan(run(DAY1)).exists()


@pytest.mark.parametrize(
    "named_by", ["nothing", "product", "plan", "model", "set in use", "old set", "training", "old training"]
)
def test_examples_stay_as_long_as_something_names_them_that_stays(lake: Lake, named_by: str) -> None:
    folder, other = examples(lake, run(DAY1)), examples(lake, run(DAY2))
    night(lake, run(DAY3), [folder] if named_by == "product" else [])
    if named_by == "plan":
        plan(lake, run(DAY4), [folder])
    if "set" in named_by or "training" in named_by or named_by == "model":
        of_set = labelled(lake, "0123abcd", [folder])
        model(lake, lake.relative(of_set) if named_by == "model" else "")
    if "training" in named_by:
        storage.write_bytes(lake.models / ".unfinished-0" / "about.json", b'{"labelled_set": "0123abcd"}')
    age(lake.root, 40)
    for path, kind in (
        (lake.plan(run(DAY4)), "plan"),
        (lake.models, "training"),
        (lake.root / "labelled", "set in use"),
    ):
        if named_by == kind:
            age(path, 1)
    sweep(lake)
    assert folder.exists() == (named_by not in ("nothing", "old set", "old training"))
    assert not other.exists()


def test_steps_that_are_about_to_name_examples_or_read_predictions_are_waited_for(lake: Lake) -> None:
    folder = examples(lake, run(DAY1))
    plan(lake, run(DAY1))
    age(lake.root, 40)
    with storage.locked(lake.all_examples, shared=True), storage.locked(lake.all_examples, shared=True):
        at_work = threading.Thread(target=sweep, args=[lake])
        at_work.start()
        at_work.join(0.5)
        assert at_work.is_alive()
        assert lake.prediction_file(run(DAY1), 0).exists()
        plan(lake, run(DAY2), [folder])
    at_work.join()
    assert folder.exists()
    assert not lake.predictions(run(DAY1)).exists()


def test_no_examples_go_where_a_model_does_not_say_what_it_was_trained_on(lake: Lake) -> None:
    folder = examples(lake, run(DAY1))
    storage.write_bytes(lake.models / "20261120-0123abcd" / "metrics.json", b"{")
    age(lake.root, 40)
    with pytest.raises(JobError, match=r"20261120-0123abcd/metrics\.json: cannot be read"):
        sweep(lake)
    assert folder.exists()


def test_versions_of_a_day_that_were_superseded(lake: Lake) -> None:
    folders = [
        lake.root / "catalog" / zone / f"ds={DAY1}" / v for zone in ("valid", "quarantine") for v in (CURRENT, BEFORE)
    ]
    for folder in folders:
        storage.write_bytes(folder / "part-0.parquet", b"rows")
    storage.write_document(lake.valid(DAY1) / "current.json", validation(DAY1, CURRENT))

    def there() -> list[bool]:
        sweep(lake, days=0)
        return [folder.exists() for folder in folders]

    assert there() == [True] * 4  # a plan that is being made may read them
    age(lake.root, 2)
    with storage.locked(lake.valid(DAY1)):
        assert there() == [True] * 4
    kept = plan(lake, run(DAY1), version=BEFORE)
    assert there() == [True] * 4
    age(kept.parent, 2)
    age(lake.predictions(run(DAY1)), 2)
    assert there() == [True, False, True, False]
    lake.valid(DAY1).joinpath("current.json").unlink()
    assert there() == [True, False, True, False]


def test_what_killed_steps_and_trainings_leave(lake: Lake) -> None:
    left = [
        lake.history / ".index.json.x1y2.tmp",
        lake.predictions(run(DAY1)) / ".shard=00000.parquet.x1y2.tmp",
        lake.labelled(DAY1, "0123abcd") / ".products.parquet.x1y2.tmp",
        lake.reports(run(DAY1)) / ".report.html.x1y2.tmp",
        lake.reports(run(DAY1)) / "steps" / ".plan.json.x1y2.tmp",
        lake.root / "reports" / ".index.html.x1y2.tmp",
        lake.raw(DAY1) / ".part-00000.jsonl.gz.x1y2.tmp",
        lake.root / "suspects" / f"ds={DAY1}" / "set=0123abcd" / ".index.html.x1y2.tmp",
        lake.scratch / "blockmgr-1" / "0a" / "spilled",
        lake.towers / ".unfinished-0123" / "checkpoint",
    ]
    others = [lake.champion, lake.scratch / "new" / "rows", lake.models / "20261120-0123abcd" / "config.json"]
    for path in (*left, *others):
        storage.write_bytes(path, b"x")
    plan(lake, run(DAY1))
    age(lake.root, 2)
    age(lake.scratch / "new" / "rows", 0.1)
    sweep(lake)
    assert [path.exists() for path in left] == [False] * 9 + [True]
    sweep(lake, days=1)
    assert not left[-1].parent.exists()
    assert all(path.exists() for path in others)
    assert lake.scratch.exists()


def test_what_lies_behind_a_link_is_left_alone(lake: Lake, tmp_path: Path) -> None:
    with_nights(lake)
    moved = {lake.predictions("-").parent: "predictions", lake.run(run(DAY1)): "run"}
    for path, name in moved.items():
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
    age(lake.root, 40)
    there = sorted(path for name in moved.values() for path in (tmp_path / name).rglob("*"))
    found = sweep(lake)
    assert (found.expired["predictions"], found.expired["tables"], found.expired["plans"]) == (0, 3, 4)
    assert sorted(path for name in moved.values() for path in (tmp_path / name).rglob("*")) == there
    assert lake.run(run(DAY1)).is_symlink()
    assert [manifest.ds for manifest in published_tables.runs(lake)] == [DAY5]


def test_steps_of_an_expired_run_are_refused(lake: Lake) -> None:
    with_nights(lake)
    plan(lake, run(DAY5, 1))
    age(lake.root, 40)
    sweep(lake)
    settings = settings_for(lake.root)
    assert publish.publish(settings, run(DAY2)).ds == DAY2  # finished already
    with pytest.raises(JobError, match=f"{run(DAY5, 1)} has expired"):
        publish.publish(settings, run(DAY5, 1))
    with pytest.raises(JobError, match=rf"{run(DAY2)} has expired: .*night --ds {DAY2}"):
        lake.read_plan(run(DAY2))


def test_a_rollback_that_meets_a_maintenance_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    with_nights(lake)
    pointer, index = lake.current.read_bytes(), lake.read_history_index()
    monkeypatch.setattr("jobs.nightly.publish.audit", lambda *_, **__: sweep(lake))
    with pytest.raises(JobError, match=f"{run(DAY2)} has expired"):
        published_tables.rollback(settings_for(lake.root), run(DAY2))
    assert (lake.current.read_bytes(), lake.read_history_index()) == (pointer, index)


def test_changes_that_are_gone_are_no_empty_day(lake: Lake) -> None:
    with_nights(lake)
    index = lake.read_history_index()
    assert len(history.files_until(lake, index, "products", DAY5)) == 5
    storage.remove_folder(lake.history_run(DAY2, run(DAY2)))
    assert len(history.files_until(lake, index, "products", DAY1)) == 1
    with pytest.raises(JobError, match=f"0 files of the changes of {DAY2} exist, 1 were written"):
        history.files_until(lake, index, "products", DAY5)


def test_another_maintenance_is_refused(lake: Lake) -> None:
    with storage.locked(lake.expired("-").parent), pytest.raises(JobError, match="another maintenance"):
        sweep(lake)


def test_a_folder_that_is_no_lake_is_left_alone(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "scratch" / "mine", b"x")
    age(tmp_path, 40)
    with pytest.raises(JobError, match="is not a lake"):
        sweep(Lake(tmp_path))
    assert (tmp_path / "scratch" / "mine").exists()


def test_the_command_counts_and_removes_only_when_it_is_told_to(lake: Lake) -> None:
    with_nights(lake)
    there = {path: path.stat().st_mtime_ns for path in lake.root.rglob("*")}

    def command(*flags: str) -> tuple[dict[str, Any], str]:
        options = ["--root", str(lake.root), "maintenance", "--days", "30", "--keep", "1", *flags]
        done = CliRunner().invoke(app, options, catch_exceptions=False)
        assert done.exit_code == 0
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    counted, told = command()
    assert counted["deleted"] is False
    assert counted["expired"]["tables"] == 3
    assert counted["bytes"] > 0
    assert "nothing was removed: --delete" in told
    assert {path: path.stat().st_mtime_ns for path in lake.root.rglob("*")} == there
    removed, told = command("--delete")
    assert removed == counted | {"deleted": True}
    assert "nothing was removed" not in told
    assert f"{'tables':<12}{2:>10}{3:>10}" in told
    again, _ = command("--delete")
    assert set(again["expired"].values()) == {0}
