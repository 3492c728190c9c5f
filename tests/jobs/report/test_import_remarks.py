"""Remarks of the import on the page of a night. `make test TESTS=tests/jobs/report/test_import_remarks.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.report.gather import read_import_remarks
from schemas.documents import RawManifest

DS = "2026-11-20"


def test_failed_downloads_are_counted_by_host_and_reason_after_the_other_remarks(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    lake.raw(DS).mkdir(parents=True)
    failures = {"cdn.example": {"not found (404)": 3, "timed out": 7}, "<b>.example": {"host_not_allowed": 5}}
    manifest = RawManifest(
        ds=DS, source="export", files=(), rows=9, notes={"short rows": 2}, picture_failures=failures, created_at=datetime.now(UTC)
    )  # fmt: skip
    storage.write_document(lake.raw(DS) / "_manifest.json", manifest)
    assert list(read_import_remarks(lake, DS).items()) == [
        ("short rows", 2),
        ("pictures of cdn.example that were not downloaded: timed out", 7),
        ("pictures of <b>.example that were not downloaded: host_not_allowed", 5),
        ("pictures of cdn.example that were not downloaded: not found (404)", 3),
    ]


def test_a_day_without_a_manifest_has_no_remarks(tmp_path: Path) -> None:
    assert read_import_remarks(Lake(tmp_path), DS) == {}
