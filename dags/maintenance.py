"""Remove what the lake no longer needs: old runs, plans, predictions and examples.

The DAG runs every Sunday at 12:00 UTC as a **dry run**: the log of `maintenance` lists what it would remove. To remove it,
trigger the DAG with `delete`, or set TAGGING_MAINTENANCE_DELETE=true.

It never removes:

* the published tables and the history of past days
* examples that a plan, a table or a labelled set still needs
* runs that a step is working on
"""

from __future__ import annotations

import os

from airflow.sdk import CronDataIntervalTimetable, Param, dag
from common import DAG_DEFAULTS
from job_operator import JobOperator

from schemas.step_results import MaintenanceResult


@dag(
    dag_id="maintenance",
    description="Removes what the lake no longer needs. A dry run unless `delete` is on.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 12 * * 0", timezone="UTC"),
    max_active_runs=1,
    tags=["catalog", "lake"],
    params={
        "days": Param(30, type="integer", minimum=0, title="Minimum age in days", description="Younger data is kept."),
        "keep": Param(
            7,
            type="integer",
            minimum=1,
            title="Runs to keep",
            description="Number of newest published runs to keep besides the live one, whatever their age.",
        ),
        "delete": Param(
            os.environ.get("TAGGING_MAINTENANCE_DELETE", "").lower() == "true",
            type="boolean",
            title="Delete",
            description="Remove the data. If this is off, the run only lists what it would remove.",
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
        doc_md="Lists expired data by kind and size, and removes it if `delete` is on.",
    )


maintenance()
