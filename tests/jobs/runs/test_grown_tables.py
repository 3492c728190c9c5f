"""New columns of tables: a lake with files that lack one still works.

Run with ``make test TESTS=tests/jobs/runs/test_grown_tables.py``.
"""

from __future__ import annotations

import hashlib

import duckdb
import pyarrow.parquet as pq
import pytest

from jobs.demo.next_day import next_day
from jobs.importing.import_catalog import import_catalog
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.runs.whole_night import night
from jobs.upkeep.published_tables import as_of, reader_lines, rollback
from schemas.documents import PublishedFile
from schemas.tables import ATTRIBUTES
from tests.conftest import DAY1, DAY2, Night, settings_for

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("spark_session")]

YOUNG = "text_weight"  # the column that an earlier version did not have


def without(lake: Lake, file: PublishedFile) -> PublishedFile:
    """Write a file of attributes as an earlier version did, and return its description."""
    path = lake.root / file.path
    table = pq.read_table(path, partitioning=None)
    if YOUNG not in table.column_names:
        return file
    pq.write_table(table.drop_columns([YOUNG]), path, write_page_checksum=True)
    data = path.read_bytes()
    return file.model_copy(update={"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})


@pytest.fixture
def old(night_of_day1: Night) -> Lake:
    """A lake with one night of a version that had one column less."""
    lake = night_of_day1.after("report")
    manifest = lake.read_manifest(night_of_day1.run_id)
    assert manifest is not None
    files = {
        name: tuple(without(lake, file) for file in getattr(manifest, name)) for name in ("files", "history_files")
    }
    storage.write_document(lake.run(manifest.run_id) / "manifest.json", manifest.model_copy(update=files))
    return lake


def columns(lake: Lake) -> set[str]:
    return {name for line in lake.current_lines() for name in pq.read_schema(line).names}


def weights(lake: Lake, ds: str) -> set[tuple[str, bool]]:
    """Return the days of the rows in the tables of `ds`, and whether any row has the new column."""
    with duckdb.connect() as connection:
        found = as_of(connection, settings_for(lake.root), ds)
        assert set(found.columns) >= set(ATTRIBUTES.names)
        return set(found.aggregate(f"ds, bool_or({YOUNG} is not null)").fetchall())


def test_a_lake_whose_tables_lack_a_column_is_read_tagged_reported_and_rolled_back(old: Lake, trained: Lake) -> None:
    settings = settings_for(old.root)
    first = old.current_run()
    assert YOUNG not in columns(old)
    assert weights(old, DAY1) == {(DAY1, False)}

    catalog = old.root.parent / "next"
    next_day(trained.root.parent / "catalog", catalog, "sample", changed=0.1, new=0.05, removed=0.02)
    import_catalog(settings, catalog, DAY2, "sample")
    ledger, page = night(settings, DAY2)
    assert ledger.differences() == []
    assert ledger.unchanged > 0
    assert "</html>" in page.read_text()
    assert YOUNG in columns(old)
    assert weights(old, DAY1) == {(DAY1, False)}
    assert weights(old, DAY2) == {(DAY1, False), (DAY2, True)}
    with duckdb.connect() as connection:
        statement, query = reader_lines(old)["DuckDB"].split(";")[:2]
        connection.execute(statement)
        assert len(connection.sql(query).fetchall()) == ledger.published_rows

    rollback(settings, first or "")
    assert old.current_run() == first
    ledger, _ = night(settings, DAY2)
    assert ledger.differences() == []
    assert weights(old, DAY2) == {(DAY1, False), (DAY2, True)}
