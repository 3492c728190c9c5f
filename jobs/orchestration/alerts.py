"""What people are told when a night fails or is late: what happened, how many rows, where the report is.

An alert is always in the log; where they are set, it also goes to a webhook (TAGGING_ALERT_WEBHOOK: a JSON object with
`text`, which Slack, Mattermost and Teams' workflows read) and by mail (TAGGING_ALERT_TO, by TAGGING_ALERT_SMTP). An alert
that cannot be sent is an error in the log, never one of the night.
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

TIMEOUT = 10  # seconds; an alert must not hold up the task that failed


def of_failure(
    settings: Settings, *, dag: str, task: str, arguments: Sequence[str], error: str, log_url: str
) -> tuple[str, str]:
    """Return subject and text of the alert that a task failed.

    Args:
        settings: names the lake.
        dag: id of the DAG.
        task: id of the task, of a mapped one with its index.
        arguments: of the step's command line; they name its day or run.
        error: what the step said last.
        log_url: page of the task's log.
    """
    run_id, ds = _option(arguments, "--run"), _option(arguments, "--ds")
    ds = ds or (run_id or "")[:10]
    lines = [f"{task} failed: {error}", *_rows(Lake(settings.root), ds, run_id), f"Log: {log_url}"]
    return f"{dag}{f', catalog of {ds}' if ds else ''}: {task} failed", "\n".join(lines)


def of_late_night(settings: Settings, ds: str, minutes: int) -> tuple[str, str]:
    """Return subject and text of the alert that the night of `ds` is not done `minutes` after the day's interval."""
    lines = [
        f"It is not done {minutes} minutes after the end of its data interval.",
        *_rows(Lake(settings.root), ds, None),
    ]
    return f"nightly_tagging, catalog of {ds}: late", "\n".join(lines)


def late(minutes: float, context: dict[str, Any]) -> None:
    """Tell of a night that is not done in time: the callback of Airflow's deadline.

    Args:
        minutes: since the end of its data interval.
        context: Airflow's, of which its `dag_run` is read: the day asked for, else that of its data interval. A backfill's
            days are long past: of those nothing is told.
    """
    run = context.get("dag_run") or {}
    if run.get("run_type") == "backfill":
        return
    ds = (run.get("conf") or {}).get("ds") or str(run.get("data_interval_start") or "")[:10]
    settings = Settings()
    send(settings, *of_late_night(settings, ds, round(minutes)))


def send(settings: Settings, subject: str, text: str) -> None:
    """Log an alert, and send it to whoever is configured. Raises nothing: what cannot be sent is logged."""
    log.error("ALERT %s\n%s", subject, text)
    if (webhook := settings.alert_webhook) is not None:
        _try("webhook", lambda: _post(webhook.get_secret_value(), f"{subject}\n{text}"))
    if settings.alert_to:
        _try("mail", lambda: _mail(settings, subject, text))


def _rows(lake: Lake, ds: str, run_id: str | None) -> list[str]:
    """Return what is known of the day's rows, and where to look."""
    lines = []
    with contextlib.suppress(JobError, OSError):
        raw = lake.read_raw_manifest(ds)
        if raw is not None and raw.lost_pictures:
            lines.append(f"Pictures: {raw.lost_pictures:,} of {raw.pictures_named:,} could not be had by the import.")
    with contextlib.suppress(JobError, OSError):  # a broken document is the night's error, not the alert's
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
                    f"{plan.held_pictures:,} products are held: the pictures they were tagged with are not there."
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


def _try(what: str, act: Callable[[], None]) -> None:
    try:
        act()
    except Exception as error:  # a server's answer may be anything
        # Its text may have the address in it, and that a secret.
        log.error("the alert could not be sent by %s: %s", what, type(error).__name__)


def _post(url: str, text: str) -> None:
    """Send a JSON object with `text`. A shop's words are in it: chats take ``<!channel>`` for everybody and ``<address|words>`` for
    a link, so these marks are escaped as all of them ask for.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("TAGGING_ALERT_WEBHOOK is no http or https address")
    request = urllib.request.Request(
        url,
        data=json.dumps({"text": html.escape(text, quote=False)}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT):
        pass


def _mail(settings: Settings, subject: str, text: str) -> None:
    """Send a mail by ``smtp://user:password@host:587`` (STARTTLS where there is a user) or ``smtps://...``."""
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
