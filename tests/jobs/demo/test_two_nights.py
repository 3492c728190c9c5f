"""Housekeeping of the demo; tests/e2e checks what it shows. `make test TESTS=tests/jobs/demo/test_two_nights.py`."""

from __future__ import annotations

import os
from pathlib import Path

import duckdb
import pytest

from jobs.demo.two_nights import Console, _environment, _start_clean, _worth_showing, demo, show
from jobs.errors import JobError
from jobs.lake import storage
from jobs.settings import Settings
from tests.jobs.report.test_nightly_report import FIRST, SECOND, Product, Row, Shop


def test_a_folder_of_somebody_else_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(JobError, match="has files that no demo wrote"):
        demo(Settings(), tmp_path, None, "sample")
    assert (tmp_path / "thesis.txt").exists()


def test_a_new_run_starts_clean(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _start_clean(folder)
    (folder / "lake").mkdir()
    _start_clean(folder)
    assert [path.name for path in folder.iterdir()] == [".demo"]


def test_a_missing_catalog_is_reported_before_anything_is_removed(tmp_path: Path) -> None:
    _start_clean(tmp_path / "run")
    (tmp_path / "run" / "lake").mkdir()
    with pytest.raises(JobError, match="the folder does not exist"):
        demo(Settings(), tmp_path / "run", tmp_path / "nowhere", "fashion-products")
    assert (tmp_path / "run" / "lake").exists()


def test_given_settings_apply_except_for_the_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGGING_MODEL_CONFIG_NAME", "tiny")
    monkeypatch.setenv("TAGGING_ROOT", str(tmp_path / "production"))
    options = {"spark.executor.cores": "4", "spark.jars": "a.jar,b.jar"}
    given = Settings(picture_roots=(tmp_path / "a", tmp_path / "b"), spark_options=options)
    found = _environment(given, tmp_path, real=True)
    assert Settings(spark_options=found["TAGGING_SPARK_OPTIONS"]).spark_options == options  # type: ignore[arg-type]
    assert found["TAGGING_MODEL_CONFIG_NAME"] == "tiny"
    assert found["TAGGING_TAXONOMY"] == "fashion"
    assert found["TAGGING_ROOT"] == str(tmp_path / "lake")
    assert found["TAGGING_PICTURE_ROOTS"] == f"{tmp_path}/a,{tmp_path}/b"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("22:31:30 INFO plan: started", "22:31:30 INFO plan: started"),
        ("error: no such day", "error: no such day"),
        ("26/11/23 22:27:44 WARN NativeCodeLoader: Unable to load native-hadoop library", None),
        (
            "2026-11-23T22:36:36Z [info     ] python -m jobs plan --ds 2026-11-20 "
            "[airflow.task.operators.unusual_prefix_7_nightly_tagging.JobOperator] loc=nightly_tagging.py:59",
            "[task] python -m jobs plan --ds 2026-11-20",
        ),
        (
            "2026-11-23T22:36:38Z [info     ] 22:36:38 INFO plan: started    "
            "[airflow.task.operators.unusual_prefix_7_nightly_tagging.JobOperator] loc=nightly_tagging.py:78",
            "  22:36:38 INFO plan: started",
        ),
        ("2026-11-23T22:36:38Z [info     ] Marking run <DagRun nightly_tagging> failed [airflow]", "[run] failed"),
    ],
)
def test_the_console_shows_what_helps(line: str, shown: str | None) -> None:
    assert _worth_showing(line) == shown


def test_what_is_shown_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten products though most are held and the model adds to few; titles do nothing to the terminal; the query runs."""
    shop = Shop(tmp_path / "bob's (1) lake")
    products = [Product(f"p{i:02}", [Row("colour", "Red" if i < 4 else None, "Red", 0.85)]) for i in range(40)]
    titles = [{"product_id": f"p{i:02}", "title": f"No. {i:02}\x1b[2J\r\n\u202eevil"} for i in range(12)]
    first = shop.night(FIRST, products)
    second = shop.night(SECOND, products, tagged=["p00"], parent=FIRST, valid=titles, unchanged=11, held=28)
    storage.write_document(shop.lake.valid(second.ds) / "current.json", shop.lake.read_plan(SECOND).validation)
    show(shop.lake, [first, second])
    printed = capsys.readouterr().out
    assert all(character.isprintable() for character in printed.replace("\n", ""))
    ten = printed.split("== Ten products")[1].split("==")[1].splitlines()
    lines = [line for line in ten if line.startswith("No. ")]
    assert len(lines) == 10
    assert all("<U+001B>[2J<␍><⏎><U+202E>evil" in line for line in lines)
    query = printed.split("== The tables, read with DuckDB ==")[1].split("attribute  products")[0]
    assert duckdb.connect().execute(query).fetchall() == [("colour", 40, 4, 36, 0)]


def test_a_failed_command_names_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(tmp_path / "demo.log", dict(os.environ))
    with pytest.raises(JobError, match=r"`python -m jobs validate --ds no-day` failed with exit code 2.*demo\.log"):
        console.job("validate", "--ds", "no-day")
    assert "error: --ds 'no-day' is not a day" in capsys.readouterr().out
    assert "error: --ds 'no-day' is not a day" in (tmp_path / "demo.log").read_text()
