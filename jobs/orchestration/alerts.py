"""Alerts about a night that failed or is late: the event, the row counts, and the location of the report.

Every alert is written to the log. It is also sent to the channels that are configured:

* a webhook (TAGGING_ALERT_WEBHOOK) gets a JSON object with `text`, which Slack, Mattermost and Teams' workflows read
* mail goes to TAGGING_ALERT_TO through the server TAGGING_ALERT_SMTP

If an alert cannot be sent, the error is logged; the night does not fail because of it.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import logging
import smtplib
import ssl
import urllib.request
from collections.abc import Callable, Sequence
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from jobs.errors import JobError
from jobs.lake.layout import Lake
from jobs.settings import Settings
from schemas.documents import Plan, Validation

log = logging.getLogger(__name__)

TIMEOUT = 10  # seconds; an alert must not delay the failed task for long


def failure_alert(
    settings: Settings, *, dag: str, task: str, arguments: Sequence[str], error: str, log_url: str
) -> tuple[str, str]:
    """Return the subject and text of the alert about a failed task.

    Args:
        settings: names the lake.
        dag: id of the DAG.
        task: id of the task, with its index if the task is mapped.
        arguments: command line of the step, which names its day or run.
        error: the last message of the step.
        log_url: address of the task's log.
    """
    run_id, ds = _option(arguments, "--run"), _option(arguments, "--ds")
    ds = ds or (run_id or "")[:10]
    lines = [f"{task} failed: {error}", *_rows(Lake(settings.root), ds, run_id), f"Log: {log_url}"]
    return f"{dag}{f', catalog of {ds}' if ds else ''}: {task} failed", "\n".join(lines)


def late_alert(settings: Settings, ds: str, minutes: int) -> tuple[str, str]:
    """Return the subject and text of the alert about a night that is not done `minutes` after its data interval."""
    lines = [
        f"It is not done {minutes} minutes after the end of its data interval.",
        *_rows(Lake(settings.root), ds, None),
    ]
    return f"nightly_tagging, catalog of {ds}: late", "\n".join(lines)


def late(minutes: float, context: dict[str, Any]) -> None:
    """Send an alert about a late night. Airflow calls this at the deadline.

    Backfills send no alert, because their days are long past.

    Args:
        minutes: minutes since the end of the data interval.
        context: Airflow's context. The `dag_run` in it gives the day: `ds` if set, otherwise the start of the data interval.
    """
    run = context.get("dag_run") or {}
    if run.get("run_type") == "backfill":
        return
    ds = (run.get("conf") or {}).get("ds") or str(run.get("data_interval_start") or "")[:10]
    settings = Settings()
    send(settings, *late_alert(settings, ds, round(minutes)))


def send(settings: Settings, subject: str, text: str) -> None:
    """Log an alert and send it to every configured channel. Failures to send are logged, not raised."""
    log.error("ALERT %s\n%s", subject, text)
    if (webhook := settings.alert_webhook) is not None:
        _try("webhook", lambda: _post(webhook.get_secret_value(), f"{subject}\n{text}"))
    if settings.alert_to:
        _try("mail", lambda: _mail(settings, subject, text))


def _rows(lake: Lake, ds: str, run_id: str | None) -> list[str]:
    """Return the day's row counts, as far as they are known, and the pages to look at."""
    lines = []
    with contextlib.suppress(JobError, OSError):
        raw = lake.read_raw_manifest(ds)
        if raw is not None and raw.lost_pictures:
            lines.append(f"Pictures: {raw.lost_pictures:,} of {raw.pictures_named:,} could not be read by the import.")
    with contextlib.suppress(JobError, OSError):  # a damaged document must not stop the alert
        validation: Validation = lake.read_validation(ds)
        lines.append(
            f"Rows: {validation.raw:,} raw, {validation.unparsable:,} unparsable, {validation.quarantined:,} quarantined, "
            f"{validation.valid:,} valid."
        )
        lines += [f"Critical rule: {failure}" for failure in validation.failures]
        lines.append(f"Rules: {lake.root / validation.data_docs_path}")
    if run_id is not None:
        with contextlib.suppress(JobError, OSError):
            plan: Plan = lake.read_plan(run_id)
            lines.append(f"Run {run_id}: {plan.to_tag:,} products to tag in {len(plan.shards)} shards.")
            if plan.held_pictures:
                lines.append(
                    f"{plan.held_pictures:,} products are held: the pictures they were tagged with are missing."
                )
            lines.append(f"Report: {lake.reports(run_id)}")
    try:
        live = lake.current_run()
    except JobError as error:
        lines.append(str(error))
    else:
        lines.append(f"The tables are those of run {live}." if live else "Nothing is published yet.")
    return lines


def _option(arguments: Sequence[str], name: str) -> str | None:
    pairs = itertools.pairwise(arguments)
    return next((value for option, value in pairs if option == name), None)


def _try(channel: str, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:  # a server may answer anything
        # Log only the type: the message may contain the address, which holds a secret.
        log.error("the alert could not be sent by %s: %s", channel, type(error).__name__)


def _post(url: str, text: str) -> None:
    """Send a JSON object with `text`.

    The text may contain words of the shop. Chats read ``<!channel>`` as a call to everybody and ``<address|words>`` as a
    link, so `<`, `>` and `&` are escaped.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("TAGGING_ALERT_WEBHOOK is not an http or https address")
    request = urllib.request.Request(
        url,
        data=json.dumps({"text": html.escape(text, quote=False)}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT):
        pass


def _mail(settings: Settings, subject: str, text: str) -> None:
    """Send a mail through ``smtp://user:password@host:587`` (STARTTLS if a user is given) or ``smtps://...``."""
    if settings.alert_smtp is None:
        raise ValueError("TAGGING_ALERT_TO is set, but TAGGING_ALERT_SMTP is not")
    server = urlsplit(settings.alert_smtp.get_secret_value())
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"] = settings.alert_from
    message["To"] = ", ".join(settings.alert_to)
    message.set_content(text)
    host, secure = server.hostname or "localhost", server.scheme == "smtps"
    connect = smtplib.SMTP_SSL if secure else smtplib.SMTP
    with connect(host, server.port or (465 if secure else 25), timeout=TIMEOUT) as smtp:
        if server.username:
            if not secure:
                smtp.starttls(context=ssl.create_default_context())
            smtp.login(unquote(server.username), unquote(server.password or ""))
        smtp.send_message(message)
