"""Days with an export, and the choices in forms: `pytest tests/jobs/lake/test_export_days.py`"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import JobError
from jobs.lake import export_days
from jobs.lake.layout import Lake
from jobs.orchestration import form_options
from jobs.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    lake = Lake(tmp_path)
    for ds in ("2026-11-20", "2026-11-22"):
        lake.raw(ds).mkdir(parents=True)
        (lake.raw(ds) / "_manifest.json").write_text("{}")
    lake.raw("2026-11-21").mkdir()  # half written
    return Settings(root=tmp_path)


def test_days_with_an_export_are_separated_from_those_without(settings: Settings) -> None:
    there, missing = export_days.exported(Lake(settings.root), "2026-11-19", "2026-11-22")
    assert there == ["2026-11-20", "2026-11-22"]
    assert missing == ["2026-11-19", "2026-11-21"]
    assert export_days.newest(Lake(settings.root)) == "2026-11-22"
    assert export_days.newest(Lake(settings.root), "2026-11-21") == "2026-11-20"


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        ("2026-11-22", "2026-11-20", "the first day, 2026-11-22, is after the last, 2026-11-20"),
        ("2026-11-2", "2026-11-20", "is not a day"),
        ("2020-01-01", "2026-11-20", "at most 1,000 at a time"),
        ("2026-11-21", "2026-11-21", "the lake has 2, from 2026-11-20 to 2026-11-22. Import it"),
    ],
)
def test_wrong_ranges_say_what_is_wrong(settings: Settings, first: str, last: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        export_days.exported(Lake(settings.root), first, last)


def test_an_empty_lake_has_no_newest_day(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no day has an export; import one"):
        export_days.newest(Lake(tmp_path))


def test_forms_open_whatever_is_in_the_lake(tmp_path: Path) -> None:
    settings = Settings(root=tmp_path, taxonomy="fashion")
    lake = Lake(tmp_path)
    assert form_options.model_versions(settings) == []
    assert "sleeve_length" in form_options.attributes(settings)
    for name in ("20261119-0123abcd", "20261120-0123abcd", ".unfinished-x", "junk"):
        (lake.models / name).mkdir(parents=True)
    assert form_options.model_versions(settings) == ["20261120-0123abcd", "20261119-0123abcd"]
    lake.champion.write_text("20261120-0123abcd\n")
    assert form_options.attributes(settings) == []  # its taxonomy is gone
    (lake.models / "20261120-0123abcd" / "taxonomy.yaml").write_text("attributes: nonsense")
    assert form_options.attributes(settings) == []


def test_listing_days_imports_nothing_heavy() -> None:
    code = (
        "import sys, jobs.lake.export_days, jobs.orchestration.form_options, jobs.orchestration.alerts;"
        "print({'torch', 'pyspark', 'great_expectations', 'numpy', 'pandas', 'pyarrow'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
