"""Published files are verified before anything is built on them, and are written again if possible.

Run with ``make test TESTS=tests/jobs/lake/test_verified_files.py``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.errors import JobError, LedgerError
from jobs.lake import history, publication, storage
from jobs.lake.layout import PRODUCTS, Lake
from jobs.nightly.plan import plan
from jobs.nightly.preprocess import preprocess
from jobs.nightly.publish import publish
from jobs.runs import whole_night
from jobs.settings import Settings
from jobs.upkeep.published_tables import rollback
from jobs.validation.validate import validate
from schemas.documents import PublishedFile, RowCounts, RunManifest
from tests.conftest import DAY1, DAY2
from tests.jobs.runs.test_whole_night import as_of, second_day, steps_to
from tests.jobs.runs.test_whole_night import live as live_rows
from tests.jobs.upkeep.test_repair import Shop, day


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_an_attributes_rows_before_and_after_must_add_up() -> None:
    assert RowCounts(before=10, replaced=3, removed=2, fresh=4, after=9).difference() is None
    difference = RowCounts(before=10, replaced=3, removed=2, fresh=4, after=8).difference()
    assert difference == "8 rows != before 10 - replaced 3 - removed 2 + fresh 4 = 9"


def test_an_error_about_damaged_changes_names_the_run_that_writes_them_again(tmp_path: Path) -> None:
    shop = Shop(Lake(tmp_path / "lake"))
    run_id = shop.night(day(1))
    shop.night(day(2))
    lake, index = shop.lake, shop.lake.read_history_index()
    assert len(history.files_until(lake, index, "products", day(2))) == 2
    path = lake.history_run(day(1), run_id) / "products" / "part-00000.parquet"
    assert isinstance(path, Path)
    flip(path)
    with pytest.raises(JobError, match=rf"{path} is not what was written .*publish --run {run_id}"):
        history.files_until(lake, index, "products", day(2))
    assert len(history.files_until(lake, index, "attributes", day(2))) == 2
    os.truncate(path, 0)
    with pytest.raises(
        JobError, match=rf"0 files of the changes of .* exist, 1 were written; .*publish --run {run_id}"
    ):
        history.files_until(lake, index, "products", day(2))


@pytest.mark.spark
def test_labels_are_read_by_the_taxonomy_that_was_planned_with(lake: Lake, settings: Settings) -> None:
    """One flipped bit changes a value, but the file is still a valid taxonomy."""
    shutil.rmtree(lake.all_examples)
    validate(settings, DAY1)
    made = plan(settings, DAY1, prepare=True)
    path = lake.root / made.taxonomy_path
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes().replace(b"Red", b"Red".replace(b"d", b"e"), 1))
    with pytest.raises(JobError, match=rf"{path}: it is not the taxonomy that was planned with .* plan the day again"):
        preprocess(settings, made.run_id)
    assert plan(settings, DAY1, prepare=True).run_id == made.run_id
    assert lake.read_taxonomy(made.taxonomy_path, made.taxonomy_fingerprint).fingerprint == made.taxonomy_fingerprint
    path.unlink()
    with pytest.raises(JobError, match=rf"{path}: the file does not exist; .* plan the day again"):
        preprocess(settings, made.run_id)
    plan(settings, DAY1, prepare=True)
    assert preprocess(settings, made.run_id) == made.to_preprocess


def test_the_size_of_all_tables_is_compared_and_the_content_of_those_that_are_read(tmp_path: Path) -> None:
    shop = Shop(Lake(tmp_path / "lake"))
    lake, run_id = shop.lake, shop.night(day(1))
    manifest = publication.manifest_of(lake, run_id)
    attribute = lake.root / next(file.path for file in manifest.files if file.table != PRODUCTS)
    assert isinstance(attribute, Path)
    flip(attribute)
    publication.check_tables(lake, manifest, PRODUCTS)
    with pytest.raises(JobError, match=rf"{attribute} is not what was written"):
        publication.check_tables(lake, manifest)
    os.truncate(attribute, 10)
    with pytest.raises(JobError, match=rf"{attribute} has 10 bytes, .* were written"):
        publication.check_tables(lake, manifest, PRODUCTS)
    attribute.unlink()
    with pytest.raises(JobError, match=rf"{attribute} is missing"):
        publication.check_tables(lake, manifest, PRODUCTS)


@pytest.mark.long
@pytest.mark.spark
def test_a_damaged_table_of_the_live_run_is_written_again_as_it_was(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    run_id = lake.current_run() or ""
    manifest, before, of_day = publication.manifest_of(lake, run_id), live_rows(lake), as_of(settings, DAY1)
    files = [lake.root / file.path for file in (*manifest.files, *manifest.history_files)]
    content = [storage.read_bytes(path) for path in files]
    second_day(lake)
    for path in (files[0], files[len(manifest.files) - 1], files[-1], lake.run(run_id) / "manifest.json"):
        assert isinstance(path, Path)
        flip(path)
        if path != files[-1]:  # the next night does not read old changes
            with pytest.raises(JobError, match=rf"{path}.*publish --run {run_id}"):
                steps_to("publish", settings, DAY2)
        publish(settings, run_id)
        assert [storage.read_bytes(path) for path in files] == content  # bit for bit
        assert (live_rows(lake), as_of(settings, DAY1)) == (before, of_day)
    whole_night.night(settings, DAY2)
    assert as_of(settings, DAY2) == live_rows(lake)


@pytest.mark.long
@pytest.mark.spark
def test_a_run_that_was_rolled_back_and_damaged_is_written_again_when_its_day_is_run_again(
    first_night: tuple[Lake, Settings],
) -> None:
    lake, settings = first_night
    first = lake.current_run() or ""
    second_day(lake)
    second = whole_night.night(settings, DAY2)[0].run_id
    expected = live_rows(lake)
    rollback(settings, first)
    path = lake.root / publication.manifest_of(lake, second).files[0].path
    assert isinstance(path, Path)
    flip(path)
    assert whole_night.night(settings, DAY2)[0].run_id == second
    assert live_rows(lake) == expected


@pytest.mark.spark
def test_rows_that_are_lost_from_the_tables_before_do_not_add_up(first_night: tuple[Lake, Settings]) -> None:
    """A table lost rows; the manifest has its new size and SHA-256, but the old number of rows."""
    lake, settings = first_night
    run_id = lake.current_run() or ""
    second_day(lake)
    made = steps_to("tag", settings, DAY2)
    manifest = publication.manifest_of(lake, run_id)
    lossy = max((file for file in manifest.files if file.table != PRODUCTS), key=lambda file: file.rows)
    path = lake.root / lossy.path
    pq.write_table(pq.read_table(path).slice(40), path)
    known = lossy.model_copy(update={"bytes": storage.size(path), "sha256": storage.sha256(path)})
    changed: tuple[PublishedFile, ...] = tuple(known if file == lossy else file for file in manifest.files)
    storage.write_document(lake.run(run_id) / "manifest.json", manifest.model_copy(update={"files": changed}))
    with pytest.raises(LedgerError, match=rf"{lossy.table}: \d+ rows != before {lossy.rows} - replaced"):
        publish(settings, made)
    assert lake.current_run() == run_id


@pytest.mark.spark
def test_the_ledger_counts_the_rows_of_each_attribute(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    expected = second_day(lake)
    before = publication.manifest_of(lake, lake.current_run() or "")
    ledger, _ = whole_night.night(settings, DAY2)
    manifest = lake.read_manifest(ledger.run_id)
    assert manifest is not None
    assert ledger.attribute_rows == manifest.attribute_rows
    assert sum(counts.after for counts in ledger.attribute_rows.values()) == ledger.published_rows == manifest.rows
    assert sum(counts.before for counts in ledger.attribute_rows.values()) == before.rows
    article = ledger.attribute_rows["article_type"]  # one row a product
    changes = (len(expected["changed"]), len(expected["removed"]), len(expected["changed"]) + len(expected["new"]))
    assert (article.replaced, article.removed, article.fresh) == changes
    old = RunManifest.model_validate(manifest.model_dump() | {"attribute_rows": {}})  # one of an earlier version
    assert old.attribute_rows == {}


@pytest.mark.spark
def test_examples_that_lost_a_file_are_made_again_where_they_are_used_again(first_night: tuple[Lake, Settings]) -> None:
    lake, settings = first_night
    path = next(iter(sorted(lake.all_examples.glob("ds=*/run=*/shard=*/*.parquet"))))
    os.truncate(path, 0)
    made = plan(settings, DAY1, retag=True)
    lost = sum(lake.relative(path.parent) in shard.example_paths for shard in made.shards)
    assert (lost, made.to_preprocess > 0) == (0, True)
