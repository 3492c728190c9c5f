"""Train a model on the newest labelled set, judge it against the champion, and promote it if it is no worse.

The DAG runs every Sunday at 06:00 UTC, or when you trigger it. The new version is always kept. The verdict is the result
of `judge`. After a promotion, the following nights tag every product again, at most the share TAGGING_MAX_RETAG_SHARE of
the catalog per night.

* **To decide yourself**, trigger the DAG with `approval`. The run then waits in `approve` for a yes or no. Anybody who may
  edit the DAG can answer on the task's page (*Required Actions*).
* **For better towers**, if the configuration names no pretrained weights, trigger the DAG with `pretrain`.
* **If a training failed or was stopped**, clear `train`. It continues from its last checkpoint.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import CronDataIntervalTimetable, Param, TriggerRule, dag, task
from common import DAG_DEFAULTS, job_errors_fail_the_task
from job_operator import JobOperator

from jobs.lake import export_days
from jobs.lake.layout import Lake
from jobs.settings import Settings
from schemas.step_results import ChampionResult, DatasetResult, JudgeResult, PrepareResult, TrainResult


@dag(
    dag_id="train_model",
    description="Trains a model on the newest labelled set, judges it, and promotes it if it is no worse.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 6 * * 0", timezone="UTC"),
    max_active_runs=1,
    tags=["catalog", "model"],
    params={
        "ds": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Newest day of the catalog to train on",
            description="Leave this empty to use the newest day that has an export.",
        ),
        "pretrain": Param(
            False,
            type="boolean",
            title="Pretrain the towers first",
            description="Train both towers on the labelled set's own image-text pairs. Existing towers of this set are used "
            "again. Not possible if the configuration names pretrained weights.",
        ),
        "approval": Param(
            False,
            type="boolean",
            title="Ask before promoting",
            description="Wait for a person to answer yes or no on the page of the task `approve`.",
        ),
    },
    **DAG_DEFAULTS,
)
def train_model() -> None:
    @task(doc_md="Returns the newest day up to `ds` that has an export; without `ds`, the newest one of all.")
    def resolve_day(params: dict[str, Any] | None = None) -> str:
        with job_errors_fail_the_task():
            return export_days.newest(Lake(Settings().root), (params or {}).get("ds"))

    @task.branch(
        doc_md="Continues with `keep` if the model was not accepted. Otherwise continues with `approve` if `approval` is "
        "on, and with `promote` if it is off."
    )
    def decide(accepted: bool, params: dict[str, Any] | None = None) -> str:
        if not accepted:
            return "keep"
        return "approve" if (params or {}).get("approval") else "promote"

    day = resolve_day()
    prepare = JobOperator(
        task_id="prepare",
        prints=PrepareResult,
        arguments=["prepare", "--ds", day],
        execution_timeout=timedelta(hours=6),
        doc_md="Makes the day's missing examples: validate, plan and preprocess, without a night.",
    )
    dataset = JobOperator(
        task_id="dataset",
        prints=DatasetResult,
        arguments=["dataset", "--ds", day],
        doc_md="Makes the labelled set and a page about it, which the button *Report* opens.",
    )
    train = JobOperator(
        task_id="train",
        prints=TrainResult,
        arguments=["train", "--ds", day, "--no-promote", "{{ '--pretrain' if params.pretrain else '' }}"],
        multiple_outputs=True,
        pool="gpu",
        queue="gpu",
        execution_timeout=timedelta(days=2),
        doc_md="Trains the model, chooses thresholds and writes a model version. A retry continues from the last checkpoint.",
    )
    version = train.field("model_version")
    judge = JobOperator(
        task_id="judge",
        prints=JudgeResult,
        arguments=["models", "judge", version],
        multiple_outputs=True,
        pool="gpu",
        queue="gpu",
        doc_md="Compares the new version with the champion on products that neither was trained on. Differences within noise do not count.",
    )
    decided = decide(judge.field("accepted"))
    keep = EmptyOperator(
        task_id="keep",
        doc_md="The new version stays a challenger. `verdict` in the result (*XCom*) of `judge` gives the reason.",
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Make model {{ ti.xcom_pull(task_ids='train', key='model_version') }} the champion?",
        body="{{ ti.xcom_pull(task_ids='judge', key='page') }}\n\nIf you approve, the next nights tag every product again.",
        defaults=ApprovalOperator.REJECT,
        response_timeout=timedelta(days=3),
        execution_timeout=None,
        doc_md="Waits up to three days for a person's answer. No answer counts as no.",
    )
    promote = JobOperator(
        task_id="promote",
        prints=ChampionResult,
        arguments=["models", "promote", version],
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        doc_md="Makes the new version the champion. If the champion changed in the meantime, it must be no worse than that one.",
    )

    day >> prepare >> dataset >> train >> judge
    decided >> [keep, approve, promote]
    approve >> promote


train_model()
