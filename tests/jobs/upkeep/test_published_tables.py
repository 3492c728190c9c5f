"""Published tables: a line for each engine, readers during a swap, rollback and backfill.

Run with ``make test TESTS=tests/jobs/upkeep/test_published_tables.py``.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import threading
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import JobError, LedgerError, StalePlanError
from jobs.lake import storage, table_files
from jobs.lake.layout import Lake
from jobs.nightly import publish
from jobs.nightly.plan import plan
from jobs.runs import whole_night
from jobs.settings import Settings
from jobs.upkeep import published_tables
from schemas.documents import PublishedFile
from schemas.tables import ATTRIBUTES
from tests.conftest import DAY1, DAY2, DAY3, DAY4, Night, copy_trained, raw_lines, settings_for, split_raw, write_raw
from tests.jobs.runs.test_whole_night import as_of, killed_before_write, live, products_of, second_day, steps_to

pytestmark = pytest.mark.spark


@pytest.fixture(scope="module")
def published(trained: Lake, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake after the nights of DAY1 and DAY2. Copy it, or only read it."""
    root = tmp_path_factory.mktemp("published") / "lake"
    copy_trained(trained, root)
    lake, settings = Lake(root), settings_for(root)
    whole_night.night(settings, DAY1)
    second_day(lake)
    whole_night.night(settings, DAY2)
    return lake


@pytest.fixture
def two_nights(published: Lake) -> Any:
    """The same lake, with its pointer and history restored after the test. Paths in the pointer are absolute."""
    kept = {path: path.read_bytes() for path in (published.current, published.history_index)}
    yield published
    for path, data in kept.items():
        storage.write_bytes(path, data)


def test_each_engine_reads_the_tables_by_its_line(published: Lake, spark_session: Any) -> None:
    lines = published_tables.reader_lines(published)
    manifest = published.read_manifest(published.current_run() or "")
    assert manifest is not None
    expected = manifest.rows
    assert expected > 500
    names = set(ATTRIBUTES.names)
    with duckdb.connect() as connection:
        for statement in lines["DuckDB"].split("; "):
            found = connection.execute(statement)
        by_duckdb = found.to_arrow_table()
    assert by_duckdb.num_rows == expected
    assert set(by_duckdb.column_names) == names
    for engine, scope in (("pandas", {"pandas": pandas}), ("Polars", {"polars": polars})):
        frame = eval(lines[engine], scope)
        assert len(frame) == expected, engine
        assert set(frame.columns) == names, engine
    by_spark = eval(lines["Spark"], {"spark": spark_session})
    assert by_spark.count() == expected
    assert set(by_spark.columns) == names


def test_files_are_made_for_readers(published: Lake) -> None:
    for line in published.current_lines():
        with pq.ParquetFile(line) as file:
            schema, metadata = file.schema_arrow, file.metadata
            assert schema.equals(ATTRIBUTES, check_metadata=False)
            assert schema.field("conflict").metadata[b"comment"].startswith(b"an accepted model value differs")
            ids = file.read(columns=["product_id"])["product_id"].to_pylist()
            assert ids == sorted(ids)
            column = metadata.row_group(0).column(0)
            assert column.path_in_schema == "product_id"
            assert column.has_column_index
            assert column.has_offset_index
            assert column.compression == "ZSTD"
            assert column.statistics.min == ids[0]
            assert column.statistics.max == ids[-1]


def test_show_prints_the_runs_and_lines(published: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    published_tables.show(settings_for(published.root))
    printed = capsys.readouterr().out
    assert str(published.current_run()) in printed
    assert published_tables.reader_lines(published)["DuckDB"] in printed
    assert "2 days, 2026-11-20 to 2026-11-21" in printed


def test_an_apostrophe_in_the_lake_s_path(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "bob's")
    file = lake.run("2026-11-20-aaaaaaaa") / "colour" / "part-00000.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(ATTRIBUTES.empty_table(), file)
    lake.current.write_text(f"{file}\n")
    with duckdb.connect() as connection:
        found = connection.execute(published_tables.reader_lines(lake)["DuckDB"])
        assert set(found.to_arrow_table().column_names) == set(ATTRIBUTES.names)


def test_nothing_published_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="nothing is published"):
        published_tables.show(settings_for(tmp_path))
    with duckdb.connect() as connection, pytest.raises(JobError, match="no history exists up to 2026-11-20"):
        published_tables.as_of(connection, settings_for(tmp_path), DAY1)


def test_as_of_writes_a_file(published: Lake, tmp_path: Path) -> None:
    published_tables.write_as_of(settings_for(published.root), DAY1, tmp_path / "then.parquet")
    assert pq.read_metadata(tmp_path / "then.parquet").num_rows == len(as_of(settings_for(published.root), DAY1))


def test_as_of_without_a_file_prints_each_attribute(published: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_for(published.root)
    published_tables.write_as_of(settings, DAY1, None)
    printed = capsys.readouterr().out
    assert printed.startswith(f"the attribute table as it was on {DAY1} (write it whole with --out FILE.parquet):")
    colours = sum(row[1] == "colour" for row in as_of(settings, DAY1))
    assert re.search(rf"colour\W+{colours}\W.*{DAY1}", printed)
    assert DAY2 not in printed


def rows_by_run(lake: Lake) -> dict[str, int]:
    """Read the live tables as an analyst does, and count the rows each run wrote."""
    statements = published_tables.reader_lines(lake)["DuckDB"].split("; ")
    with duckdb.connect() as connection:
        connection.execute(statements[0])
        return dict(
            connection.execute(f"select run_id, count(*) from ({statements[1].rstrip(';')}) group by all").fetchall()
        )


def test_reader_in_the_middle_of_swaps_sees_one_whole_version(two_nights: Lake) -> None:
    settings = settings_for(two_nights.root)
    first, second = (m.run_id for m in published_tables.runs(two_nights))
    versions = {}
    for run_id in (second, first, second):  # and the second one is live again
        published_tables.rollback(settings, run_id)
        versions[run_id] = rows_by_run(two_nights)
    assert versions[first] != versions[second]
    stop, seen = threading.Event(), list[dict[str, int]]()

    def read() -> None:
        while not stop.is_set():
            seen.append(rows_by_run(two_nights))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        published_tables.rollback(settings, first)
        published_tables.rollback(settings, second)
    stop.set()
    reader.join()
    assert seen
    assert all(found in versions.values() for found in seen)


def test_rollback_and_forward(two_nights: Lake) -> None:
    settings = settings_for(two_nights.root)
    first, second = (m.run_id for m in published_tables.runs(two_nights))
    after = live(two_nights)
    published_tables.rollback(settings, first)
    assert two_nights.current_run() == first
    assert live(two_nights) == as_of(settings, DAY2) == as_of(settings, DAY1)
    assert list(two_nights.read_history_index().days) == [DAY1]
    published_tables.rollback(settings, second)
    assert live(two_nights) == as_of(settings, DAY2) == after
    with pytest.raises(JobError, match="wrote no tables"):
        published_tables.rollback(settings, "2026-11-20-00000000")


def test_rollback_to_damaged_files_is_refused(two_nights: Lake) -> None:
    first = published_tables.runs(two_nights)[0]
    path = two_nights.root / first.files[0].path
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:100] + kept[-200:])
        with pytest.raises(Exception, match=r"part-00000\.parquet|Parquet"):
            published_tables.rollback(settings_for(two_nights.root), first.run_id)
    finally:
        path.write_bytes(kept)
    assert two_nights.current_run() != first.run_id


def test_rollback_to_a_file_that_one_bit_is_wrong_in_is_refused(two_nights: Lake) -> None:
    """Rows and size are unchanged, so only the digest shows the damage."""
    first = published_tables.runs(two_nights)[0]
    path = two_nights.root / first.files[0].path
    kept = path.read_bytes()
    try:
        path.write_bytes(kept[:20] + bytes([kept[20] ^ 1]) + kept[21:])
        with pytest.raises(JobError, match=r"part-00000\.parquet is not what was written \(its SHA-256"):
            published_tables.rollback(settings_for(two_nights.root), first.run_id)
    finally:
        path.write_bytes(kept)
    assert two_nights.current_run() != first.run_id


@pytest.mark.parametrize("quiet", [pytest.param(False, marks=pytest.mark.long), True])
def test_backfill_changes_history_alone(two_nights: Lake, quiet: bool) -> None:
    """Backfill a day between two finished days: its own products appear as of that day, and later days keep every row."""
    settings = settings_for(two_nights.root)
    # The night of DAY4 is DAY2 with one more change or none. DAY3, which lies between them, is done afterwards.
    records, unreadable = split_raw(two_nights, DAY2)
    if not quiet:
        records[8]["title"] = "Green dress of another kind"
    write_raw(two_nights, DAY4, [*records, *unreadable])
    whole_night.night(settings, DAY4)
    assert (two_nights.read_history_index().days[DAY4].path == "") == quiet
    newest, pointer = live(two_nights), two_nights.current.read_bytes()
    before = {day: as_of(settings, day) for day in (DAY1, DAY2, DAY4)}
    records, _ = split_raw(two_nights, DAY2)
    late = records[9] | {"product_id": "only-on-day-3"}
    gone = records.pop(10)
    records[11]["title"] = "Red bag"
    write_raw(two_nights, DAY3, [*records, *unreadable, late])
    ledger, page = whole_night.night(settings, DAY3)
    assert ledger.backfill
    assert (ledger.new, ledger.changed, ledger.removed) == (1, 1, 1)
    assert page.exists()
    assert two_nights.current.read_bytes() == pointer
    assert live(two_nights) == newest
    for day, rows in before.items():
        assert as_of(settings, day) == rows, day
    then = as_of(settings, DAY3)
    assert products_of(then) == products_of(before[DAY2]) - {gone["product_id"]} | {"only-on-day-3"}
    # Done again, it finds nothing to do.
    again, _ = whole_night.night(settings, DAY3)
    assert (again.new, again.changed, again.removed) == (0, 0, 0)
    assert as_of(settings, DAY3) == then
    # Neither a rollback to the live run nor one back and forth loses it.
    index, run_id = two_nights.read_history_index(), two_nights.current_run() or ""
    for back in (run_id, published_tables.runs(two_nights)[0].run_id, run_id):
        published_tables.rollback(settings, back)
    assert two_nights.read_history_index() == index
    assert as_of(settings, DAY4) == live(two_nights) == newest


@pytest.mark.long
def test_day_that_was_rolled_back_is_published_again(two_nights: Lake) -> None:
    settings = settings_for(two_nights.root)
    write_raw(two_nights, DAY3, raw_lines(two_nights, DAY2))
    whole_night.night(settings, DAY3)  # nothing changed
    index, newest = two_nights.read_history_index(), live(two_nights)
    first, second = (two_nights.read_history_index().days[day].run_id for day in (DAY1, DAY2))
    published_tables.rollback(settings, first)
    for day in (DAY2, DAY3):
        whole_night.night(settings, day)
        assert two_nights.current_run() == second
        assert as_of(settings, day) == live(two_nights) == newest
    assert two_nights.read_history_index() == index


@pytest.mark.long
def test_run_whose_day_a_backfill_rewrote_is_refused_before_anything_is_swapped(two_nights: Lake) -> None:
    settings = settings_for(two_nights.root)
    records, unreadable = split_raw(two_nights, DAY2)
    held = products_of(live(two_nights)) - {r["product_id"] for r in records}
    assert len(held) == len(unreadable) > 0
    write_raw(two_nights, DAY4, [*records[1:], *unreadable])
    replaced = two_nights.read_ledger(steps_to("publish", settings, DAY4))
    assert replaced is not None
    write_raw(two_nights, DAY4, [*records[2:], *unreadable])
    run_id = steps_to("tag", settings, DAY4)
    write_raw(two_nights, DAY3, [*records[3:], *unreadable])
    steps_to("publish", settings, DAY3)
    before = [path.read_bytes() for path in (two_nights.current, two_nights.history_index)]
    with pytest.raises(StalePlanError, match=f"Start the night of {DAY4} again"):
        publish.publish(settings, run_id)
    assert [path.read_bytes() for path in (two_nights.current, two_nights.history_index)] == before
    steps_to("publish", settings, DAY4)
    assert products_of(live(two_nights)) == {r["product_id"] for r in records[2:]} | held
    assert as_of(settings, DAY4) == live(two_nights)
    assert products_of(as_of(settings, DAY3)) == {r["product_id"] for r in records[3:]} | held
    # The day's first run stays replaced when it is started again.
    newest = two_nights.current_run()
    assert publish.publish(settings, replaced.run_id) == replaced
    assert two_nights.current_run() == newest


def test_stale_plan_is_refused(tagged: tuple[Lake, Settings, str]) -> None:
    lake, settings, run_id = tagged
    # Someone else publishes the same day under other settings in the meantime.
    other = plan(settings, DAY1, retag=True).run_id
    assert other != run_id
    from jobs.nightly.tag import tag

    tag(settings, other)
    publish.publish(settings, other)
    with pytest.raises(StalePlanError, match="is live now"):
        publish.publish(settings, run_id)
    assert lake.current_run() == other


def test_ledger_that_does_not_add_up_publishes_nothing(tagged: tuple[Lake, Settings, str]) -> None:
    lake, settings, run_id = tagged
    path = lake.plan(run_id) / "plan.json"
    found = lake.read_plan(run_id)
    storage.write_document(path, found.model_copy(update={"unchanged": found.unchanged + 1}))
    with pytest.raises(LedgerError, match="valid 100 != unchanged 1 "):
        publish.publish(settings, run_id)
    assert lake.current_run() is None


def test_untagged_shard_is_named(tagged: tuple[Lake, Settings, str]) -> None:
    lake, settings, run_id = tagged
    lake.prediction_file(run_id, 1).unlink()
    with pytest.raises(JobError, match=rf"shard 1 is not tagged.*--run {run_id} --shard 1"):
        publish.publish(settings, run_id)
    assert lake.current_run() is None


def test_altered_published_file_fails_the_audit(first_night: tuple[Lake, Settings]) -> None:
    lake, _ = first_night
    manifest = lake.read_manifest(lake.current_run() or "")
    assert manifest is not None
    publish.audit(lake, manifest.files, unique=True)
    path = lake.root / manifest.files[0].path
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 1), path)
    with pytest.raises(JobError, match="were written"):
        publish.audit(lake, manifest.files, unique=True)


@pytest.mark.parametrize("command", ["--run ../../etc", "--run 2026-11-20-XYZ"])
def test_run_ids_cannot_name_anything_else(command: str) -> None:
    from jobs.lake.layout import check_run

    with pytest.raises(JobError, match="is not a run id"):
        check_run(shlex.split(command)[1])


def by_table(lake: Lake, run_id: str) -> dict[str, list[PublishedFile]]:
    """Return all files that a run wrote, by their table."""
    manifest = lake.read_manifest(run_id)
    assert manifest is not None
    found: dict[str, list[PublishedFile]] = {}
    for file in (*manifest.files, *manifest.history_files):
        found.setdefault(file.table, []).append(file)
    return found


def read(lake: Lake, files: list[PublishedFile]) -> list[dict[str, Any]]:
    """Return the rows of files, in order."""
    return [row for file in files for row in pq.read_table(lake.root / file.path, partitioning=None).to_pylist()]


def check_ranges(lake: Lake, files: list[PublishedFile], most: int) -> None:
    """Check that a table's files are sorted, do not overlap and have at most the given number of rows."""
    last = ""
    for file in files:
        ids = pq.read_table(lake.root / file.path, columns=["product_id"])["product_id"].to_pylist()
        assert len(ids) == file.rows <= most, file.path
        assert ids == sorted(ids), file.path
        assert last < ids[0], file.path
        last = ids[-1]


@pytest.mark.long
def test_large_tables_are_cut_by_ranges_of_product_id(night_of_day1: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes, state and history have the same rows as in one file. A killed publish writes the same again."""
    lake, run_id = night_of_day1.after("report"), night_of_day1.run_id
    settings = settings_for(lake.root)
    whole = {table: read(lake, files) for table, files in by_table(lake, run_id).items()}
    assert all(len(files) == 1 for files in by_table(lake, run_id).values())
    night_of_day1.after("tag")
    monkeypatch.setattr(table_files, "_ROWS_PER_FILE", 40)
    publish.publish(settings, run_id)
    cut = by_table(lake, run_id)
    assert {table: read(lake, files) for table, files in cut.items()} == whole
    expected = {name: max(1, math.ceil(len(rows) / 40)) for name, rows in whole.items()}
    assert {name: len(files) for name, files in cut.items()} == expected
    assert min(expected[name] for name in ("colour", "_products", "products", "attributes")) >= 3
    for files in cut.values():
        check_ranges(lake, files, 40 + 10)  # no product is cut in two
    night_of_day1.after("tag")
    assert killed_before_write(0, monkeypatch, lambda: publish.publish(settings, run_id))
    assert lake.read_manifest(run_id) is None
    paths = [lake.root / file.path for files in cut.values() for file in files]
    paths[0].unlink()
    paths[-1].write_bytes(paths[-1].read_bytes()[:100])
    for folder in (paths[0].parent, paths[-1].parent):  # as under another limit
        shutil.copy(paths[1], folder / "part-00099.parquet")
    publish.publish(settings, run_id)
    assert by_table(lake, run_id) == cut  # to the SHA-256
    written = (lake.run(run_id), lake.history_run(DAY1, run_id))
    assert {path for folder in written for path in folder.rglob("*.parquet")} == set(paths)
    assert as_of(settings, DAY1) == live(lake)


@pytest.mark.long
def test_nights_go_on_from_tables_in_one_file_and_in_several(
    first_night: tuple[Lake, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, settings = first_night
    index = json.loads(lake.history_index.read_bytes())
    del index["checksum"]  # nor had it one
    assert index["days"][DAY1].pop("files") == {"attributes": 1, "products": 1}  # a version before did not tell
    storage.write_bytes(lake.history_index, json.dumps(index).encode())
    first = live(lake)
    second_day(lake)
    monkeypatch.setattr(table_files, "_ROWS_PER_FILE", 30)
    ledger, _ = whole_night.night(settings, DAY2)
    cut = by_table(lake, ledger.run_id)
    assert min(len(cut[table]) for table in ("colour", "_products", "attributes")) > 1 == len(cut["products"])
    second = live(lake)
    assert as_of(settings, DAY1) == first
    assert as_of(settings, DAY2) == second
    # The same day again, from its own result, and the next day.
    again = steps_to("publish", settings, DAY2, retag=True)
    assert len(by_table(lake, again)["products"]) > 1
    assert as_of(settings, DAY1) == first
    assert as_of(settings, DAY2) == live(lake)
    assert products_of(live(lake)) == products_of(second)
    write_raw(lake, DAY3, raw_lines(lake, DAY2)[1:])
    ledger, _ = whole_night.night(settings, DAY3)
    assert (ledger.new, ledger.changed, ledger.removed) == (0, 0, 1)
    assert as_of(settings, DAY3) == live(lake)
    assert len(products_of(live(lake))) == len(products_of(second)) - 1
    published_tables.rollback(settings, again)
    assert products_of(live(lake)) == products_of(second)
    # One of several files of changes is gone.
    (lake.root / by_table(lake, again)["attributes"][1].path).unlink()
    with pytest.raises(JobError, match=rf"\d+ files of the changes of {DAY2} exist, \d+ were written"):
        as_of(settings, DAY2)


ROW = {
    "value": "Blue", "source": "catalog", "catalog_value": "Blue", "model_value": "Blue", "confidence": 0.9, "method": "cma-clip",
    "accepted": True, "conflict": False, "text_weight": 0.5, "image_weight": 0.5, "model_version": "20261120-0123abcd",
    "source_hash": "0123456789abcdef" * 2, "ds": DAY1, "run_id": f"{DAY1}-0123abcd",
}  # fmt: skip


def drawn(session: Any, rows: int, attributes: int = 1) -> Any:
    """Return the given number of rows of ATTRIBUTES, one for each product and attribute."""
    from pyspark.sql import functions as F

    return session.range(rows).select(
        F.format_string("sku-%09d", F.expr(f"id div {attributes}")).alias("product_id"),
        F.format_string("attribute_%d", F.col("id") % attributes).alias("attribute"),
        *[F.lit(value).alias(name) for name, value in ROW.items()],
        F.lit(datetime.now(UTC)).alias("tagged_at"),
    )


def test_a_sample_cuts_a_table_into_even_files_whatever_order_its_rows_come_in(
    tmp_path: Path, spark_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyspark.sql import functions as F

    monkeypatch.setattr(table_files, "_ROWS_PER_FILE", 2_000)
    monkeypatch.setattr(table_files, "_SAMPLED_PER_FILE", 400)

    def write(rows: Any, most: int = 20_000) -> list[PublishedFile]:
        return table_files.write(Lake(tmp_path), rows, tmp_path, ATTRIBUTES, ["changes"], F.lit("changes"), most)

    frame = drawn(spark_session, 20_000, attributes=2)
    files = write(frame)
    assert 9 <= len(files) <= 11
    assert sum(file.rows for file in files) == 20_000
    check_ranges(Lake(tmp_path), files, 2_400)
    assert write(frame.repartition(7, F.rand(1))) == files  # to the SHA-256
    assert [Path(file.path).name for file in write(frame, most=2_000)] == ["part-00000.parquet"]  # said to fit one


def test_tables_of_other_products_and_sizes_are_cut_each_for_itself(
    tmp_path: Path, spark_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyspark.sql import functions as F

    monkeypatch.setattr(table_files, "_ROWS_PER_FILE", 100)
    number = F.substring("product_id", 5, 9).cast("int")
    own = F.when(number < 800, "shoes").when(number < 850, "hats").otherwise("shirts")
    frame = drawn(spark_session, 1_200).withColumn("attribute", own)
    names = ["hats", "none", "shirts", "shoes"]
    files = table_files.write(Lake(tmp_path), frame, tmp_path, ATTRIBUTES, names, F.col("attribute"), 1_200)
    by_name = {name: [file for file in files if file.table == name] for name in names}
    assert {name: len(found) for name, found in by_name.items()} == {"hats": 1, "none": 1, "shirts": 4, "shoes": 8}
    assert {name: sum(file.rows for file in found) for name, found in by_name.items()} == {
        "hats": 50, "none": 0, "shirts": 350, "shoes": 800,
    }  # fmt: skip
    for name in ("shirts", "shoes"):
        check_ranges(Lake(tmp_path), by_name[name], 110)


def test_one_product_is_looked_up_in_small_row_groups(tmp_path: Path, spark_session: Any) -> None:
    """A reader decodes all ids of a row group to find one of them. Examples have large ones: `test_preprocess.py`."""
    from pyspark.sql import functions as F

    frame = drawn(spark_session, 150_000)
    (file,) = table_files.write(
        Lake(tmp_path), frame, tmp_path / "run", ATTRIBUTES, ["attribute_0"], F.col("attribute"), most=150_000
    )
    metadata = pq.read_metadata(tmp_path / file.path)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert all(30_000 < group.num_rows < 80_000 for group in groups[:-1])
    assert groups[-1].num_rows < 80_000
    ids = [group.column(0).statistics for group in groups]
    assert all(one.max < following.min for one, following in pairwise(ids))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([("b", "x"), ("a", "x")], "not sorted: 'a' comes after 'b'"),
        ([("a", "x"), ("b", "x"), ("b", "x")], "'b' occurs 2 times"),
        ([("a", None), ("a", "x"), ("a", None)], "'a' occurs 2 times"),
        ([("a", "x"), ("a", "y"), ("b", "x")], None),
    ],
)
@pytest.mark.parametrize(("files", "batch_rows"), [(1, 1), (1, 100), (2, 100), (3, 1)])
def test_keys_are_checked_across_batches_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str | None]], complaint: str | None,
    files: int, batch_rows: int,
) -> None:  # fmt: skip
    columns = {
        "product_id": [r[0] for r in rows],
        "catalog_value": [r[1] for r in rows],
        "model_value": ["m"] * len(rows),
    }
    paths = [tmp_path / f"part-{part:05d}.parquet" for part in range(files)]
    each = math.ceil(len(rows) / files)
    for part, path in enumerate(paths):  # the last one may have none
        pq.write_table(pa.table(columns).slice(part * each, each), path)
    monkeypatch.setattr(publish, "_ROWS_PER_BATCH", batch_rows)
    if complaint is None:
        publish._check_keys(paths)
    else:
        with pytest.raises(JobError, match=complaint):
            publish._check_keys(paths)
