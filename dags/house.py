"""What all DAGs share: how their tasks are retried and who is told, the day a run is for, errors of the jobs. No DAG."""

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
    if shard := getattr(task, "shard", None):
        name += f" (shard {shard})"
    arguments = [str(argument) for argument in getattr(task, "arguments", ())]
    if not arguments:  # a task that runs no step: its day is that of the run
        with contextlib.suppress(Exception):
            arguments = ["--ds", ti.xcom_pull(task_ids="resolve_day")]
    settings = Settings()
    subject, text = alerts.of_failure(
        settings,
        dag=ti.dag_id,
        task=name,
        arguments=arguments,
        error=str(context.get("exception") or "its log says why"),
        log_url=ti.log_url,
    )
    alerts.send(settings, subject, text)


CHAMPION = "champion"

# Tasks that one task can be mapped into: Airflow refuses a longer list.
MOST_TASKS = conf.getint("core", "max_map_length", fallback=1024)


def asked_of_a_night() -> dict[str, Param]:
    """Return the form's fields of what may be asked of a night, beside its day; `ASKED` hands them to a step."""
    settings = Settings()
    return {
        "attributes": Param(
            None,
            type=["null", "array"],
            items={"type": "string"},
            examples=form_options.attributes(settings),
            title="Attributes",
            description="Of products that did not change, tag these alone again. Empty: all. New and changed products "
            "are always tagged whole.",
        ),
        "model": Param(
            CHAMPION,
            type="string",
            enum=[CHAMPION, *form_options.model_versions(settings)],
            title="Model version",
            description="Products that another version tagged are tagged again by this one.",
        ),
        "retag": Param(
            False, type="boolean", title="Tag every product again", description="Also those that did not change."
        ),
        "allow_removals": Param(
            False,
            type="boolean",
            title="Allow removals",
            description="Go on even if more products are removed than a night may by itself.",
        ),
    }


# What was asked, as arguments of a step; one that is empty is left out.
ASKED = (
    "{{ '--retag' if params.retag else '--no-retag' }}",
    f"{{{{ '' if params.model == '{CHAMPION}' else '--model=' ~ params.model }}}}",
    "{{ '--allow-removals' if params.allow_removals else '' }}",
    "{{ '--attributes=' ~ params.attributes | join(',') if params.attributes else '' }}",
)

DEFAULTS: dict[str, Any] = {
    "owner": "catalog",
    "retries": 2,
    "retry_delay": timedelta(seconds=float(os.environ.get("TAGGING_RETRY_DELAY", "60"))),
    "retry_exponential_backoff": 2.0,
    "max_retry_delay": timedelta(minutes=15),
    "execution_timeout": timedelta(hours=2),
    "on_failure_callback": alert,
}

# Of every DAG: it begins this year, does not catch up, and its tasks have the defaults above.
HOUSE: dict[str, Any] = {"start_date": datetime(2026, 1, 1, tzinfo=UTC), "catchup": False, "default_args": DEFAULTS}
