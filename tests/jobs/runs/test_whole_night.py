"""Nights in one process: changes from day to day, and the same tables after a kill at any write.

Run with ``make test TESTS=tests/jobs/runs/test_whole_night.py``.
"""

from __future__ import annotations

import importlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from jobs.errors import RemovalsError
from jobs.lake import history, storage
from jobs.lake.layout import PRODUCTS, Lake
from jobs.models import champion_pointer
from jobs.nightly.plan import plan
from jobs.nightly.preprocess import preprocess
from jobs.nightly.publish import publish
from jobs.nightly.tag import tag
from jobs.runs import whole_night
from jobs.runs.republish import publish_in_turn
from jobs.settings import Settings
from jobs.upkeep import published_tables
from jobs.validation.validate import validate
from tests.conftest import DAY1, DAY2, DAY3, copy_trained, raw_lines, read_raw, settings_for, write_raw

pytestmark = pytest.mark.spark

VOLATILE = ("run_id", "tagged_at")


def rows(paths: list[str]) -> list[tuple[Any, ...]]:
    """Return the sorted rows of attribute files, without the columns that differ from run to run."""
    with duckdb.connect() as connection:
        return connection.execute(
            f"select * exclude ({', '.join(VOLATILE)}) from read_parquet($1, hive_partitioning = false) order by all",
            [paths],
        ).fetchall()


def live(lake: Lake) -> list[tuple[Any, ...]]:
    return rows(lake.current_lines())


def as_of(settings: Settings, ds: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        found = published_tables.as_of(connection, settings, ds)
        assert found.columns
        return connection.sql(f"select * exclude ({', '.join(VOLATILE)}) from found order by all").fetchall()


def steps_to(step: str, settings: Settings, ds: str, **options: Any) -> str:
    """Run a night up to and including `step`, with the options of `plan`, and return its run id."""
    validate(settings, ds)
    run_id = plan(settings, ds, **options).run_id
    for name, job in (("preprocess", preprocess), ("tag", tag), ("publish", publish)):
        job(settings, run_id)
        if name == step:
            break
    return run_id


def second_day(lake: Lake) -> dict[str, list[str]]:
    """Write the raw catalog of DAY2.

    Compared with DAY1, some products are changed, new or removed, and one has nothing to tag. Two lines are not
    records: half a line with the shop's own field names, and a CSV row of a wrong length.
    """
    records = read_raw(lake, DAY1)
    ids = [r["product_id"] for r in records]
    changed, removed, broken = records[0:3], records[3:5], records[5]
    for record in changed:
        record["title"] = f"{record['title'] or ''} now with a hood"
    broken |= {"title": None, "description": None, "image_uri": None}
    records[10]["price"] = "a lot"  # only the price is lost
    new = [records[6] | {"product_id": "brand-new-1"}, records[7] | {"product_id": "brand-new-2", "image_uri": None}]
    unreadable = [b'{"id":"%s","name":"Shi' % ids[8].encode(), json.dumps([ids[9], "Shirt"]).encode()]
    write_raw(lake, DAY2, [*records[0:3], *records[5:8], *unreadable, *records[10:], *new])
    return {
        "changed": ids[0:3],
        "removed": [r["product_id"] for r in removed],
        "held": [broken["product_id"], *ids[8:10]],
        "new": ["brand-new-1", "brand-new-2"],
    }


def products_of(table_rows: list[tuple[Any, ...]]) -> set[str]:
    return {row[0] for row in table_rows}


def test_two_nights(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    run_id = lake.current_run() or ""
    first = lake.read_ledger(run_id)
    assert first is not None
    assert first.differences() == []
    assert first.new == first.valid == first.published_products == 100
    assert (lake.reports(run_id) / "report.html").exists()
    before = live(lake)
    assert as_of(settings, DAY1) == before

    expected = second_day(lake)
    second, _ = whole_night.night(settings, DAY2)
    assert second.differences() == []
    assert (second.changed, second.removed, second.new, second.held) == (3, 2, 2, 3)
    assert second.unchanged == 100 - 3 - 2 - 3
    assert (second.quarantined, second.unparsable) == (1, 2)
    after = live(lake)
    touched = {*expected["changed"], *expected["removed"], *expected["new"]}
    assert [r for r in before if r[0] not in touched] == [r for r in after if r[0] not in touched]
    assert products_of(after) == products_of(before) - set(expected["removed"]) | set(expected["new"])
    # The day of a row is the day its product was last tagged.
    day = {row[0]: row[-1] for row in after}
    assert {day[p] for p in (*expected["changed"], *expected["new"])} == {DAY2}
    assert {day[p] for p in expected["held"]} == {DAY1}
    # The history has both days.
    assert as_of(settings, DAY1) == before
    assert as_of(settings, DAY2) == after


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["white space", "per%20cent", "hash#", "quo'te", 'quo"te', "ümlaut", "ds=1", "a;b&c$d+e~"]
)
def test_a_lake_in_a_folder_of_an_odd_name(trained: Lake, tmp_path: Path, name: str) -> None:
    """`Settings` refuses forbidden names; these names work, to the last query."""
    copy_trained(trained, tmp_path / name / "lake")
    settings = settings_for(tmp_path / name / "lake")
    ledger, page = whole_night.night(settings, DAY1)
    lake = Lake(settings.root)
    assert ledger.new == 100
    assert storage.exists(page)
    assert live(lake) == as_of(settings, DAY1)
    assert rows_of_files(lake) == len(live(lake))


def rows_of_files(lake: Lake) -> int:
    return sum(pq.read_metadata(line).num_rows for line in lake.current_lines())


def test_finished_night_run_again_changes_nothing(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    pointer, before = lake.current.read_bytes(), live(lake)
    again, _ = whole_night.night(settings, DAY1)
    assert (again.unchanged, again.new, again.changed, again.removed) == (100, 0, 0, 0)
    assert lake.current.read_bytes() == pointer
    assert live(lake) == before


def test_new_model_tags_all_products_with_existing_examples(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    before = live(lake)
    run_id = plan(settings, DAY1, retag=True).run_id
    found = lake.read_plan(run_id)
    assert (found.model_changed, found.to_preprocess) == (100, 0)
    assert not lake.examples(run_id).exists()
    tag(settings, run_id)
    publish(settings, run_id)
    assert live(lake) == before  # the same model predicts the same


def test_new_champion_tags_all_products_with_existing_examples(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    first = champion_pointer.champion(settings)
    assert first is not None
    second = f"20991231-{first[-8:]}"  # the same weights: a version ends with their hash
    shutil.copytree(lake.models / first, lake.models / second)
    champion_pointer.promote(settings, second)
    ledger, _ = whole_night.night(settings, DAY1)
    assert (ledger.model_version, ledger.model_changed, ledger.unchanged) == (second, 100, 0)
    assert not lake.examples(ledger.run_id).exists()
    with duckdb.connect() as connection:
        found = connection.execute(
            "select distinct model_version, run_id from read_parquet($1)", [lake.current_lines()]
        ).fetchall()
    assert found == [(second, ledger.run_id)]


def states(lake: Lake) -> dict[str, tuple[str, str, str]]:
    """Return the state of each product in the live run: modality, image_status, source_hash."""
    manifest = lake.read_manifest(lake.read_history_index().live or "")
    assert manifest is not None
    paths = [str(lake.root / file.path) for file in manifest.files if file.table == PRODUCTS]
    with duckdb.connect() as connection:
        found = connection.execute(
            "select product_id, modality, image_status, source_hash from read_parquet($1)", [paths]
        ).fetchall()
    return {product: (modality, status, hash_) for product, modality, status, hash_ in found}


def test_a_product_tagged_with_its_picture_is_held_while_the_picture_is_missing(
    first_night: tuple[Lake, Settings],
) -> None:
    lake, settings = first_night
    before, before_states = live(lake), states(lake)
    records = read_raw(lake, DAY1)
    ids = [r["product_id"] for r in records]
    assert all(before_states[product][:2] == ("both", "ok") for product in ids[:6])
    gone = {"image_uri": "missing/somewhere.jpg", "image_version": None}
    changed = [r | gone for r in records[:4]]  # only the picture
    changed[3]["title"] = "A title that is new, too"
    changed[2]["image_uri"] = "../outside.jpg"  # which `validate` refuses
    removed = records[4] | {"image_uri": None, "image_version": None}  # the shop no longer names a picture
    new = records[5] | {"product_id": "brand-new", **gone}
    write_raw(lake, DAY2, [*changed, removed, *records[5:], new])
    ledger, page = whole_night.night(settings, DAY2)
    assert ledger.differences() == []
    assert (ledger.held_pictures, ledger.changed, ledger.new, ledger.unchanged) == (4, 1, 1, 95)
    assert (ledger.tagged_both, ledger.tagged_text) == (0, 2)
    assert ledger.published_products == ledger.valid == 101
    assert any("4 held for their pictures" in line for line in ledger.lines())
    assert (
        "4 products keep their published values: the picture of the last tagging is missing today." in page.read_text()
    )
    touched = {ids[4], "brand-new"}
    assert [r for r in live(lake) if r[0] not in touched] == [r for r in before if r[0] not in touched]
    after = states(lake)
    assert {p: after[p] for p in ids if p not in touched} == {p: before_states[p] for p in ids if p not in touched}
    assert {after[product][0] for product in touched} == {"text"}

    # The next night has the pictures again, and tags the held product.
    records[3]["title"] = "A title that is new, too"
    write_raw(lake, DAY3, [*records[:4], removed, *records[5:], new])
    ledger, _ = whole_night.night(settings, DAY3)
    assert (ledger.held_pictures, ledger.changed, ledger.new, ledger.unchanged) == (0, 1, 0, 100)
    assert ledger.tagged_both == 1


@pytest.mark.long
def test_a_picture_that_left_its_root_holds_only_products_that_need_a_new_example(
    first_night: tuple[Lake, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, settings = first_night
    before = live(lake)
    records = read_raw(lake, DAY1)
    for record in records[:3]:
        (lake.pictures / record["image_uri"]).unlink()
    (lake.pictures / records[3]["image_uri"]).write_bytes(b"")
    # Another model uses the existing examples, so no picture is looked for.
    with monkeypatch.context() as patch:
        patch.setattr("jobs.nightly.plan.MissingPictureFinder", None)
        assert plan(settings, DAY1, retag=True).held_pictures == 0
    records[0]["title"] = "A title that is new"
    write_raw(lake, DAY2, records)
    ledger, _ = whole_night.night(settings, DAY2)
    assert (ledger.held_pictures, ledger.changed, ledger.unchanged) == (1, 0, 99)
    assert live(lake) == before
    # Without the examples, all must be made again.
    for path in lake.all_examples.glob("ds=*/run=*/_manifest.json"):
        path.unlink()
    made = plan(settings, DAY2, retag=True)
    assert (made.held_pictures, made.model_changed, made.to_preprocess) == (4, 96, 96)
    assert preprocess(settings, made.run_id) == 96
    tag(settings, made.run_id)
    ledger = publish(settings, made.run_id)
    assert ledger.differences() == []
    tagged = ledger.tagged_both + ledger.tagged_text + ledger.tagged_image  # two have no picture, or no text
    assert (ledger.held_pictures, tagged) == (4, 96)
    assert values(live(lake)) == values(before)


def test_a_night_that_would_remove_much_stops_until_a_person_allows_it(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    pointer = lake.current.read_bytes()
    lines = raw_lines(lake, DAY1)
    gone = [json.loads(line)["product_id"] for line in lines[:21]]
    write_raw(lake, DAY2, [b'["half a line', *lines[21:]])
    with pytest.raises(RemovalsError) as error:
        whole_night.night(settings, DAY2)
    said = str(error.value)
    assert "would remove 21 of 100 published products (21.0%; 20% is allowed), such as " in said
    assert ", ".join(map(repr, sorted(gone)[:10])) in said
    assert "The day has 80 lines; 1 were rejected (1 unparsable), in " in said
    assert "--allow-removals" in said
    (folder,) = lake.plan("2026-11-21-00000000").parent.glob("run=*")
    assert not (folder / "plan.json").exists()
    assert {row["product_id"] for row in pq.read_table(folder / "removed").to_pylist()} == set(gone)
    assert lake.current.read_bytes() == pointer
    with pytest.raises(RemovalsError):
        plan(settings, DAY2)  # as often as it is tried
    # The run is the same with permission and with another share.
    looser = settings.model_copy(update={"max_removed_share": 0.21})
    made = plan(looser, DAY2)
    assert f"run={made.run_id}" == folder.name
    assert (made.removed, made.removals_allowed) == (21, False)
    (folder / "plan.json").unlink()
    ledger, _ = whole_night.night(settings, DAY2, allow_removals=True)
    assert (ledger.run_id, ledger.removed, ledger.differences()) == (made.run_id, 21, [])
    assert not products_of(live(lake)) & set(gone)


@pytest.mark.long
def test_the_share_of_removals_holds_for_few_products_too(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    write_raw(lake, DAY2, raw_lines(lake, DAY1)[1:])
    validate(settings, DAY2)
    with pytest.raises(RemovalsError, match=r"remove 1 of 100"):
        plan(settings.model_copy(update={"max_removed_share": 0.0}), DAY2)
    assert plan(settings.model_copy(update={"max_removed_share": 0.01}), DAY2).removed == 1


def test_products_with_nothing_usable_are_published_untaggable(lake: Lake, settings: Settings) -> None:
    """A placeholder text and an unusable picture: both records are valid, but the model has no input."""
    (lake.pictures / "broken.jpg").write_bytes(b"no picture")
    nothing = [
        {"product_id": "placeholder", "title": "N/A", "attributes": {"kind": "Dress"}},
        {"product_id": "broken", "title": "-", "description": "N/A", "image_uri": "broken.jpg"},
        {"product_id": "missing", "image_uri": "nowhere.jpg"},
    ]
    write_raw(lake, DAY1, [*read_raw(lake, DAY1), *nothing])
    ledger, _ = whole_night.night(settings, DAY1)
    assert ledger.differences() == []
    assert (ledger.valid, ledger.untaggable) == (103, 3)
    ids = [str(record["product_id"]) for record in nothing]
    manifest = lake.read_manifest(ledger.run_id)
    assert manifest is not None
    with duckdb.connect() as connection:
        (products,) = (str(lake.root / file.path) for file in manifest.files if file.table == PRODUCTS)
        states = connection.execute(
            "select product_id, modality, image_status from read_parquet($1) where product_id in $2 order by all",
            [products, ids],
        ).fetchall()
        rows = connection.execute(
            """select product_id, attribute, value, source from read_parquet($1)
               where product_id in $2 and (value is not null or model_value is not null or accepted or conflict)""",
            [lake.current_lines(), ids],
        ).fetchall()
    assert states == [("broken", "none", "broken"), ("missing", "none", "missing"), ("placeholder", "none", "absent")]
    assert rows == [("placeholder", "article_type", "Dress", "catalog")]  # the catalog's own value stays


@pytest.mark.long
def test_a_picture_that_was_missing_is_read_again_when_its_product_is_tagged_again(
    lake: Lake, settings: Settings
) -> None:
    """The picture has the shop's own name. A picture that import named by its content is never just missing."""
    shutil.rmtree(lake.root / "examples")
    records = read_raw(lake, DAY1)
    imported = next(r["image_uri"] for r in records if r["image_uri"])
    sharing = sum(r["image_uri"] == imported for r in records)
    picture = lake.pictures / "shop" / "1.jpg"
    picture.parent.mkdir()
    shutil.copy(lake.pictures / imported, picture)
    own = {"image_uri": "shop/1.jpg", "image_version": None}
    write_raw(lake, DAY1, [r | own if r["image_uri"] == imported else r for r in records])
    away = picture.rename(picture.with_suffix(".away"))
    steps_to("publish", settings, DAY1)
    away.rename(picture)
    run_id = plan(settings, DAY1, retag=True).run_id
    found = lake.read_plan(run_id)
    assert (found.model_changed, found.to_preprocess) == (100, sharing)
    preprocess(settings, run_id)
    manifest = lake.read_examples_manifest(run_id)
    assert manifest is not None
    assert manifest.image_statuses == {"ok": sharing}


def test_plan_is_frozen(settings: Settings) -> None:
    validate(settings, DAY1)
    first = plan(settings, DAY1)
    assert plan(settings, DAY1) == first
    assert [s.id for s in first.shards] == list(range(len(first.shards)))
    assert sum(s.rows for s in first.shards) == 100
    assert len(first.shards) == 3  # 100 products whose examples are there, in shards of at most about 40


class _Killed(BaseException):
    """Stands for the death of the process: nothing in the jobs catches it."""


def killed_before_write(n: int, patch: pytest.MonkeyPatch, step: Callable[[], object]) -> bool:
    """Run `step`, let it die before its write number `n`, counted from 0, and return whether it died."""
    write, count = storage.write_bytes, iter(range(1000))

    def dying(path: Path, data: bytes) -> None:
        if next(count) >= n:
            raise _Killed
        write(path, data)

    with patch.context() as context:
        context.setattr(storage, "write_bytes", dying)
        try:
            step()
        except _Killed:
            return True
    return False


@pytest.mark.long
def test_plan_killed_before_any_write_and_started_again(
    first_night: tuple[Lake, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, settings = first_night
    second_day(lake)

    def step() -> None:
        validate(settings, DAY2)
        plan(settings, DAY2)

    n = 0
    while killed_before_write(n, monkeypatch, step):
        n += 1
    assert n >= 2  # it did die several times
    ledger, _ = whole_night.night(settings, DAY2)
    assert ledger.differences() == []
    assert products_of(live(lake)) >= {"brand-new-1", "brand-new-2"}
    assert as_of(settings, DAY2) == live(lake)


def values(table_rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows without the tagging day and confidences, whose last bit varies with the batch."""
    return [row[:6] for row in table_rows]


@pytest.mark.long
def test_publish_killed_before_any_write(
    first_night: tuple[Lake, Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kill publish before each of its writes, then start it again: the tables are as if nothing had happened.

    The same holds if the night of the next day comes first, and the day itself is started again after it.
    """
    lake, settings = first_night
    second_day(lake)
    write_raw(lake, DAY3, raw_lines(lake, DAY2)[1:])
    run_id = steps_to("tag", settings, DAY2)
    validate(settings, DAY3)
    tagged = tmp_path / "tagged"
    shutil.copytree(lake.root, tagged)

    def start_over() -> None:
        shutil.rmtree(lake.root)
        shutil.copytree(tagged, lake.root)

    publish(settings, run_id)
    second = live(lake)
    steps_to("publish", settings, DAY3)
    third = live(lake)
    assert len(products_of(third)) == len(products_of(second)) - 1
    n = 0
    while True:
        start_over()
        if not killed_before_write(n, monkeypatch, lambda: publish(settings, run_id)):
            break
        killed = tmp_path / f"killed-{n}"
        shutil.copytree(lake.root, killed)
        assert publish(settings, run_id).differences() == []
        assert live(lake) == as_of(settings, DAY2) == second, n
        n += 1
    assert n == 6  # the manifest, the left index, the index, the pointer, the ledger, the step's metrics
    # The next night finds a swap that was killed in the middle.
    shutil.rmtree(lake.root)
    (tmp_path / "killed-3").rename(lake.root)
    steps_to("publish", settings, DAY3)
    assert live(lake) == as_of(settings, DAY3)
    assert values(live(lake)) == values(third)
    steps_to("publish", settings, DAY2)
    index = lake.read_history_index()
    assert list(index.days) == [DAY1, DAY2, DAY3]
    ledger = lake.read_ledger(history.own_run(lake, index, DAY2) or "")
    assert ledger is not None
    assert (ledger.new, ledger.removed) == (2, 2)
    assert values(as_of(settings, DAY2)) == values(second)
    assert live(lake) == as_of(settings, DAY3)


@pytest.mark.long
def test_runs_planned_at_once_are_published_one_after_the_other(
    first_night: tuple[Lake, Settings], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two days have the same base: the second one is planned again, and the model sees no product twice."""
    lake, settings = first_night
    expected = second_day(lake)
    write_raw(lake, DAY3, raw_lines(lake, DAY2)[1:])
    second, third = (steps_to("tag", settings, ds) for ds in (DAY2, DAY3))
    before = products_of(live(lake))
    publish(settings, third)
    newest = live(lake)

    def looked(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("jobs.nightly.tag._engine", looked)
    with caplog.at_level("INFO"):
        ledger = publish_in_turn(settings, second)
    assert ledger.run_id != second
    assert lake.read_plan(ledger.run_id).replaces == second
    assert ledger.backfill
    assert ledger.differences() == []
    assert (ledger.new, ledger.changed, ledger.removed) == (2, 3, 2)
    assert "5 of 5 predictions are reused from other runs of the day" in caplog.text
    assert live(lake) == as_of(settings, DAY3) == newest
    assert products_of(as_of(settings, DAY2)) == before - set(expected["removed"]) | set(expected["new"])
    assert list(lake.read_history_index().days) == [DAY1, DAY2, DAY3]
    assert publish_in_turn(settings, ledger.run_id) == ledger  # a second start does nothing
    with pytest.raises(AssertionError, match="the model was loaded"):  # a person wants new predictions
        steps_to("tag", settings, DAY3, retag=True)


@pytest.mark.long
def test_step_started_twice_at_once_works_once(lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may outlive the Airflow task that started it, and run at the same time as the task's retry."""
    records = read_raw(lake, DAY1)
    records[0]["title"] = "Something to preprocess"
    write_raw(lake, DAY1, records)
    made: list[str] = []
    steps: list[tuple[str, str, Callable[[], object]]] = [
        ("jobs.validation.validate", "_validate", lambda: validate(settings, DAY1)),
        ("jobs.nightly.plan", "_plan", lambda: made.append(plan(settings, DAY1).run_id)),
        ("jobs.nightly.preprocess", "_preprocess", lambda: preprocess(settings, made[0])),
        ("jobs.nightly.publish", "_write", lambda: publish(settings, made[0])),
    ]
    for module, name, step in steps:
        work = getattr(importlib.import_module(module), name)
        started: list[threading.Thread] = []

        def slowly(*arguments: Any, work: Any = work, step: Any = step, started: Any = started, **named: Any) -> Any:
            started.append(threading.Thread(target=step))
            if len(started) == 1:
                started[0].start()
                started[0].join(1)
            return work(*arguments, **named)

        if module == "jobs.nightly.publish":
            tag(settings, made[0])
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{name}", slowly)
            step()
            started[0].join()
        assert len(started) == 1, module
    assert live(lake) == as_of(settings, DAY1)
