"""Expires what the lake no longer needs: old runs, plans, predictions and examples.

Every Sunday at 12:00 UTC, as a **dry run**: the log of `maintenance` says what would go. Trigger it with `delete`, or
set TAGGING_MAINTENANCE_DELETE=true, to let it go. Never removed: what is published, what any past day is read from,
what an example or a labelled set still needs, what is being read.
"""

from __future__ import annotations

import os

from airflow.sdk import CronDataIntervalTimetable, Param, dag
from common import DAG_DEFAULTS
from job_operator import JobOperator

from schemas.step_results import MaintenanceResult


@dag(
    dag_id="maintenance",
    description="Expires what the lake no longer needs; a dry run unless it is told to delete.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 12 * * 0", timezone="UTC"),
    max_active_runs=1,
    tags=["catalog", "lake"],
    params={
        "days": Param(30, type="integer", minimum=0, title="Least age, in days", description="Younger things stay."),
        "keep": Param(
            7, type="integer", minimum=1, title="Runs to keep", description="The newest ones, whatever their age."
        ),
        "delete": Param(
            os.environ.get("TAGGING_MAINTENANCE_DELETE", "").lower() == "true",
            type="boolean",
            title="Delete",
            description="Off: a dry run, which only says what would go.",
        ),
    },
    **DAG_DEFAULTS,
)
def maintenance() -> None:
    JobOperator(
        task_id="maintenance",
        prints=MaintenanceResult,
        arguments=[
            "maintenance",
            "--days={{ params.days }}",
            "--keep={{ params.keep }}",
            "{{ '--delete' if params.delete else '' }}",
        ],
        doc_md="Lists what has expired, by kind, with its bytes; removes it where it is told to.",
    )


maintenance()
