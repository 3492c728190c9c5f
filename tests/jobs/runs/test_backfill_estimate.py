"""The estimate of a backfill. Run with ``make test TESTS=tests/jobs/runs/test_backfill_estimate.py``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.nightly.plan import plan
from jobs.runs.backfill_estimate import Day, Estimate, cost, estimate, rates
from jobs.settings import Settings
from schemas.documents import Plan, Shard, StepMetrics, Validation
from tests.conftest import DAY1, DAY2, DAY3, DAY4, settings_for, write_raw
from tests.jobs.runs.test_whole_night import second_day

NOW = datetime(2026, 11, 21, 2, tzinfo=UTC)


def published(lake: Lake) -> dict[Path, int]:
    """Return the files that only steps after `plan` may write, except locks, with their times."""
    folders = ("predictions", "attribute_tables", "attribute_history", "examples")
    files = [path for name in folders for path in (lake.root / name).rglob("[!.]*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.spark
def test_counts_of_each_day_and_nothing_published(
    first_night: tuple[Lake, Settings], caplog: pytest.LogCaptureFixture
) -> None:
    lake, settings = first_night
    second_day(lake)
    write_raw(lake, DAY4, [])  # an export without products breaks a critical rule
    before = published(lake)
    caplog.set_level("INFO", "jobs.runs.backfill_estimate")
    root = ["--root", str(lake.root)]
    done = CliRunner().invoke(app, [*root, "estimate", "--first", DAY1, "--last", DAY4, "--retag"])
    assert done.exception is None, done.exception
    assert published(lake) == before
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    first, second, third, fourth = result.pop("days")
    assert result == {"first": DAY1, "last": DAY4, "products": 197, "seconds": None}
    counts = (
        "new",
        "changed",
        "model_changed",
        "unchanged",
        "waiting",
        "removed",
        "held",
        "held_pictures",
        "to_preprocess",
        "to_tag",
    )
    assert [first[name] for name in counts] == [0, 0, 100, 0, 0, 0, 0, 0, 0, 100]
    assert [second[name] for name in counts] == [2, 3, 92, 0, 0, 2, 3, 0, 5, 97]
    # Every step that the first day needs was measured, but no finished run had anything to preprocess.
    assert 0 < first["seconds"] < 60
    assert second["seconds"] is None
    assert third == {"ds": DAY3, "why_not": "missing: the day has no export"}
    assert fourth == {"ds": DAY4, "why_not": "refused: it breaks critical rules"}
    assert f"|{DAY2}|2|3|92|0|2|3|0|5|97|unknown|" in caplog.text.replace(" ", "")
    # A backfill reuses the plan.
    assert plan(settings, DAY1, retag=True) == lake.read_plan(first["run_id"])


def test_a_wrong_range(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with pytest.raises(JobError, match=f"the first day, {DAY2}, is after the last, {DAY1}"):
        estimate(settings, DAY2, DAY1)
    with pytest.raises(JobError, match=f"no day from {DAY1} to {DAY2} has an export"):
        estimate(settings, DAY1, DAY2)


def measured(lake: Lake, ds: str, name: str, rows: int, seconds: float, **details: str) -> None:
    """Write the metrics of a step of a finished run."""
    folder = lake.reports(f"{ds}-0123abcd")
    step = name.split("-")[0]
    metrics = StepMetrics(
        step=step, seconds=seconds, rows=rows, peak_rss_bytes=1, started_at=NOW, details=dict(details)
    )
    storage.write_document(folder / "steps" / f"{name}.json", metrics)
    storage.write_bytes(folder / "ledger.json", b"")


def made(**counts: int) -> Plan:
    """Return a plan of 1,000 products, with 300 of them in two shards."""
    validation = Validation(
        ds=DAY1, version="v", passed=True, failures=(), raw=1000, unparsable=0, quarantined=0, superseded=0, valid=1000,
        reasons={}, valid_path="", quarantine_path="", data_docs_path="", created_at=NOW,
    )  # fmt: skip
    shards = (Shard(id=0, rows=200, example_paths=()), Shard(id=1, rows=100, example_paths=()))
    known: dict[str, Any] = {"new": 0, "changed": 0, "unchanged": 700, "removed": 0, "held": 0, "to_preprocess": 0}
    return Plan(
        run_id="2026-11-20-89abcdef", ds=DAY1, base_run=None, backfill=False, prepare_only=False, model_version="mine",
        taxonomy_path="", taxonomy_fingerprint="", picture_height=1, picture_width=1, validation=validation,
        shards=shards, created_at=NOW, **({"model_changed": 300} | known | counts),
    )  # fmt: skip


def test_seconds_are_those_of_the_last_runs(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert cost(made(), rates(lake, "mine")) is None
    measured(lake, DAY1, "plan", 1000, 4.0)
    measured(lake, DAY1, "tag-00000", 100, 20.0, model_version="another")
    measured(lake, DAY1, "publish", 100, 7.0)
    # One run does not show how publishing grows with the products, so its time counts as it is.
    assert cost(made(), rates(lake, "mine")) == pytest.approx(4 + 300 * 0.2 + 7)
    measured(lake, DAY2, "plan", 2000, 5.0)  # 3 s and one for each 1,000
    measured(lake, DAY2, "tag-00000", 100, 10.0, model_version="mine")
    measured(lake, DAY2, "publish", 200, 8.0)  # 6 s and one for each 100
    assert cost(made(), rates(lake, "mine")) == pytest.approx(4 + 300 * 0.1 + 9)
    measured(lake, DAY2, "tag-00001", 200, 18.0, model_version="mine")  # 2 s a shard, and 8 for each 100
    assert cost(made(), rates(lake, "mine")) == pytest.approx(4 + 18 + 10 + 9)
    with_pictures = made(new=50, model_changed=250, to_preprocess=50)
    assert cost(with_pictures, rates(lake, "mine")) is None
    measured(lake, DAY2, "preprocess", 10, 1.0)
    assert cost(with_pictures, rates(lake, "mine")) == pytest.approx(4 + 18 + 10 + 9 + 5)
    (lake.reports(f"{DAY2}-0123abcd") / "ledger.json").unlink()  # it is not finished
    assert cost(made(), rates(lake, "mine")) == pytest.approx(4 + 300 * 0.2 + 7)


def test_seconds_of_all_days_are_known_where_those_of_each_are() -> None:
    days = (Day(DAY1, made(), 3.0), Day(DAY2, why_not="missing"), Day(DAY3, made(), 5.0))
    known = Estimate(DAY1, DAY3, days)
    assert (known.seconds, known.total("to_tag")) == (8.0, 600)
    assert known.table().splitlines()[-1].replace(" ", "") == "|all|0|0|600|0|0|0|0|0|600|8.0s|"
    assert len({len(line) for line in known.table().splitlines() if "missing" not in line}) == 1
    assert Estimate(DAY1, DAY3, (*days[:2], Day(DAY3, made()))).seconds is None
