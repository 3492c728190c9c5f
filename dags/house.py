"""What all DAGs share: how their tasks are retried and who is told, the day a run is for, errors of the jobs. No DAG."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowFailException

from jobs import alerts
from jobs.errors import JobError
from jobs.settings import Settings

log = logging.getLogger(__name__)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn what a job says is wrong into an error of the task that is not tried again: it would be wrong again."""
    try:
        yield
    except JobError as error:
        raise AirflowFailException(str(error)) from None


def partition_day(ds: str | None, interval_start: datetime | None) -> str:
    """Return the day a run is for: the one asked for, else the day on which its data interval starts.

    Raises:
        AirflowFailException: where there is neither, or `ds` is no day.
    """
    if not ds and interval_start is None:
        raise AirflowFailException(
            "this run has no data interval, so its day is unknown: trigger it with ds=YYYY-MM-DD"
        )
    if not ds:
        assert interval_start is not None
        return interval_start.astimezone(UTC).date().isoformat()
    try:
        # fromisoformat also reads 20261120 and 2026-W47-5: a partition has one spelling
        if datetime.fromisoformat(ds).date().isoformat() != ds:
            raise ValueError
    except ValueError:
        raise AirflowFailException(f"ds={ds!r} is not a day; write it as 2026-11-20") from None
    return ds


def alert(context: Context) -> None:
    """Tell of a task that failed for good: which step, how many rows, where the report is."""
    task: Any = context["task"]
    ti: Any = context["ti"]
    name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"
    arguments = [str(argument) for argument in getattr(task, "arguments", ())]
    if not arguments:  # a task that runs no step: its day is that of the run
        with contextlib.suppress(Exception):
            arguments = ["--ds", ti.xcom_pull(task_ids="resolve_day")]
    subject, text = alerts.of_failure(
        Settings(),
        dag=ti.dag_id,
        task=name,
        arguments=arguments,
        error=str(context.get("exception") or "its log says why"),
        log_url=ti.log_url,
    )
    alerts.send(Settings(), subject, text)


DEFAULTS: dict[str, Any] = {
    "owner": "catalog",
    "retries": 2,
    "retry_delay": timedelta(seconds=float(os.environ.get("TAGGING_RETRY_DELAY", "60"))),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=15),
    "execution_timeout": timedelta(hours=2),
    "on_failure_callback": alert,
}
