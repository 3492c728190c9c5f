"""Tags the day's catalog and publishes the attribute tables.

Every night at 02:00 UTC the run takes the day that has just ended: it waits for the day's export, checks its records,
freezes a plan of what is new, changed or removed, makes the examples, predicts them shard by shard on the GPU queue,
publishes the attribute tables in one atomic swap, and writes a report.

* **Another day**: trigger the DAG with `ds`. **Several days**: trigger *backfill_tagging*, whose form has all that can be
  chosen, or use *Backfill* here. An old day changes the history alone; it never replaces newer
  values in the tables.
* **Everything again**: trigger it with `retag`. A new champion model does that by itself.
* **A night that would remove many products** stops at `plan` and names them. Where they are gone, trigger it with
  `allow_removals`.
* **A night that failed**: read the last lines of the failed task's log, put the cause right, and clear the task. What
  is done is skipped. Exit code 2 of a step means that its input or its settings are wrong: it is not retried.

Each task runs one step of the command line, `python -m jobs <step>`, with the worker's TAGGING_* settings. The buttons
*Report* of `validate` and `report` open the rules' page and the night's page; the ledger is the result (*XCom*) of `publish`.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import (
    Asset,
    CronDataIntervalTimetable,
    DeadlineAlert,
    DeadlineReference,
    Param,
    SyncCallback,
    TriggerRule,
    dag,
    task,
)
from common import DAG_DEFAULTS, MAX_MAP_LENGTH, NIGHT_ARGUMENTS, night_params, partition_day
from export_sensor import ExportSensor  # Airflow puts the folder of the DAGs on the path
from job_operator import JobOperator

from schemas.step_results import PlanResult, PreprocessResult, PublishResult, ReportResult, TagResult, ValidateResult

ATTRIBUTE_TABLES = Asset("attribute_tables")
# Left out where it is not set: `airflow dags test` (3.3.2) fails on a DAG that has a deadline.
LATE = os.environ.get("TAGGING_LATE_AFTER_MINUTES")


@dag(
    dag_id="nightly_tagging",
    description="Checks the day's catalog, predicts product attributes, publishes the attribute tables.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    max_active_runs=4,  # a night that waits for its export must not hold up the others; publications are serialised
    dagrun_timeout=timedelta(hours=23),
    tags=["catalog", "tagging"],
    params={
        "ds": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Day of the catalog",
            description="Leave empty for the day of the run's data interval.",
        ),
        **night_params(),
    },
    **DAG_DEFAULTS,
    deadline=DeadlineAlert(
        # Counted from the start of the data interval, a day before the night. A run with a deadline since it was queued
        # cannot be cleared (Airflow 3.3.2, apache/airflow#70368).
        reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
        interval=timedelta(days=1, minutes=float(LATE)),
        callback=SyncCallback("jobs.orchestration.alerts.late", kwargs={"minutes": float(LATE)}),
        name="the night is late",
    )
    if LATE
    else None,
)
def nightly_tagging() -> None:
    @task(doc_md="Settles the day once: `ds` where it is given, else the day on which the data interval starts.")
    def resolve_day(params: dict[str, Any] | None = None, data_interval_start: datetime | None = None) -> str:
        return partition_day((params or {}).get("ds"), data_interval_start)

    @task(doc_md="The plan's shards, in as many groups as mapped tasks: Airflow maps over a task's return value alone.")
    def list_shards(shards: list[str]) -> list[str]:
        return shards

    @task.branch(doc_md="Leaves out what the plan has no work for: the pictures, or the pictures and the model.")
    def branch(to_preprocess: int, shards: list[str]) -> str:
        if not shards:
            return "publish"  # products were removed, or nothing changed
        return "preprocess" if to_preprocess else "tag"

    day = resolve_day()
    wait_for_export = ExportSensor(
        task_id="wait_for_export",
        day="{{ ti.xcom_pull(task_ids='resolve_day') }}",
        poke_interval=float(os.environ.get("TAGGING_EXPORT_POKE_SECONDS", "60")),
        timeout=3600 * float(os.environ.get("TAGGING_EXPORT_WAIT_HOURS", "6")),
        execution_timeout=timedelta(days=1),
        doc_md="Waits, deferred, until the day's export is complete: its manifest is written last.",
    )
    validate = JobOperator(
        task_id="validate",
        prints=ValidateResult,
        arguments=["validate", "--ds", day],
        doc_md="Quarantines bad records with their reasons; fails where the whole batch is not to be trusted.",
    )
    plan = JobOperator(
        task_id="plan",
        prints=PlanResult,
        arguments=[
            "plan",
            "--ds",
            day,
            f"--most-tasks={MAX_MAP_LENGTH}",
            *NIGHT_ARGUMENTS,
        ],
        multiple_outputs=True,
        doc_md="Compares the day with what is published and freezes the work, cut into shards. Its result is the run id, "
        "and the shards in groups, no more than Airflow maps a task over.",
    )
    run_id = plan.field("run_id")
    shards = list_shards(plan.field("shards"))
    branched = branch(plan.field("to_preprocess"), shards)
    preprocess = JobOperator(
        task_id="preprocess",
        prints=PreprocessResult,
        arguments=["preprocess", "--run", run_id],
        execution_timeout=timedelta(hours=6),
        doc_md="Makes the model's inputs of new and changed products: clean text, decoded and resized pictures.",
    )
    tag = JobOperator.partial(
        task_id="tag",
        prints=TagResult,
        arguments=["tag", "--run", run_id],
        pool="gpu",
        queue="gpu",
        map_index_template="{{ 'shards' if '-' in task.shard else 'shard' }} {{ task.shard }}",
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        execution_timeout=timedelta(hours=5),  # a group of many shards without a GPU; what is done of it stays done
        doc_md="Predicts a group of shards, one file each. A finished shard is skipped: tried again, only what is missing "
        "is done.",
    ).expand(shard=shards)
    publish = JobOperator(
        task_id="publish",
        prints=PublishResult,
        arguments=["publish", "--run", run_id],
        outlets=[ATTRIBUTE_TABLES],
        multiple_outputs=True,
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        doc_md="Writes and audits the new tables, then swaps them in; fails where a shard is missing or a row is lost. "
        "Its result is the night's ledger. Where another run was first, the day is planned anew on that one.",
    )
    report = JobOperator(
        task_id="report",
        prints=ReportResult,
        arguments=["report", "--run", publish.field("run_id")],
        execution_timeout=timedelta(minutes=30),
        doc_md="Writes the run's report: one HTML page, behind the button *Report*.",
    )

    day >> wait_for_export >> validate >> plan
    branched >> [preprocess, tag, publish]
    preprocess >> tag >> publish >> report


nightly_tagging()
