"""Examples without a night: `pytest tests/jobs/runs/test_prepare_examples.py`"""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as pads
import pytest

from jobs.demo.sample_catalog import generate
from jobs.importing.prepare_export import prepare_export
from jobs.lake.layout import Lake
from jobs.runs.prepare_examples import prepare
from tests.conftest import DAY1, settings_for

pytestmark = [pytest.mark.spark, pytest.mark.usefixtures("spark_session")]


@pytest.mark.long
def test_a_changed_export_is_used_and_existing_examples_are_kept(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "lake")
    lake = Lake(settings.root)

    def examples() -> int:
        return int(pads.dataset(lake.root / "examples", format="parquet").count_rows())

    generate(tmp_path / "few", products=20, seed=1, dirty=False)
    generate(tmp_path / "many", products=30, seed=1, dirty=False)
    prepare_export(settings, tmp_path / "few", DAY1, "sample")
    assert examples() == lake.raw_rows(DAY1) == 20
    assert prepare(settings, DAY1) == 20  # those of this day, which are there
    assert examples() == 20
    prepare_export(settings, tmp_path / "many", DAY1, "sample")
    assert lake.raw_rows(DAY1) == 30
    table = pads.dataset(lake.root / "examples", format="parquet").to_table(columns=["product_id"])
    assert len(set(table.column("product_id").to_pylist())) == 30
