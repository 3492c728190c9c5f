"""Alerts, to a real webhook and a real mail server on loopback: `pytest tests/jobs/orchestration/test_alerts.py`"""

from __future__ import annotations

import email
import json
import logging
import socketserver
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.orchestration import alerts
from jobs.settings import Settings
from schemas.documents import RawManifest, Validation

DAY = "2026-11-20"


class Webhook(HTTPServer):
    """A server that keeps posted messages and answers with `code`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.posted: list[dict[str, str]] = []
        self.code = 200


class _Post(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Webhook)
        self.server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class MailServer(socketserver.TCPServer):
    """A minimal SMTP server that keeps the messages."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Mail)
        self.messages: list[str] = []


class _Mail(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, MailServer)
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline().strip().upper():
            if line == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), ".")
                self.server.messages.append("\n".join(lines))
            self.wfile.write(b"221 bye\r\n" if line == b"QUIT" else b"250 ok\r\n")
            if line == b"QUIT":
                return


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    yield from served(Webhook())


@pytest.fixture
def mail() -> Iterator[MailServer]:
    yield from served(MailServer())


Server = TypeVar("Server", bound=socketserver.BaseServer)


def served(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def lake_with_a_bad_day(root: Path) -> Lake:
    lake = Lake(root)
    validation = Validation(
        ds=DAY, version="v", passed=False, failures=("row_count: 3 rows, 90 the day before",), raw=3, unparsable=1,
        quarantined=0, superseded=0, valid=2, reasons={}, valid_path="v", quarantine_path="q",
        data_docs_path="reports/docs/index.html", created_at=datetime.now(UTC),
    )  # fmt: skip
    storage.write_document(lake.valid(DAY) / "current.json", validation)
    return lake


def test_an_alert_says_the_step_the_rows_and_where_to_look(tmp_path: Path, webhook: Webhook, mail: MailServer) -> None:
    lake_with_a_bad_day(tmp_path)
    settings = Settings(
        root=tmp_path,
        alert_webhook=f"http://127.0.0.1:{webhook.server_port}/x",
        alert_to="a@shop.example,b@shop.example",
        alert_smtp=f"smtp://127.0.0.1:{mail.server_address[1]}",
    )  # type: ignore[arg-type]
    subject, text = alerts.failure_alert(
        settings, dag="nightly_tagging", task="validate", arguments=["validate", "--ds", DAY], error="a rule\nbroke",
        log_url="http://airflow/log",
    )  # fmt: skip
    alerts.send(settings, subject, text)
    (posted,) = webhook.posted
    (message,) = mail.messages
    mailed = email.message_from_string(message)
    assert mailed["Subject"] == "nightly_tagging, catalog of 2026-11-20: validate failed"
    assert mailed["To"] == "a@shop.example, b@shop.example"
    for sent in (posted["text"], mailed.get_payload(decode=True).decode()):
        assert "validate failed: a rule" in sent
        assert "3 raw, 1 unparsable, 0 quarantined, 2 valid" in sent
        assert "row_count: 3 rows, 90 the day before" in sent
        assert f"{tmp_path}/reports/docs/index.html" in sent
        assert "Nothing is published yet" in sent
        assert "http://airflow/log" in sent


def test_words_of_the_shop_mention_nobody_and_make_no_link(tmp_path: Path, webhook: Webhook) -> None:
    settings = Settings(root=tmp_path, alert_webhook=f"http://127.0.0.1:{webhook.server_port}/x")  # type: ignore[arg-type]
    alerts.send(settings, "plan failed", "line 7 is '<!channel> <https://elsewhere.example|Report>' & more")
    (posted,) = webhook.posted
    assert "&lt;!channel&gt; &lt;https://elsewhere.example|Report&gt;' &amp; more" in posted["text"]


def test_an_alert_counts_the_pictures_that_could_not_be_read(tmp_path: Path) -> None:
    lake = lake_with_a_bad_day(tmp_path)
    raw = RawManifest(
        ds=DAY, source="x", files=(), rows=9, pictures={"added": 1, "known": 2, "missing": 5, "url": 1},
        created_at=datetime.now(UTC),
    )  # fmt: skip
    storage.write_document(lake.raw_manifest(DAY), raw)
    _, text = alerts.late_alert(Settings(root=tmp_path), DAY, 5)
    assert "Pictures: 6 of 9 could not be read by the import." in text


def test_an_alert_that_cannot_be_sent_is_logged_without_its_address(
    tmp_path: Path, webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    webhook.code = 500
    settings = Settings(
        root=tmp_path, alert_webhook=f"http://127.0.0.1:{webhook.server_port}/secret", alert_to="a@shop.example"
    )  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        alerts.send(settings, "subject", "text")
    assert "ALERT subject" in caplog.text
    assert "could not be sent by webhook: HTTPError" in caplog.text
    assert "could not be sent by mail: ValueError" in caplog.text
    assert "secret" not in caplog.text
    assert "secret" not in repr(settings)


def test_the_alert_of_a_late_night_names_the_requested_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TAGGING_ROOT", str(tmp_path))
    for run in ({"conf": {"ds": DAY}}, {"conf": None, "data_interval_start": f"{DAY}T02:00:00Z"}):
        caplog.clear()
        with caplog.at_level(logging.ERROR):
            alerts.late(240.0, {"dag_run": run})
        assert f"catalog of {DAY}: late" in caplog.text
        assert "not done 240 minutes after" in caplog.text


def test_a_backfill_is_never_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TAGGING_ROOT", str(tmp_path))
    run = {"conf": None, "data_interval_start": f"{DAY}T02:00:00Z"}
    with caplog.at_level(logging.ERROR):
        alerts.late(240.0, {"dag_run": run | {"run_type": "backfill"}})
        assert caplog.text == ""
        alerts.late(240.0, {"dag_run": run | {"run_type": "scheduled"}})
    assert "late" in caplog.text
