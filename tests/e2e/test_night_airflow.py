"""A night by Airflow, over a generated catalog that one night came before. `make test TESTS=tests/e2e`."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from jobs.demo.next_day import next_day
from jobs.demo.two_nights import show
from jobs.importing.import_catalog import import_catalog
from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.orchestration.local_airflow import connection
from schemas.documents import Ledger
from tests.conftest import Night, settings_for

REPOSITORY = Path(__file__).resolve().parents[2]
DAY1, DAY2 = "2026-11-20", "2026-11-21"
PRODUCTS = 100  # as the lake that is copied has
SHARD_ROWS = 1  # so that the few products of the second night are more shards than Airflow maps tasks
MOST_TASKS = 3

pytestmark = [pytest.mark.e2e, pytest.mark.spark, pytest.mark.timeout(1800)]


class Pipeline:
    """Runs commands as a user does, each in its own process, with one lake and one Airflow."""

    def __init__(self, folder: Path, lake: Lake, catalog: Path) -> None:
        self.folder = folder
        self.catalog = catalog  # of the first day
        self.lake = lake
        airflow_home = folder / "airflow"
        airflow_home.mkdir(parents=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "TAGGING_"))}
        self.environment = inherited | {
            "AIRFLOW_HOME": str(airflow_home),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
            "TAGGING_ROOT": str(self.lake.root),
            **connection(settings_for(self.lake.root)),
            "TAGGING_MODEL_CONFIG_NAME": "tiny",
            "TAGGING_SHARD_ROWS": str(SHARD_ROWS),
            "AIRFLOW__CORE__MAX_MAP_LENGTH": str(MOST_TASKS),
            "TAGGING_SPARK_MASTER": "local[2]",
            "TAGGING_PROGRESS": "false",
            "TAGGING_RETRY_DELAY": "0",
        }

    def run(self, *command: str) -> str:
        """Run a command and return what it printed, standard error included."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=REPOSITORY,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout[-6000:]}"
        return done.stdout

    def import_day(self, catalog: Path, ds: str) -> None:
        """Bring a catalog into the lake."""
        import_catalog(settings_for(self.lake.root), catalog, ds, "sample")

    def night(self, ds: str) -> str:
        """Run the DAG for a day."""
        return self.run("airflow", "dags", "test", "nightly_tagging", "--conf", json.dumps({"ds": ds}))

    def ledger(self, ds: str) -> Ledger:
        """Return the one ledger of a day."""
        (page,) = (self.lake.root / "reports" / f"ds={ds}").glob("run=*/ledger.json")
        return storage.from_bytes(page, page.read_bytes(), Ledger)

    def started(self, log: str) -> list[str]:
        """Return the tasks started, in order; of a mapped one with its index."""
        lines = [x.split("[DAG TEST] starting ")[1] for x in log.splitlines() if "[DAG TEST] starting " in x]
        found = [(x.split()[0].removeprefix("task_id="), x.split()[1].removeprefix("map_index=")) for x in lines]
        return [task if index == "-1" else f"{task}[{index}]" for task, index in found]

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Query the live attribute tables, as `t`, with an engine that has no code of ours."""
        files = self.lake.current.read_text().splitlines()
        return duckdb.sql(f"WITH t AS (FROM read_parquet({files!r})) {sql}").fetchall()


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, trained: Lake, night_of_day1: Night) -> Pipeline:
    """A lake with a model and its first night, done in this process, and an Airflow; `make run` has all by Airflow."""
    made = Pipeline(tmp_path_factory.mktemp("e2e"), night_of_day1.after("report"), trained.root.parent / "catalog")
    made.run("airflow", "db", "migrate")
    made.run("airflow", "pools", "set", "gpu", "1", "GPUs that tag")
    return made


def test_nights(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    lake = pipeline.lake

    # the first night tagged everything
    ledger = pipeline.ledger(DAY1)
    first_run = lake.current_run()
    assert first_run == ledger.run_id

    # the second night, by Airflow, tags what changed, and nothing else, in as many mapped tasks as Airflow allows
    day2 = pipeline.folder / "catalog-some-change"
    next_day(pipeline.catalog, day2, "sample", changed=0.05, new=0.03, removed=0.03)
    pipeline.import_day(day2, DAY2)
    started = pipeline.started(pipeline.night(DAY2))
    second = pipeline.ledger(DAY2)
    shards = -(-(second.new + second.changed) // SHARD_ROWS)
    assert shards > MOST_TASKS
    assert started[:7] == ["resolve_day", "wait_for_export", "validate", "plan", "list_shards", "branch", "preprocess"]
    assert sorted(started[7:-2]) == [f"tag[{group}]" for group in range(MOST_TASKS)]
    assert started[-2:] == ["publish", "report"]
    assert second.differences() == []
    assert second.new > 0
    assert second.changed > 0
    assert second.removed > 0
    assert second.unchanged > PRODUCTS / 2
    assert lake.current_run() == second.run_id != first_run
    assert pipeline.query("SELECT count(DISTINCT product_id), count(*) FROM t") == [
        (second.published_products, second.published_rows)
    ]
    assert "</html>" in (lake.reports(second.run_id) / "report.html").read_text()
    assert pipeline.query("SELECT count(*) FROM t WHERE ds = '2026-11-20'")[0][0] > 0
    assert pipeline.query("SELECT count(DISTINCT product_id) FROM t WHERE ds = '2026-11-21'") == [
        (second.new + second.changed,)
    ]

    # what `make run` shows at its end
    show(lake, [ledger, second])
    shown = capsys.readouterr().out
    assert f"{ledger.run_id}  {second.run_id}" in shown
    ten = shown.split("== Ten products")[1].split("\n\n")[1].splitlines()[2:]
    assert sum(not line.startswith(" ") for line in ten) == 10
    query = shown.split("== The tables, read with DuckDB ==")[1].split("\n\n")[1]
    counts = duckdb.connect().execute(query).fetchall()
    assert all(f"{attribute} " in shown for attribute, *_ in counts)
    assert "article_type" in {attribute for attribute, *_ in counts}
    assert shown.count("/report.html") == 2

    # the publication told Airflow, and so whoever waits for the asset
    with contextlib.closing(sqlite3.connect(pipeline.folder / "airflow" / "airflow.db")) as database:
        events = [json.loads(extra) for (extra,) in database.execute("SELECT extra FROM asset_event ORDER BY id")]
    (event,) = events
    assert (event["run_id"], event["rows"]) == (second.run_id, second.published_rows)
    assert Ledger.model_validate(event["ledger"]) == second
    assert Path(event["manifest"]) == lake.run(second.run_id) / "manifest.json"
