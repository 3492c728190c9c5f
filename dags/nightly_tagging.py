"""Tag the day's catalog and publish the attribute tables.

A run starts every night at 02:00 UTC for the day that has just ended:

1. It waits for the day's export and checks its records.
2. It freezes a plan of the new, changed and removed products.
3. It makes the examples and predicts them, shard by shard, on the GPU queue.
4. It publishes the attribute tables in one atomic swap and writes a report.

To run something else:

* **Another day**: trigger the DAG with `ds`.
* **Several days**: trigger *backfill_tagging*, whose form has all choices, or use *Backfill* here. An old day changes only
  the history; it never replaces newer values in the tables.
* **Every product again**: trigger the DAG with `retag`. With a new champion model this happens by itself.

If something goes wrong:

* **A night that would remove many products** stops at `plan` and names some of them. If they are really gone, trigger the
  DAG with `allow_removals`.
* **A night failed**: read the last lines of the failed task's log, fix the cause, and clear the task. Finished work is
  skipped. Exit code 2 of a step means that its input or settings are wrong, so Airflow does not retry it.

Each task runs one step of the command line, `python -m jobs <step>`, with the worker's TAGGING_* settings. The button
*Report* of `validate` opens the page of the rules, and that of `report` the page of the night. The ledger is the result
(*XCom*) of `publish`.
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
from export_sensor import ExportSensor  # Airflow puts the DAGs folder on the path
from job_operator import JobOperator

from schemas.step_results import PlanResult, PreprocessResult, PublishResult, ReportResult, TagResult, ValidateResult

ATTRIBUTE_TABLES = Asset("attribute_tables")
# Without this setting the DAG has no deadline: `airflow dags test` (3.3.2) fails on a DAG that has one.
LATE = os.environ.get("TAGGING_LATE_AFTER_MINUTES")


@dag(
    dag_id="nightly_tagging",
    description="Checks the day's catalog, predicts product attributes, and publishes the attribute tables.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone="UTC"),
    max_active_runs=4,  # a night that waits for its export must not block others; publications are serialised
    dagrun_timeout=timedelta(hours=23),
    tags=["catalog", "tagging"],
    params={
        "ds": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Day of the catalog",
            description="Leave this empty to use the day of the run's data interval.",
        ),
        **night_params(),
    },
    **DAG_DEFAULTS,
    deadline=DeadlineAlert(
        # Counted from the start of the data interval, a day before the night. With a deadline counted from queueing, a
        # run could not be cleared (Airflow 3.3.2, apache/airflow#70368).
        reference=DeadlineReference.DAGRUN_LOGICAL_DATE,
        interval=timedelta(days=1, minutes=float(LATE)),
        callback=SyncCallback("jobs.orchestration.alerts.late", kwargs={"minutes": float(LATE)}),
        name="the night is late",
    )
    if LATE
    else None,
)
def nightly_tagging() -> None:
    @task(doc_md="Returns the day of this run: `ds` if given, otherwise the day on which the data interval starts.")
    def resolve_day(params: dict[str, Any] | None = None, data_interval_start: datetime | None = None) -> str:
        return partition_day((params or {}).get("ds"), data_interval_start)

    @task(
        doc_md="Returns the plan's groups of shards, one per mapped task, because Airflow maps only over a task's return value."
    )
    def list_shards(shards: list[str]) -> list[str]:
        return shards

    @task.branch(
        doc_md="Skips `preprocess` if no examples are to be made, and also `tag` if no products are to be tagged."
    )
    def branch(to_preprocess: int, shards: list[str]) -> str:
        if not shards:
            return "publish"  # products were only removed, or nothing changed
        return "preprocess" if to_preprocess else "tag"

    day = resolve_day()
    wait_for_export = ExportSensor(
        task_id="wait_for_export",
        day="{{ ti.xcom_pull(task_ids='resolve_day') }}",
        poke_interval=float(os.environ.get("TAGGING_EXPORT_POKE_SECONDS", "60")),
        timeout=3600 * float(os.environ.get("TAGGING_EXPORT_WAIT_HOURS", "6")),
        execution_timeout=timedelta(days=1),
        doc_md="Waits, deferred, until the day's export is complete, that is, until its manifest exists.",
    )
    validate = JobOperator(
        task_id="validate",
        prints=ValidateResult,
        arguments=["validate", "--ds", day],
        doc_md="Quarantines bad records with their reasons. Fails if the batch as a whole breaks a critical rule.",
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
        doc_md="Compares the day with the published tables and freezes the work, cut into shards. Returns the run id and "
        "the shards, in at most as many groups as Airflow can map a task over.",
    )
    run_id = plan.field("run_id")
    shards = list_shards(plan.field("shards"))
    branched = branch(plan.field("to_preprocess"), shards)
    preprocess = JobOperator(
        task_id="preprocess",
        prints=PreprocessResult,
        arguments=["preprocess", "--run", run_id],
        execution_timeout=timedelta(hours=6),
        doc_md="Makes the model's inputs for new and changed products: clean text, decoded and resized pictures.",
    )
    tag = JobOperator.partial(
        task_id="tag",
        prints=TagResult,
        arguments=["tag", "--run", run_id],
        pool="gpu",
        queue="gpu",
        map_index_template="{{ 'shards' if '-' in task.shard else 'shard' }} {{ task.shard }}",
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        execution_timeout=timedelta(hours=5),  # for a group of many shards without a GPU; finished shards are kept
        doc_md="Predicts the products of a group of shards and writes one file per shard. A retry skips finished shards.",
    ).expand(shard=shards)
    publish = JobOperator(
        task_id="publish",
        prints=PublishResult,
        arguments=["publish", "--run", run_id],
        outlets=[ATTRIBUTE_TABLES],
        multiple_outputs=True,
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        doc_md="Writes and audits the new tables, then swaps them in. Fails if a shard is missing or a row is lost. "
        "Returns the night's ledger. If another run was published first, the day is planned again on top of it.",
    )
    report = JobOperator(
        task_id="report",
        prints=ReportResult,
        arguments=["report", "--run", publish.field("run_id")],
        execution_timeout=timedelta(minutes=30),
        doc_md="Writes the run's report, an HTML page that the button *Report* opens.",
    )

    day >> wait_for_export >> validate >> plan
    branched >> [preprocess, tag, publish]
    preprocess >> tag >> publish >> report


nightly_tagging()
