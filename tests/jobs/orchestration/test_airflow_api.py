"""The client of Airflow's API, against a server that starts up like Airflow; tests/ui and tests/e2e use the real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.orchestration.airflow_api import AirflowApi
from tests.s3 import free_port


@contextmanager
def airflow(port: int, answers: Iterator[int], after: float = 0.0) -> Iterator[None]:
    """Start a server that listens after `after` seconds and answers requests for a DAG with these statuses."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/auth/token" else next(answers))
            body = json.dumps({"access_token": "x"}).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    def start() -> None:
        running.append(ThreadingHTTPServer(("127.0.0.1", port), Handler))
        threading.Thread(target=running[0].serve_forever, daemon=True).start()

    running: list[ThreadingHTTPServer] = []
    timer = threading.Timer(after, start)
    timer.daemon = True
    if after:
        timer.start()
    else:
        start()
    try:
        yield
    finally:
        if after:
            timer.join()
        running[0].shutdown()
        running[0].server_close()


def test_airflow_is_waited_for_until_it_knows_the_dag() -> None:
    port = free_port()
    answers = iter([404, 502, 404, 200])
    with airflow(port, answers, after=0.3):
        AirflowApi(f"http://127.0.0.1:{port}").wait_for("nightly", seconds=30, every=0.05)
    assert next(answers, None) is None


def test_waiting_for_an_airflow_that_does_not_start_ends() -> None:
    with pytest.raises(TimeoutError, match=r"does not answer, .*refused.* after 0 s"):
        AirflowApi(f"http://127.0.0.1:{free_port()}").wait_for("nightly", seconds=0.2, every=0.05)
    port = free_port()
    with (
        airflow(port, iter([404] * 100)),
        pytest.raises(TimeoutError, match=r"knows no DAG nightly \(.*404.* after 0 s"),
    ):
        AirflowApi(f"http://127.0.0.1:{port}").wait_for("nightly", seconds=0.4, every=0.1)


def test_a_refusal_of_airflow_is_raised_at_once() -> None:
    port = free_port()
    with airflow(port, iter([403])), pytest.raises(OSError, match="403"):
        AirflowApi(f"http://127.0.0.1:{port}").wait_for("nightly", seconds=30)
