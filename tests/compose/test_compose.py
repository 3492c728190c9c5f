"""The running stack of docker-compose.yml: nights started from the UI, two tag workers, one of them killed. `make test-compose`.

The tests start the stack with `make up`, unless TAGGING_STACK_IS_UP is set, and leave it running. They read the published
tables in a container, as a user does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from jobs.compose.prepare_services import DAY, PRODUCTS
from jobs.orchestration.airflow_api import AirflowApi
from tests.ui.conftest import BROWSER_FLAGS, CHROMIUM

REPOSITORY = Path(__file__).resolve().parents[2]
NIGHT = "nightly_tagging"
pytestmark = [
    pytest.mark.skipif(shutil.which("docker") is None, reason="needs Docker"),
    pytest.mark.timeout(3600),
]
# Prints the counts of the live tables as JSON: rows, distinct keys and products. Runs in a container.
COUNTS = """
import json, duckdb
from jobs.lake import duckdb_sql
from jobs.lake.layout import Lake
from jobs.settings import Settings
lake = Lake(Settings().root)
with duckdb.connect() as db:
    duckdb_sql.register_storage(db, lake.root)
    live = db.read_parquet(lake.current_lines())
    [(rows, keys, products)] = db.sql(
        "select count(*), count(distinct (product_id, attribute, catalog_value, model_value)), count(distinct product_id) from live"
    ).fetchall()
print(json.dumps({"run": lake.current_run(), "rows": rows, "keys": keys, "products": products}))
"""


def compose(*arguments: str, check: bool = True) -> str:
    command = ["docker", "compose"] if _has_plugin() else ["docker-compose"]
    done = subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _has_plugin() -> bool:
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


def secrets() -> dict[str, str]:
    lines = (REPOSITORY / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def api() -> AirflowApi:
    """The stack's Airflow, once it answers."""
    if not os.environ.get("TAGGING_STACK_IS_UP"):
        subprocess.run(["make", "up"], cwd=REPOSITORY, check=True)
    client = AirflowApi(
        f"http://127.0.0.1:{os.environ.get('UI_PORT', '8080')}", "admin", secrets()["AIRFLOW_ADMIN_PASSWORD"]
    )
    try:
        client.wait_for(NIGHT, seconds=1500, every=5)
    except TimeoutError as error:
        raise AssertionError(compose("ps") + compose("logs", "--tail", "50", "init")) from error
    return client


@pytest.fixture(scope="module")
def page(api: AirflowApi) -> Any:
    assert CHROMIUM, "needs Chromium: apt-get install -y chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS)
        shown = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-GB").new_page()
        shown.goto(api.url)
        shown.locator("input[name=username]").fill(api.user)
        shown.locator("input[name=password]").fill(api.password)
        shown.locator("input[type=submit]").click()
        expect(shown.get_by_role("link", name="Dags", exact=True).first).to_be_visible(timeout=60_000)
        yield shown
        browser.close()


OURS = ("api-server", "scheduler", "dag-processor", "triggerer", "worker", "worker-gpu", "spark-master", "spark-worker")
SECRETS_OF = {
    "spark-master": {"SPARK_SECRET"},
    "spark-worker": {"SPARK_SECRET", "S3_SPARK_SECRET"},
    "worker": {"SPARK_SECRET", "S3_TAGGER_SECRET", "REDIS_PASSWORD"},
    "worker-gpu": {"S3_TAGGER_SECRET", "REDIS_PASSWORD"},
}
# The environment and arguments of every process in the container, and all readable files outside the image.
READABLE = (
    "{ cat /proc/*/environ /proc/*/cmdline; find /tmp /work /run /airflow -type f -size -200k -exec cat {} +; } 2>/dev/null "
    r"| tr -cd '\12\40-\176'"
)


def inside(service: str, script: str, *, check: bool = True) -> str:
    return compose("exec", "-T", service, "sh", "-c", script, check=check)


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("service", SECRETS_OF)
def test_a_container_holds_only_its_own_secrets(service: str) -> None:
    seen = inside(service, READABLE, check=False)
    assert {name for name, value in secrets().items() if value in seen} == SECRETS_OF[service]


@pytest.mark.usefixtures("api")
@pytest.mark.parametrize("service", OURS)
def test_a_container_has_few_rights(service: str) -> None:
    status = dict(
        line.split(":\t", 1) for line in inside(service, "cat /proc/self/status").splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == ["1000"] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    for folder in ("/app", "/opt/venv", "/usr/local/bin", "/home/tagger", "/etc"):
        assert "Read-only" in inside(service, f"touch {folder}/x 2>&1; true"), folder


@pytest.mark.usefixtures("api")
def test_sparks_workers_reach_neither_the_database_nor_airflow() -> None:
    for host in ("postgres", "redis", "api-server"):
        output = inside("spark-worker", f"python -c \"import socket; socket.gethostbyname('{host}')\" 2>&1; true")
        assert "gaierror" in output, host


@pytest.mark.usefixtures("api")
def test_spark_refuses_drivers_without_its_secret() -> None:
    for options in ("", '.config("spark.authenticate", "true").config("spark.authenticate.secret", "guessed")'):
        code = f"""
from pyspark.sql import SparkSession
spark = SparkSession.builder.master("spark://spark-master:7077"){options}.getOrCreate()
print("sum", spark.range(10).count())
"""
        output = inside(
            "spark-worker",
            f"mkdir -p /tmp/none; cd /tmp; SPARK_CONF_DIR=/tmp/none timeout 120 python - 2>&1 <<'END'\n{code}\nEND\ntrue",
        )
        assert "sum 10" not in output
        refusals = ("All masters are unresponsive", "SaslException", "Mismatched response")
        assert any(refusal in output for refusal in refusals), output[-2000:]


def published() -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(compose("exec", "-T", "worker", "python", "-c", COUNTS).splitlines()[-1])
    return counts


def start(page: Page, api: AirflowApi) -> str:
    """Start a night from the UI that tags all products of the sample catalog again; return its run."""
    page.goto(f"{api.url}/dags/{NIGHT}")
    page.get_by_role("button", name="Trigger").first.click(timeout=60_000)
    dialog = page.get_by_role("dialog")
    dialog.locator("input[name=element_ds]").fill(DAY)
    dialog.locator("input[name=element_retag]").locator("xpath=..").click()
    before = {run["dag_run_id"] for run in api.call(f"/dags/{NIGHT}/dagRuns?limit=100")["dag_runs"]}
    dialog.get_by_role("button", name="Trigger").last.click()
    expect(dialog).to_be_hidden(timeout=60_000)
    page.goto("about:blank")
    deadline = time.monotonic() + 60
    while True:
        runs = api.call(f"/dags/{NIGHT}/dagRuns?limit=100")["dag_runs"]
        if made := {run["dag_run_id"] for run in runs if run["run_type"] == "manual"} - before:
            return str(made.pop())
        assert time.monotonic() < deadline
        time.sleep(1)


def test_a_night_from_the_ui_with_two_tag_workers(api: AirflowApi, page: Page) -> None:
    run = start(page, api)
    assert api.wait(NIGHT, run, 1800) == "success", [
        (t["task_id"], t["map_index"], t["state"]) for t in api.tasks(NIGHT, run)
    ]
    shards = [task for task in api.tasks(NIGHT, run) if task["task_id"] == "tag"]
    assert len(shards) >= 4
    assert len({shard["hostname"] for shard in shards}) == 2, "both workers took shards"
    counts = published()
    assert counts["rows"] == counts["keys"]
    assert counts["products"] >= PRODUCTS
    if os.environ.get("TAGGING_KEEP_SCREENSHOTS"):
        page.goto(f"{api.url}/dags/{NIGHT}/runs/{run.replace('+', '%2B')}")
        page.wait_for_timeout(5000)
        page.screenshot(path=REPOSITORY / "docs" / "images" / "compose-night.png")


def test_a_tag_worker_killed_in_the_middle(api: AirflowApi, page: Page) -> None:
    """The other worker finishes the night, and no row is doubled."""
    before = published()
    run = start(page, api)
    deadline = time.monotonic() + 900
    while not (
        running := [
            t for t in api.tasks(NIGHT, run) if t["task_id"] == "tag" and t["state"] == "running" and t["hostname"]
        ]
    ):
        assert time.monotonic() < deadline, "no shard was ever running"
        time.sleep(0.3)
    subprocess.run(["docker", "kill", running[0]["hostname"]], check=True, capture_output=True)
    assert api.wait(NIGHT, run, 3000) == "success", [
        (t["task_id"], t["map_index"], t["state"]) for t in api.tasks(NIGHT, run)
    ]
    after = published()
    assert after["run"] != before["run"]
    assert (after["rows"], after["keys"], after["products"]) == (before["rows"], before["keys"], before["products"])


@pytest.mark.parametrize(
    ("dag", "conf"),
    [
        ("backfill_tagging", {"first_day": DAY, "last_day": DAY, "dry_run": True}),
        ("backfill_tagging", {"first_day": DAY, "last_day": DAY, "dry_run": False, "attributes": ["colour"]}),
        ("train_model", {"ds": DAY}),
        ("maintenance", {"days": 0, "keep": 1, "delete": True}),
    ],
)
def test_the_other_dags(api: AirflowApi, dag: str, conf: dict[str, object]) -> None:
    """The lake is on S3 and Spark on its cluster. The published tables keep their counts, and no row is doubled."""
    before = published()
    api.wait_for(dag)
    api.switch_on(NIGHT)
    api.switch_on(dag)
    run = api.trigger(dag, conf)
    assert api.wait(dag, run, 3000) == "success", [(t["task_id"], t["state"]) for t in api.tasks(dag, run)]
    after = published()
    assert (after["rows"], after["keys"], after["products"]) == (before["rows"], before["keys"], before["products"])
