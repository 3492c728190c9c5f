"""A real S3 server on loopback (versitygw, `make s3-server`), and a proxy before it that fails as networks do."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest

BUCKET = "lake"
KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "test-secret-of-no-use", "AWS_REGION": "us-east-1"}
TOKEN = "what-was-sent-is-sent-back"  # in what a server says of a request that it refuses, as S3 does
Fault = Literal["503", "403", "expired", "lost", "cut", "slow"]


_REFUSALS = {"503": (503, "SlowDown"), "403": (403, "AccessDenied"), "expired": (400, "ExpiredToken")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def executable() -> str:
    """Return the server's program; skip the test where there is none."""
    beside = Path(sys.executable).with_name("versitygw")
    found = os.environ.get("VERSITYGW") or (str(beside) if beside.exists() else shutil.which("versitygw"))
    if not found:
        pytest.skip("no versitygw: `make s3-server` installs it (needs Go)")
    return found


@contextmanager
def server(folder: Path, *, log: Path | None = None, users: Path | None = None) -> Iterator[str]:
    """Run a server whose buckets are the folders in `folder`; yield its address. Its requests go to the file `log`.

    With a folder for `users` it has other users than its root, and no bucket yet.
    """
    program = executable()
    (folder if users else folder / BUCKET).mkdir(parents=True)
    if users:
        users.mkdir()
    address = f"127.0.0.1:{free_port()}"
    names = {"ROOT_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
    process = subprocess.Popen(
        [
            program, "--port", address, "--quiet", "--keep-alive", "--health", "/health",
            *(["--access-log", str(log)] if log else []), *(["--iam-dir", str(users)] if users else []), "posix", str(folder),
        ],
        env=os.environ | names, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while not _is_up(address):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(process.communicate()[0].decode(errors="replace"))
            time.sleep(0.05)
        yield f"http://{address}"
    finally:
        process.kill()
        process.communicate()


def _is_up(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


@dataclass
class Proxy:
    """A proxy between client and server. `fault` decides for each request what becomes of it."""

    address: str
    fault: Callable[[str, str], Fault | None] = field(default=lambda *_: None)
    seen: list[tuple[str, str]] = field(default_factory=list)  # method and path of each request


@contextmanager
def proxy(upstream: str, *, slow_seconds: float = 1.0) -> Iterator[Proxy]:
    """Run a proxy before the server at `upstream`."""
    host = urlsplit(upstream).netloc
    found = Proxy("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            path = urlsplit(self.path).path
            found.seen.append((self.command, self.path))
            fault = found.fault(self.command, path)
            length = int(self.headers.get("Content-Length") or 0)
            if fault == "cut":
                self.rfile.read(length // 2)
                self.close_connection = True
                return
            body = self.rfile.read(length)
            if fault in _REFUSALS:
                status, code = _REFUSALS[fault]
                sent = f"<AWSAccessKeyId>{KEYS['AWS_ACCESS_KEY_ID']}</AWSAccessKeyId><Token-0>{TOKEN}</Token-0>"
                body = f"<Error><Code>{code}</Code><Message>so it is</Message>{sent}</Error>"
                self._answer(status, {}, body.encode() if self.command != "HEAD" else b"")
                return
            if fault == "slow":
                time.sleep(slow_seconds)
            connection = http.client.HTTPConnection(host, timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                if fault == "lost":
                    self.close_connection = True
                    return
                self._answer(answer.status, dict(answer.getheaders()), data)
            finally:
                connection.close()

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    found.address = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        running.shutdown()
        running.server_close()
