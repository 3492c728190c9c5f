"""Tag past days of the catalog again. A form asks for the days, the attributes and the model.

Fill in the form and trigger the DAG. It starts one run of *nightly_tagging* per day, oldest first, and waits for each of
them. The tasks of `night` link to these runs. A day older than the published one changes only the history.

* **Dry run** (on by default): the log of `estimate` shows the plan and its cost. Nothing is published.
* **If a day fails**, the other days still run; their tables are correct without it. Fix the cause and clear the failed task
  here: its night runs again. Finished days are skipped.
* **If you need none of the choices**, Airflow's own *Backfill* of *nightly_tagging* does the same for a range of days.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag, task
from common import DAG_DEFAULTS, MAX_MAP_LENGTH, NIGHT_ARGUMENTS, job_errors_fail_the_task, night_params
from job_operator import JobOperator

from jobs.lake import export_days
from jobs.lake.layout import Lake
from jobs.settings import Settings
from schemas.step_results import EstimateResult


@dag(
    dag_id="backfill_tagging",
    description="Tags past days again. Choose days, attributes and model in a form.",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    tags=["catalog", "tagging"],
    params={
        "first_day": Param(type="string", format="date", title="First day", description="Oldest day to tag again."),
        "last_day": Param(
            type="string", format="date", title="Last day", description="Newest day to tag again; it is included."
        ),
        **night_params(),
        "dry_run": Param(
            True,
            type="boolean",
            title="Dry run",
            description="Only show the plan and its cost. Switch this off to run the nights.",
        ),
    },
    **DAG_DEFAULTS,
)
def backfill_tagging() -> None:
    @task(
        doc_md="Checks the form and returns one night per day with an export. Fails on a wrong range, or if no day has an export."
    )
    def check_form(params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        form = params or {}
        with job_errors_fail_the_task():
            days, missing = export_days.exported(
                Lake(Settings().root), form["first_day"], form["last_day"], min(export_days.MOST, MAX_MAP_LENGTH)
            )
        if missing:
            print(f"days without an export, left out: {', '.join(missing)}")
        chosen = {name: form[name] for name in ("attributes", "model", "retag", "allow_removals")}
        return [{"conf": {"ds": day} | chosen, "note": f"backfill of {day}"} for day in days]

    @task.branch(doc_md="Continues with the estimate if this is a dry run, otherwise with the nights.")
    def branch(params: dict[str, Any] | None = None) -> str:
        return "estimate" if (params or {})["dry_run"] else "night"

    checked = check_form()
    estimate = JobOperator(
        task_id="estimate",
        prints=EstimateResult,
        arguments=[
            "estimate",
            "--first={{ params.first_day }}",
            "--last={{ params.last_day }}",
            *NIGHT_ARGUMENTS,
        ],
        doc_md="Prints what the backfill would do and cost, day by day. Publishes nothing.",
    )
    night = TriggerDagRunOperator.partial(
        task_id="night",
        trigger_dag_id="nightly_tagging",
        wait_for_completion=True,
        deferrable=True,
        poke_interval=10,
        fail_when_dag_is_paused=True,
        max_active_tis_per_dagrun=1,  # oldest first, one at a time: each day is compared with the day before
        execution_timeout=timedelta(days=2),
        retries=1,
        map_index_template="{{ task.conf.ds }}",
        doc_md="Triggers a run of *nightly_tagging* and waits for it without occupying a worker.",
    ).expand_kwargs(checked)

    checked >> branch() >> [estimate, night]


backfill_tagging()
