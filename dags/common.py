"""Shared parts of the DAGs: retries, failure alerts, the logical day, the form of a night, error translation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import Context, Param
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from jobs.errors import JobError
from jobs.orchestration import alerts, form_options
from jobs.settings import Settings


@contextlib.contextmanager
def job_errors_fail_the_task() -> Iterator[None]:
    """Turn a `JobError` into an error that Airflow does not retry: a retry would fail again."""
    try:
        yield
    except JobError as error:
        raise AirflowFailException(str(error)) from None


def partition_day(ds: str | None, interval_start: datetime | None) -> str:
    """Return the day of a run: `ds` if given, otherwise the day on which its data interval starts.

    Raises:
        AirflowFailException: both are missing, or `ds` is not a day.
    """
    if not ds and interval_start is None:
        raise AirflowFailException(
            "this run has no data interval, so its day is unknown: trigger it with ds=YYYY-MM-DD"
        )
    if not ds:
        assert interval_start is not None
        return interval_start.astimezone(UTC).date().isoformat()
    try:
        # fromisoformat also accepts 20261120 and 2026-W47-5, but a partition has one spelling.
        if datetime.fromisoformat(ds).date().isoformat() != ds:
            raise ValueError
    except ValueError:
        raise AirflowFailException(f"ds={ds!r} is not a day; write it as 2026-11-20") from None
    return ds


def alert(context: Context) -> None:
    """Send an alert about a task whose retries are used up, with its step, row counts and report."""
    task: Any = context["task"]
    ti: Any = context["ti"]
    name = ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]"
    if shard := getattr(task, "shard", None):
        name += f" (shard {shard})"
    arguments = [str(argument) for argument in getattr(task, "arguments", ())]
    if not arguments:  # the task runs no step, so use the day of the run
        with contextlib.suppress(Exception):
            arguments = ["--ds", ti.xcom_pull(task_ids="resolve_day")]
    settings = Settings()
    subject, text = alerts.failure_alert(
        settings,
        dag=ti.dag_id,
        task=name,
        arguments=arguments,
        error=str(context.get("exception") or "its log says why"),
        log_url=ti.log_url,
    )
    alerts.send(settings, subject, text)


CHAMPION = "champion"

# Airflow refuses to map a task into more tasks than this.
MAX_MAP_LENGTH = conf.getint("core", "max_map_length", fallback=1024)


def night_params() -> dict[str, Param]:
    """Return the form fields of a night, except its day; `NIGHT_ARGUMENTS` passes their values to a step."""
    settings = Settings()
    return {
        "attributes": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            examples=form_options.attributes(settings),
            title="Attributes",
            description="Tag only these attributes of unchanged products again; empty means all. New and changed products "
            "always get every attribute.",
        ),
        "model": Param(
            CHAMPION,
            type="string",
            enum=[CHAMPION, *form_options.model_versions(settings)],
            title="Model version",
            description="Products that another version tagged are tagged again by this one.",
        ),
        "retag": Param(
            False, type="boolean", title="Tag every product again", description="Also tag products that did not change."
        ),
        "allow_removals": Param(
            False,
            type="boolean",
            title="Allow removals",
            description="Continue even if the night removes more products than TAGGING_MAX_REMOVED_SHARE allows.",
        ),
    }


# The form's values as arguments of a step. Empty arguments are left out.
NIGHT_ARGUMENTS = (
    "{{ '--retag' if params.retag else '--no-retag' }}",
    f"{{{{ '' if params.model == '{CHAMPION}' else '--model=' ~ params.model }}}}",
    "{{ '--allow-removals' if params.allow_removals else '' }}",
    "{{ '--attributes=' ~ params.attributes | join(',') if params.attributes else '' }}",
)

TASK_DEFAULTS: dict[str, Any] = {
    "owner": "catalog",
    "retries": 2,
    "retry_delay": timedelta(seconds=float(os.environ.get("TAGGING_RETRY_DELAY", "60"))),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=15),
    "execution_timeout": timedelta(hours=2),
    "on_failure_callback": alert,
}

# Every DAG starts in 2026, does not catch up, and gives its tasks the defaults above.
DAG_DEFAULTS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=UTC),
    "catchup": False,
    "default_args": TASK_DEFAULTS,
}
