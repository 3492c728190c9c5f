"""Client of the step server, which forks steps from one process that has their libraries loaded.

Python needs five seconds to import torch and the dependencies of open_clip, and four for Great Expectations. That is
longer than tagging a small shard. A server, started together with Airflow on its machine, imports them once. The server
itself starts no worker threads and uses no GPU, so that its forks can. This project's own modules are imported by each
step.

    server = step_client.launch(folder / "steps.sock", log, os.environ)   # beside Airflow
    step = step_client.start(address, ["tag", "--run", run], os.environ, cwd)  # as subprocess.Popen with pipes

In all other respects a step is the same as ``python -m jobs``. It has the caller's environment and folder, an exit
status, and its own session, so that all its processes can be ended together. A step is ended when its caller or the
server is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

VARIABLE: Final = "TAGGING_STEP_SERVER"  # the environment variable by which callers find the server's address
LIBRARIES: Final = (  # in the order in which a night needs them
    "pyarrow.dataset",
    "pyspark.sql",
    "duckdb",
    "great_expectations.expectations",
    "torch",
    "open_clip",
)
# In the log of a task, each refresh of a progress bar is a line. So they are rare. tqdm reads these when it is
# imported.
LINES_OF_PROGRESS: Final = {
    "TAGGING_PROGRESS": "true", "TQDM_MININTERVAL": "30", "TQDM_ASCII": " #", "TQDM_NCOLS": "100",
}  # fmt: skip
GRACE_SECONDS: Final = 10.0  # between SIGTERM and SIGKILL
STARTED, ENDED = b"started", b"ended"  # the first word of an answer; a process id or an exit status follows
_ANSWER_SECONDS: Final = 60.0  # for the server to start a step; it may be loading a library, which takes a few seconds


def supported() -> bool:
    """Return whether this system supports the server, which needs Linux's file descriptors for processes."""
    return hasattr(os, "pidfd_open") and hasattr(socket, "recv_fds")


def launch(address: Path, log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server that answers at `address`, in a folder that only this user can enter.

    The server ends when its standard input closes.
    """
    with log_file.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.step_server_main", str(address)],
            cwd=Path(__file__).resolve().parents[2],  # where Python finds this project's modules
            env={**LINES_OF_PROGRESS, **environment}, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


class Step:
    """A step started by the server, with the part of the interface of `subprocess.Popen` that callers need."""

    def __init__(self, connection: socket.socket, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._connection = connection
        # A signal handler may call `wait` while `wait` is running already. Joins of one thread can be nested.
        self._reader = threading.Thread(target=self._read, name=f"step {pid}", daemon=True)
        self._reader.start()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal, like `subprocess.Popen.wait`.

        Raises:
            subprocess.TimeoutExpired: the step has not ended within `timeout` seconds.
        """
        self._reader.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("step", timeout or 0.0)
        return self.returncode

    def _read(self) -> None:
        with self._connection:
            answer = _read_line(self._connection)
        status = _parse_number(answer, ENDED)
        if status is None:  # the server was killed, and could not end its steps
            end_group(self.pid, signal.SIGKILL)
        self.returncode = -signal.SIGKILL if status is None else status


def start(address: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path) -> Step:
    """Start ``python -m jobs`` with `arguments` by the server at `address`.

    Raises:
        OSError: no server answers at `address`, or it could not start the step.
    """
    request = json.dumps({"arguments": list(arguments), "environment": dict(environment), "cwd": str(cwd)})
    connection = socket.socket(socket.AF_UNIX)
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    try:
        connection.settimeout(_ANSWER_SECONDS)
        connection.connect(str(address))
        socket.send_fds(connection, [b"\n"], [out_end, err_end])
        connection.sendall(request.encode() + b"\n")
        answer = _read_line(connection)
        pid = _parse_number(answer, STARTED)
        if pid is None:  # an error, or "ended": the fork ended before it became the step
            reason = answer.decode(errors="replace").removeprefix("error: ")
            raise OSError(f"the step server at {address} did not start the step{f': {reason}' if reason else ''}")
        connection.settimeout(None)
    except OSError:
        connection.close()
        os.close(out)
        os.close(err)
        raise
    finally:
        os.close(out_end)
        os.close(err_end)
    opened = [os.fdopen(end, encoding="utf-8", errors="backslashreplace") for end in (out, err)]
    return Step(connection, pid, *opened)


def _parse_number(answer: bytes, word: bytes) -> int | None:
    """Return the number that follows `word` in an answer, or None if the answer has another form."""
    number = answer.removeprefix(word + b" ")
    return int(number) if number != answer and number.removeprefix(b"-").isdigit() else None


def _read_line(connection: socket.socket) -> bytes:
    """Return the next line, or nothing if the other side is gone. No byte after the line is read."""
    line = b""
    while not line.endswith(b"\n"):
        with contextlib.suppress(ConnectionResetError):
            if byte := connection.recv(1):
                line += byte
                continue
        return b""
    return line.strip()


def end_group(pid: int, sent: signal.Signals) -> None:
    """Send a signal to all processes of a step."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sent)
