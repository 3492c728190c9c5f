"""Steps that begin with their libraries loaded: each is forked from one process that imported them.

Python needs five seconds to import torch and what open_clip takes with it, and four for Great Expectations: longer than a
small shard takes to tag. A server, started with Airflow on its machine, imports them once; it starts no threads of work and
touches no GPU, so that its forks can. Our own modules are imported by each step as ever.

    server = step_client.launch(folder / "steps.sock", log, os.environ)   # beside Airflow
    step = step_client.start(address, ["tag", "--run", run], os.environ, cwd)  # as subprocess.Popen with pipes

The step is what ``python -m jobs`` is in every other way: its own session (so that its whole tree can be ended), the
caller's environment and folder, an exit status. Its caller gone, it is ended; the server gone, its steps are.
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

VARIABLE: Final = "TAGGING_STEP_SERVER"  # in the environment of who starts steps: the server's address
LIBRARIES: Final = (  # in the order in which a night needs them
    "pyarrow.dataset",
    "pyspark.sql",
    "duckdb",
    "great_expectations.expectations",
    "torch",
    "open_clip",
)
# A bar of progress that is drawn anew ten times a second is a line of a task's log each time. Read as tqdm is imported.
LINES_OF_PROGRESS: Final = {
    "TAGGING_PROGRESS": "true", "TQDM_MININTERVAL": "30", "TQDM_ASCII": " #", "TQDM_NCOLS": "100",
}  # fmt: skip
GRACE_SECONDS: Final = 10.0  # between the request to end and the end by force
STARTED, ENDED = b"started", b"ended"  # what an answer begins with: a process follows, or its exit status
_ANSWERING: Final = 60.0  # and the server to start it; the longest library loads in a few


def supported() -> bool:
    """Return whether this system has what the server needs (Linux: file descriptors of processes)."""
    return hasattr(os, "pidfd_open") and hasattr(socket, "recv_fds")


def launch(address: Path, log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server that answers at `address`, in a folder of this user alone; it ends with its standard input."""
    with log_file.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.step_server_main", str(address)],
            cwd=Path(__file__).resolve().parents[2],  # as of a step: this is where it finds our modules
            env={**LINES_OF_PROGRESS, **environment}, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip


class Step:
    """A step that a server has started; as much of `subprocess.Popen` as is needed of it."""

    def __init__(self, connection: socket.socket, pid: int, stdout: IO[str], stderr: IO[str]) -> None:
        self.pid, self.stdout, self.stderr = pid, stdout, stderr
        self.returncode: int | None = None
        self._connection = connection
        # Whoever waits may be interrupted by a signal whose handler waits too; threads can be joined again.
        self._reader = threading.Thread(target=self._read, name=f"step {pid}", daemon=True)
        self._reader.start()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal, as `subprocess.Popen.wait`.

        Raises:
            subprocess.TimeoutExpired: it has not ended in that many seconds.
        """
        self._reader.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("step", timeout or 0.0)
        return self.returncode

    def _read(self) -> None:
        with self._connection:
            answer = _line(self._connection)
        status = _number(answer, ENDED)
        if status is None:  # the server is gone: ended by force, it could not end its steps
            end_group(self.pid, signal.SIGKILL)
        self.returncode = -signal.SIGKILL if status is None else status


def start(address: Path, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path) -> Step:
    """Start ``python -m jobs`` with `arguments` by the server at `address`.

    Raises:
        OSError: there is no server, or it could not start the step.
    """
    wanted = json.dumps({"arguments": list(arguments), "environment": dict(environment), "cwd": str(cwd)})
    connection = socket.socket(socket.AF_UNIX)
    out, out_end = os.pipe()
    err, err_end = os.pipe()
    try:
        connection.settimeout(_ANSWERING)
        connection.connect(str(address))
        socket.send_fds(connection, [b"\n"], [out_end, err_end])
        connection.sendall(wanted.encode() + b"\n")
        answer = _line(connection)
        pid = _number(answer, STARTED)
        if pid is None:  # "ended": before it was the process that was asked for
            why = answer.decode(errors="replace").removeprefix("error: ")
            raise OSError(f"the step server at {address} did not start the step{f': {why}' if why else ''}")
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


def _number(answer: bytes, word: bytes) -> int | None:
    """Return the number that follows `word` in an answer; None where the answer is another one."""
    found = answer.removeprefix(word + b" ")
    return int(found) if found != answer and found.removeprefix(b"-").isdigit() else None


def _line(connection: socket.socket) -> bytes:
    """Return what comes until the line ends; nothing where the other side is gone. Reads no byte of what follows."""
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
