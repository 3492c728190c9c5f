"""Trains a model on the newest labelled set, judges it against the champion, and promotes it if it is no worse.

Every Sunday at 06:00 UTC, or by hand. The new version is always kept; the verdict is the result of `judge`. After a
promotion the nights tag again what the new model must, at most the share TAGGING_MAX_RETAG_SHARE of the catalog a night.

* **Ask a person**: trigger it with `approval`: the run then waits in `approve` for a yes or no, which anybody who may
  edit the DAG gives on the task's page (*Required Actions*).
* **Better towers**, where the configuration names no pretrained weights: trigger it with `pretrain`.
* **A training that failed or was stopped**: clear `train`; it goes on from its last checkpoint.
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
    description="Trains a model on the newest labelled set, judges it, promotes it if it is no worse.",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 6 * * 0", timezone="UTC"),
    max_active_runs=1,
    tags=["catalog", "model"],
    params={
        "ds": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Newest day of the catalog to learn from",
            description="Leave empty for the newest day that has an export.",
        ),
        "pretrain": Param(
            False,
            type="boolean",
            title="Pretrain the towers first",
            description="On the pairs of picture and text of the same labelled set; towers of it that are there are used again. "
            "Not where the configuration names pretrained weights.",
        ),
        "approval": Param(
            False,
            type="boolean",
            title="Ask before promoting",
            description="A person says yes or no on the page of the task `approve`.",
        ),
    },
    **DAG_DEFAULTS,
)
def train_model() -> None:
    @task(doc_md="Settles the day once: `ds` where it is given, else the newest day that has an export.")
    def resolve_day(params: dict[str, Any] | None = None) -> str:
        with job_errors_fail_the_task():
            return export_days.newest(Lake(Settings().root), (params or {}).get("ds"))

    @task.branch(
        doc_md="Keeps a model that is worse or cannot be judged, asks a person where that is wished, promotes it else."
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
        doc_md="Makes the day's examples where they are not there: validate, plan and preprocess without a night.",
    )
    dataset = JobOperator(
        task_id="dataset",
        prints=DatasetResult,
        arguments=["dataset", "--ds", day],
        doc_md="Makes the labelled set and the page that shows it, behind the button *Report*.",
    )
    train = JobOperator(
        task_id="train",
        prints=TrainResult,
        arguments=["train", "--ds", day, "--no-promote", "{{ '--pretrain' if params.pretrain else '' }}"],
        multiple_outputs=True,
        pool="gpu",
        queue="gpu",
        execution_timeout=timedelta(days=2),
        doc_md="Trains, chooses thresholds, writes a model version. Killed, it goes on from its last checkpoint.",
    )
    version = train.field("model_version")
    judge = JobOperator(
        task_id="judge",
        prints=JudgeResult,
        arguments=["models", "judge", version],
        multiple_outputs=True,
        pool="gpu",
        queue="gpu",
        doc_md="Compares it with the champion on products that neither learnt from, beyond noise.",
    )
    decided = decide(judge.field("accepted"))
    keep = EmptyOperator(
        task_id="keep", doc_md="The new version stays a challenger: `verdict` of `judge`, tab *XCom*, says why."
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Make model {{ ti.xcom_pull(task_ids='train', key='model_version') }} the champion?",
        body="{{ ti.xcom_pull(task_ids='judge', key='page') }}\n\nThe next nights tag every product again.",
        defaults=ApprovalOperator.REJECT,
        response_timeout=timedelta(days=3),
        execution_timeout=None,
        doc_md="Waits three days for a person; no answer is a no.",
    )
    promote = JobOperator(
        task_id="promote",
        prints=ChampionResult,
        arguments=["models", "promote", version],
        trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS,
        doc_md="Makes it the champion, unless the champion changed meanwhile and it is worse than that one.",
    )

    day >> prepare >> dataset >> train >> judge
    decided >> [keep, approve, promote]
    approve >> promote


train_model()
