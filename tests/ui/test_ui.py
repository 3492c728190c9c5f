"""Airflow in a real browser, as its users see it. The tests are one story and run in order: `make test-ui`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from urllib.parse import quote

import duckdb
import psutil
import pytest
from playwright.sync_api import expect

from jobs.demo.sample_catalog import generate
from jobs.importing.import_catalog import import_catalog
from jobs.lake.layout import Lake
from jobs.runs.whole_night import night
from jobs.upkeep import published_tables
from tests.conftest import settings_for
from tests.ui.conftest import DAYS, WAIT, Airflow, Ui, until

pytestmark = [pytest.mark.spark, pytest.mark.timeout(1800)]

NIGHT, BACKFILL, TRAINING = "nightly_tagging", "backfill_tagging", "train_model"
RUNS: dict[str, str] = {}  # purpose -> run, for later tests


def page_of(dag: str, run: str, rest: str = "") -> str:
    return f"/dags/{dag}/runs/{quote(run, safe='')}{rest}"


def test_the_list_has_all_dags_and_no_import_error(ui: Ui) -> None:
    ui.open("/dags")
    for dag in (NIGHT, BACKFILL, TRAINING, "maintenance"):
        expect(ui.page.get_by_role("link", name=dag, exact=True)).to_be_visible()
    expect(ui.page.get_by_text("4 Dags")).to_be_visible()
    expect(ui.page.get_by_text("Import Error")).to_have_count(0)
    assert ui.airflow.api("/importErrors")["total_entries"] == 0
    ui.picture("dags")


def test_the_night_is_triggered_and_turns_green(ui: Ui) -> None:
    dialog = ui.form(NIGHT)
    dialog.locator("input[name=element_ds]").fill(DAYS[0])
    ui.picture("night-form")
    RUNS["first"] = run = ui.submit(dialog, NIGHT)  # the form unpauses the DAG
    ui.airflow.wait(NIGHT, run)
    ui.open(page_of(NIGHT, run))
    expect(ui.page.get_by_text("Success").first).to_be_visible()
    ui.picture("night-green")
    (ledger,) = ui.airflow.ledgers(DAYS[0])
    assert ledger.differences() == []
    assert ui.airflow.lake.current_run() == ledger.run_id


def test_the_scheduled_night_waits_for_its_export_without_a_worker(ui: Ui) -> None:
    """Unpausing the DAG started the night of yesterday, which has no export."""
    (waiting,) = (run for run in ui.airflow.runs(NIGHT) if run["run_type"] == "scheduled")
    run = waiting["dag_run_id"]
    until(
        lambda: ui.airflow.task(NIGHT, run, "wait_for_export")["state"] == "deferred", "the sensor to be deferred", 120
    )
    ui.open(page_of(NIGHT, run, "/tasks/wait_for_export"))
    expect(ui.page.get_by_text("Deferred").first).to_be_visible()
    ui.picture("night-waits", height=355)


def test_a_late_night_sends_an_alert(ui: Ui) -> None:
    """The waiting night is late two minutes after the end of its data interval."""
    (waiting,) = (run for run in ui.airflow.runs(NIGHT) if run["run_type"] == "scheduled")
    day = waiting["data_interval_start"][:10]
    until(lambda: bool(ui.airflow.alerts("late")), "the alert", 300)
    assert [alert.splitlines()[0] for alert in ui.airflow.alerts("late")] == [f"{NIGHT}, catalog of {day}: late"]


def test_a_mapped_shard_and_its_log(ui: Ui) -> None:
    run = RUNS["first"]
    shards = [t for t in ui.airflow.tasks(NIGHT, run) if t["task_id"] == "tag"]
    assert len(shards) > 1
    ui.open(page_of(NIGHT, run, "/tasks/tag/mapped/0"))
    expect(ui.page.get_by_text("tag [shard 0]").first).to_be_visible()
    expect(ui.page.get_by_text(re.compile(r"tag-00000: done in .* rows/s")).first).to_be_visible()
    ui.picture("shard-log")
    ui.open(page_of(NIGHT, run, "/tasks/validate"))
    expect(ui.page.get_by_text(re.compile(r"validate: .* raw = .* unparsable")).first).to_be_visible()
    for noise in ("incubator", "log4j", "NativeCodeLoader", "Setting default log level"):
        expect(ui.page.get_by_text(noise)).to_have_count(0)


def test_the_ledger_and_the_report_are_on_the_tasks_pages(ui: Ui) -> None:
    run = RUNS["first"]
    (ledger,) = ui.airflow.ledgers(DAYS[0])
    ui.open(page_of(NIGHT, run, "/tasks/publish"))
    expect(
        ui.page.get_by_text(re.compile(f"{ledger.raw} raw lines = {ledger.unparsable} unparsable")).first
    ).to_be_visible()
    ui.picture("ledger-log")
    ui.open(page_of(NIGHT, run, "/tasks/publish/xcom"))
    expect(ui.page.get_by_text("return_value")).to_be_visible()
    ui.open(page_of(NIGHT, run, "/tasks/report/details"))
    link = ui.page.get_by_role("link", name="Report", exact=True).or_(
        ui.page.get_by_role("button", name="Report", exact=True)
    )
    expect(link.first).to_be_visible()
    ui.picture("report-button")
    links = ui.airflow.api(f"{page_of(NIGHT, run).replace('/runs/', '/dagRuns/')}/taskInstances/report/links")
    address = links["extra_links"]["Report"]
    ui.open(address)
    expect(ui.page.get_by_text(ledger.run_id).first).to_be_visible()
    ui.picture("report")


def test_a_wrong_date_range_is_reported_at_once(ui: Ui) -> None:
    dialog = ui.form(BACKFILL)
    dialog.locator("input[name=element_first_day]").fill(DAYS[2])
    dialog.locator("input[name=element_last_day]").fill(DAYS[0])
    run = ui.submit(dialog, BACKFILL)
    ui.airflow.wait(BACKFILL, run, "failed", 180)
    ui.open(page_of(BACKFILL, run, "/tasks/check_form"))
    expect(ui.page.get_by_text(f"the first day, {DAYS[2]}, is after the last, {DAYS[0]}").first).to_be_visible()
    ui.picture("backfill-wrong-range", height=395)


def test_a_dry_run_of_a_backfill_says_what_it_would_cost(ui: Ui) -> None:
    before = ui.airflow.lake.current.read_bytes()
    dialog = ui.form(BACKFILL)
    dialog.locator("input[name=element_first_day]").fill(DAYS[0])
    dialog.locator("input[name=element_last_day]").fill(DAYS[1])
    dialog.get_by_role("combobox").first.fill("colour")
    ui.page.keyboard.press("Enter")
    expect(dialog.get_by_text("colour", exact=True)).to_be_visible()
    ui.picture("backfill-form")
    run = ui.submit(dialog, BACKFILL)
    ui.airflow.wait(BACKFILL, run)
    assert ui.airflow.task(BACKFILL, run, "night")["state"] == "skipped"
    ui.open(page_of(BACKFILL, run, "/tasks/estimate"))
    expect(ui.page.get_by_text(DAYS[1]).first).to_be_visible()
    ui.picture("backfill-estimate")
    assert ui.airflow.lake.current.read_bytes() == before


def test_a_backfill_from_the_form_runs_its_nights(ui: Ui) -> None:
    dialog = ui.form(BACKFILL)
    dialog.locator("input[name=element_first_day]").fill(DAYS[0])
    dialog.locator("input[name=element_last_day]").fill(DAYS[1])
    dialog.locator("input[name=element_retag]").locator("xpath=..").click()
    dialog.locator("input[name=element_dry_run]").locator("xpath=..").click()
    run = ui.submit(dialog, BACKFILL)
    ui.airflow.wait(BACKFILL, run)
    ui.open(page_of(BACKFILL, run, "/tasks/night/mapped/0"))
    ui.picture("backfill-nights")
    assert [ledger.model_changed > 0 for ledger in ui.airflow.ledgers(DAYS[0])] == [False, True]
    (second,) = ui.airflow.ledgers(DAYS[1])
    assert ui.airflow.lake.current_run() == second.run_id


def test_a_native_backfill_of_three_days(ui: Ui) -> None:
    newest = ui.airflow.lake.current_run()
    dialog = ui.form(NIGHT)
    dialog.get_by_text("Run this Dag for a range of dates").click()
    ui.pick(dialog, DAYS[0], "00:00")
    ui.pick(dialog, DAYS[2], "23:00")
    expect(dialog.get_by_text("3 runs will be triggered")).to_be_visible()
    dialog.locator("input[name=max_active_runs]").fill("3")  # they run at once; their publications are serialised
    ui.picture("native-backfill-form")
    dialog.get_by_role("button", name="Run Backfill").click()
    ui.page.wait_for_timeout(2000)
    ui.open("about:blank")

    def days() -> list[str]:
        return [str(run["state"]) for run in ui.airflow.runs(NIGHT) if run["run_type"] == "backfill"]

    until(lambda: len(days()) == 3, "three runs", 120)
    until(lambda: set(days()) <= {"success", "failed"}, "the backfill to end")
    assert days() == ["success"] * 3
    ui.open(f"/dags/{NIGHT}/backfills")
    ui.picture("native-backfill")
    assert ui.airflow.lake.current_run() != newest  # the third day is new
    index = ui.airflow.lake.read_history_index()
    assert list(index.days) == list(DAYS[:3])


def test_a_bad_export_turns_the_night_red_and_repaired_it_finishes(ui: Ui, tmp_path: Path) -> None:
    lake, ds = ui.airflow.lake, DAYS[3]
    good = tmp_path / "good"
    lake.raw(ds).rename(good)
    generate(tmp_path / "export", products=5, dirty=False)
    import_catalog(settings_for(lake.root), tmp_path / "export", ds, "sample")
    before = lake.current.read_bytes()
    dialog = ui.form(NIGHT)
    dialog.locator("input[name=element_ds]").fill(ds)
    RUNS["repaired"] = run = ui.submit(dialog, NIGHT)
    ui.airflow.wait(NIGHT, run, "failed")
    ui.open(page_of(NIGHT, run, "/tasks/validate"))
    expect(ui.page.get_by_text("Failed").first).to_be_visible()
    ui.picture("night-red", height=465)
    assert lake.current.read_bytes() == before
    (alert,) = ui.airflow.alerts(f"catalog of {ds}: validate failed")
    assert "Critical rule" in alert
    assert any("validate failed" in mail and "To: on-call@example.com" in mail for mail in ui.airflow.mail.messages)
    assert ui.airflow.task(NIGHT, run, "validate")["try_number"] == 1  # wrong input is not tried again

    shutil.rmtree(lake.raw(ds))
    good.rename(lake.raw(ds))
    ui.clear()
    until(lambda: ui.airflow.state(NIGHT, run) != "failed", "the cleared night to start", 60)
    ui.airflow.wait(NIGHT, run)
    (ledger,) = ui.airflow.ledgers(ds)
    assert lake.current_run() == ledger.run_id


def test_a_stopped_tag_task_ends_its_processes_and_resumed_repeats_no_finished_shard(ui: Ui) -> None:
    lake = ui.airflow.lake
    dialog = ui.form(NIGHT)
    dialog.locator("input[name=element_ds]").fill(DAYS[3])
    dialog.locator("input[name=element_retag]").locator("xpath=..").click()
    run = ui.submit(dialog, NIGHT)

    def shard(at: int) -> str:
        tasks = [t for t in ui.airflow.tasks(NIGHT, run) if t["task_id"] == "tag" and t["map_index"] == at]
        return str(tasks[0]["state"]) if tasks else ""

    until(
        lambda: bool(steps_of("tag", "--shard", "1")), "the process of the second shard", every=0.05
    )  # it lives for a second
    (step,) = steps_of("tag", "--shard", "1")
    step.suspend()  # keeps it running until the button is pressed
    ui.open(page_of(NIGHT, run, "/tasks/tag/mapped/1"))
    assert shard(1) == "running"
    ui.mark_failed()
    until(lambda: not steps_of("tag", "--shard", "1"), "the step and all that it started to end, by force", 60)
    until(lambda: shard(0) == "success", "the first shard, which goes on")
    run_id = sorted(p.name.removeprefix("run=") for p in lake.predictions("x").parent.glob(f"run={DAYS[3]}-*"))
    done = {p: p.stat().st_mtime_ns for name in run_id for p in lake.predictions(name).glob("shard=00000.parquet")}
    ui.open(page_of(NIGHT, run, "/tasks/tag/mapped/1"))
    ui.picture("shard-stopped", height=430)
    until(lambda: ui.airflow.state(NIGHT, run) == "failed", "the run to fail", 300)
    ui.page.reload()
    ui.clear()
    until(lambda: ui.airflow.state(NIGHT, run) != "failed", "the cleared shard to start", 60)
    ui.airflow.wait(NIGHT, run)
    assert {p: p.stat().st_mtime_ns for p in done} == done


def steps_of(*arguments: str) -> list[psutil.Process]:
    """Return the processes of a step that have these arguments."""
    # The command line of a forked step is a single string.
    commands = [(p, " ".join(p.info["cmdline"] or []).split()) for p in psutil.process_iter(["cmdline"])]
    return [process for process, c in commands if c[1:3] == ["-m", "jobs"] and set(arguments) <= set(c)]


def test_the_assets_page_says_who_published_what(ui: Ui) -> None:
    ui.open("/assets")
    ui.page.get_by_text("attribute_tables").first.click()
    expect(ui.page.get_by_text("nightly_tagging").first).to_be_visible()
    ui.picture("asset")
    events = ui.airflow.api("/assets/events?limit=100")["asset_events"]
    extras = [event["extra"] for event in events]
    assert ui.airflow.lake.current_run() in {extra["run_id"] for extra in extras}
    for extra in extras:
        assert extra["ledger"]["published_rows"] == extra["rows"]
        assert extra["manifest"] is None or json.loads(Path(extra["manifest"]).read_text())["run_id"] == extra["run_id"]


def finish_scheduled_training(airflow: Airflow) -> None:
    """Unpause the training DAG, which starts last week's run, and wait for that run; it promotes without asking."""
    airflow.api(f"/dags/{TRAINING}", "PATCH", {"is_paused": False})
    until(lambda: bool(airflow.runs(TRAINING)), "the scheduled training", 120)
    (scheduled,) = (run["dag_run_id"] for run in airflow.runs(TRAINING) if run["run_type"] == "scheduled")
    airflow.wait(TRAINING, scheduled)


def test_a_person_approves_a_model(ui: Ui, airflow: Airflow) -> None:
    finish_scheduled_training(airflow)
    champion = airflow.lake.champion.read_text().split()[0]
    dialog = ui.form(TRAINING)
    dialog.locator("input[name=element_ds]").fill(DAYS[3])
    dialog.locator("input[name=element_approval]").locator("xpath=..").click()
    run = ui.submit(dialog, TRAINING)

    def waits_for_answer() -> bool:
        states = {t["task_id"]: t["state"] for t in airflow.tasks(TRAINING, run)}
        assert "failed" not in states.values(), states
        return states["approve"] in ("awaiting_input", "deferred") or states["keep"] == "success"

    until(waits_for_answer, "the question")
    assert airflow.task(TRAINING, run, "keep")["state"] != "success", "the model was worse: nothing to approve"
    assert airflow.lake.champion.read_text().split()[0] == champion
    ui.open(page_of(TRAINING, run, "/tasks/approve/required_actions"))
    expect(ui.page.get_by_text(re.compile("the champion\\?")).first).to_be_visible()
    expect(ui.page.get_by_role("cell", name="article_type")).to_be_visible()
    expect(ui.page.get_by_role("cell", name=re.compile(" % \\(before"))).not_to_have_count(0)
    ui.picture("approval")
    ui.page.get_by_role("button", name="Approve").click()
    airflow.wait(TRAINING, run)
    assert airflow.lake.champion.read_text().split()[0] != champion


def test_concurrent_runs_give_the_same_tables_as_runs_one_by_one(ui: Ui, tmp_path: Path) -> None:
    """A night, a backfill from the form, a native backfill of three days, and a training that waits for a person."""
    airflow, lake = ui.airflow, ui.airflow.lake
    finish_scheduled_training(airflow)
    shutil.copytree(lake.root, tmp_path / "lake", ignore=shutil.ignore_patterns("scratch"))
    known = {dag: {run["dag_run_id"] for run in airflow.runs(dag)} for dag in (NIGHT, BACKFILL, TRAINING)}
    for dag, conf in (
        (NIGHT, {"ds": DAYS[4]}),
        (BACKFILL, {"first_day": DAYS[1], "last_day": DAYS[1], "retag": True, "dry_run": False}),
        (TRAINING, {"ds": DAYS[3], "approval": True}),
    ):
        airflow.api(f"/dags/{dag}", "PATCH", {"is_paused": False})
        airflow.api(f"/dags/{dag}/dagRuns", "POST", {"logical_date": None, "conf": conf})
    three = {"dag_id": NIGHT, "from_date": f"{DAYS[0]}T00:00:00Z", "to_date": f"{DAYS[2]}T23:00:00Z"}
    backfill = three | {"max_active_runs": 3, "reprocess_behavior": "completed", "dag_run_conf": {}}
    airflow.api("/backfills", "POST", backfill)

    def states() -> list[str]:
        """Return the states of the runs that this test started.

        These are the backfill and five nights, one of which the backfill triggered. The scheduled night, which waits for its
        export, is left out.
        """
        runs = [(dag, run) for dag in (NIGHT, BACKFILL) for run in airflow.runs(dag) if run["run_type"] != "scheduled"]
        new = [run for dag, run in runs if run["dag_run_id"] not in known[dag]]
        again = [
            run for run in airflow.runs(NIGHT) if run["run_type"] == "backfill" and run["dag_run_id"] in known[NIGHT]
        ]
        return [str(run["state"]) for run in new + again]

    until(lambda: sum(state == "running" for state in states()) >= 5, "all to run at once", 120)
    ui.open("/dags")
    ui.picture("all-at-once")
    ui.open("about:blank")
    until(lambda: len(states()) == 6 and set(states()) <= {"success", "failed"}, "all to end", 2 * WAIT)
    assert set(states()) == {"success"}
    (training,) = (run["dag_run_id"] for run in airflow.runs(TRAINING) if run["dag_run_id"] not in known[TRAINING])
    until(lambda: airflow.task(TRAINING, training, "decide")["state"] in {"success", "failed"}, "the verdict")
    assert airflow.task(TRAINING, training, "decide")["state"] == "success"

    one_by_one = settings_for(tmp_path / "lake", shard_rows=150)
    for ds, retag in ((DAYS[4], False), (DAYS[1], True), (DAYS[0], False), (DAYS[1], False), (DAYS[2], False)):
        night(one_by_one, ds, retag=retag)
    for ds in DAYS:
        assert as_of(lake, ds) == as_of(Lake(one_by_one.root), ds), ds
    assert rows_of(lake.current_lines()) == rows_of(Lake(one_by_one.root).current_lines())
    assert lake.read_history_index().live == lake.current_run()


# Columns with the outcome for a product; time and run may differ.
OUTCOME = "product_id, attribute, value, source, model_value, round(confidence, 3) as confidence, model_version"


def as_of(lake: Lake, ds: str) -> list[tuple[object, ...]]:
    with duckdb.connect() as connection:
        rows = published_tables.as_of(connection, settings_for(lake.root), ds)
        return sorted(rows.project(OUTCOME).fetchall(), key=str)


def rows_of(files: list[str]) -> list[tuple[object, ...]]:
    with duckdb.connect() as connection:
        return sorted(connection.read_parquet(files).project(OUTCOME).fetchall(), key=str)
