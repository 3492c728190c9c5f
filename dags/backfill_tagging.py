"""Tags past days of the catalog again: which days, which attributes, by which model.

Fill in the form and trigger. The nights run one after the other, oldest first, as runs of *nightly_tagging*, which this
run waits for; their links are on the tasks of `night`. A day older than the published one changes the history alone.

* **Dry run** (on by default) shows the plan and its cost in the log of `estimate` and publishes nothing.
* **A day that failed** does not stop the others: what they publish is right without it. Put its cause right and clear its
  task here: its night runs again; days that are done are found done.
* **Without choices**: Airflow's own *Backfill* of *nightly_tagging* does the same for a range of days.
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
    description="Tags past days again: days, attributes and model are chosen in a form.",
    doc_md=__doc__,
    schedule=None,
    max_active_runs=1,
    tags=["catalog", "tagging"],
    params={
        "first_day": Param(type="string", format="date", title="First day"),
        "last_day": Param(type="string", format="date", title="Last day"),
        **night_params(),
        "dry_run": Param(
            True,
            type="boolean",
            title="Dry run",
            description="Show the plan and its cost; publish nothing. Switch it off to run the nights.",
        ),
    },
    **DAG_DEFAULTS,
)
def backfill_tagging() -> None:
    @task(doc_md="Looks at the form: the days must be a range, and have exports. Its result is one night a day.")
    def check_form(params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        asked = params or {}
        with job_errors_fail_the_task():
            there, missing = export_days.exported(
                Lake(Settings().root), asked["first_day"], asked["last_day"], min(export_days.MOST, MAX_MAP_LENGTH)
            )
        if missing:
            print(f"no export, left out: {', '.join(missing)}")
        chosen = {name: asked[name] for name in ("attributes", "model", "retag", "allow_removals")}
        return [{"conf": {"ds": day} | chosen, "note": f"backfill of {day}"} for day in there]

    @task.branch(doc_md="To the estimate, or to the nights.")
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
        doc_md="What the backfill would do and cost, day by day. Nothing is published.",
    )
    night = TriggerDagRunOperator.partial(
        task_id="night",
        trigger_dag_id="nightly_tagging",
        wait_for_completion=True,
        deferrable=True,
        poke_interval=10,
        fail_when_dag_is_paused=True,
        max_active_tis_per_dagrun=1,  # one after the other, oldest first: each day is compared with the one before
        execution_timeout=timedelta(days=2),
        retries=1,
        map_index_template="{{ task.conf.ds }}",
        doc_md="A night of *nightly_tagging*, waited for without a worker.",
    ).expand_kwargs(checked)

    checked >> branch() >> [estimate, night]


backfill_tagging()
