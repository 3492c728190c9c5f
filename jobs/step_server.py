"""Steps that begin with their libraries loaded: each is forked from one process that imported them.

Python needs five seconds to import torch and what open_clip takes with it, and four for Great Expectations: longer than a
small shard takes to tag. A server, started with Airflow on its machine, imports them once; it starts no threads of work and
touches no GPU, so that its forks can. Our own modules are imported by each step as ever.

    server = step_server.launch(folder / "steps.sock", log, os.environ)   # beside Airflow
    step = step_server.start(address, ["tag", "--run", run], os.environ, cwd)  # as subprocess.Popen with pipes

The step is what ``python -m jobs`` is in every other way: its own session (so that its whole tree can be ended), the
caller's environment and folder, an exit status. Its caller gone, it is ended; the server gone, its steps are.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from setproctitle import getproctitle, setproctitle

log = logging.getLogger(__name__)

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
_LONGEST: Final = 8 * 2**20  # bytes of a request: Linux lets a process have a quarter of its stack's
_STARTED, _ENDED = b"started", b"ended"  # what an answer begins with: a process follows, or its exit status
_SHOWN: Final = 300  # characters of an error
_ASKING: Final = 5.0  # seconds that a caller may take to say what it wants
_ANSWERING: Final = 60.0  # and the server to start it; the longest library loads in a few


def supported() -> bool:
    """Return whether this system has what the server needs (Linux: file descriptors of processes)."""
    return hasattr(os, "pidfd_open") and hasattr(socket, "recv_fds")


def launch(address: Path, log_file: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server that answers at `address`, in a folder of this user alone; it ends with its standard input."""
    with log_file.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.step_server", str(address)],
            cwd=Path(__file__).resolve().parents[1],  # as of a step: this is where it finds our modules
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
        status = _number(answer, _ENDED)
        if status is None:  # the server is gone: ended by force, it could not end its steps
            _end_group(self.pid, signal.SIGKILL)
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
        pid = _number(answer, _STARTED)
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


def _end_group(pid: int, sent: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sent)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a caller asks for, as it came."""

    connection: socket.socket
    pipes: tuple[int, int]
    arguments: list[str]
    environment: dict[str, str]
    cwd: str


def _asked(line: bytes) -> tuple[list[str], dict[str, str], str]:
    """Return arguments, environment and folder of a request. Raises ValueError where it is none."""
    if not line.endswith(b"\n"):
        raise ValueError(f"a request is one line of at most {_LONGEST:,} bytes")
    asked = json.loads(line)
    if not isinstance(asked, dict) or asked.keys() != {"arguments", "environment", "cwd"}:
        raise ValueError("a request is a JSON object with arguments, environment and cwd")
    arguments, environment, cwd = asked["arguments"], asked["environment"], asked["cwd"]
    if not isinstance(arguments, list) or not all(_is_text(each) for each in arguments):
        raise ValueError("arguments are a list of texts")
    if not isinstance(environment, dict) or not all(
        name and "=" not in name and _is_text(name) and _is_text(value) for name, value in environment.items()
    ):
        raise ValueError("an environment is an object of texts, and no name in it is empty or has an =")
    if not _is_text(cwd):
        raise ValueError("cwd is a text")
    return arguments, environment, cwd


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


@dataclass(slots=True, eq=False)
class _Running:
    """A step and who waits for it."""

    pid: int
    ended: int  # descriptor that can be read when it has
    connection: socket.socket
    abandoned: bool = False  # by its caller
    force_at: float | None = None  # when it is ended by force


class Server:
    """Forks steps until its standard input ends."""

    def __init__(self, address: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        self._running: list[_Running] = []
        self._asked_to_end = False

    def serve(self, libraries: Sequence[str]) -> _Wanted | None:
        """Load the libraries, and answer until the end; return None then, and in each fork what it is to run.

        A step that is asked for meanwhile begins when the library that is being loaded is.
        """
        for library in libraries:
            start = time.perf_counter()
            try:
                importlib.import_module(library)
            except Exception as error:  # what needs it will say so
                log.warning("%s is not loaded: %r", library, error)
            log.info("%s: %.1f s", library, time.perf_counter() - start)
            if (wanted := self._turn(0.0)) is not None:
                return wanted
        gc.collect()
        gc.freeze()  # what the forks share is not written to by their collectors
        while not self._asked_to_end:
            if (wanted := self._turn(None)) is not None:
                return wanted
        return None

    def close(self) -> None:
        """End all steps: first in peace, then by force."""
        self._selector.unregister(self._listener)
        self._selector.unregister(0)
        self._listener.close()
        for running in self._running:
            _end_group(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._running and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        for running in self._running:
            _end_group(running.pid, signal.SIGKILL)

    def _turn(self, timeout: float | None) -> _Wanted | None:
        """See to what has happened. In a fork, return what it is to run."""
        due = [running.force_at for running in self._running if running.force_at is not None]
        if due and timeout is None:
            timeout = max(0.0, min(due) - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                if (wanted := self._begin()) is not None:
                    return wanted
            elif key.fileobj == 0:
                self._asked_to_end |= not os.read(0, 1024)
            elif key.data in self._running:  # its other descriptor may have told of its end just before
                if key.fileobj == key.data.ended:
                    self._finish(key.data)
                else:
                    self._abandon(key.data)
        for running in self._running:
            if running.force_at is not None and running.force_at <= time.monotonic():
                _end_group(running.pid, signal.SIGKILL)
                running.force_at = None
        return None

    def _begin(self) -> _Wanted | None:
        connection, _ = self._listener.accept()
        pipes: list[int] = []
        try:
            connection.settimeout(_ASKING)
            _, pipes, _, _ = socket.recv_fds(connection, 1, 2)
            with connection.makefile("rb") as lines:
                asked = _asked(lines.readline(_LONGEST + 1))
            wanted = _Wanted(connection, (pipes[0], pipes[1]), *asked)
            connection.settimeout(None)
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
        except (OSError, ValueError, IndexError, RecursionError, MemoryError) as error:
            log.warning("a step was not started: %r", error)
            with contextlib.suppress(OSError):
                connection.settimeout(_ASKING)
                connection.sendall(f"error: {' '.join(str(error).split())[:_SHOWN]}\n".encode(errors="replace"))
            connection.close()  # the caller starts it itself
        else:
            if pid == 0:
                self._leave_to_parent()
                return wanted
            ended = os.pidfd_open(pid)
            running = _Running(pid, ended, connection)
            self._running.append(running)
            self._selector.register(ended, selectors.EVENT_READ, running)
            self._selector.register(connection, selectors.EVENT_READ, running)
        for pipe in pipes:
            os.close(pipe)
        return None

    def _leave_to_parent(self) -> None:
        """Close, in a fork, what belongs to the server."""
        self._selector.close()
        self._listener.close()
        for running in self._running:
            os.close(running.ended)
            running.connection.close()

    def _finish(self, running: _Running) -> None:
        status = os.waitstatus_to_exitcode(os.waitpid(running.pid, 0)[1])
        self._running.remove(running)
        self._selector.unregister(running.ended)
        os.close(running.ended)
        if not running.abandoned:
            self._selector.unregister(running.connection)
            with contextlib.suppress(OSError):
                running.connection.sendall(b"%s %d\n" % (_ENDED, status))
        running.connection.close()

    def _abandon(self, running: _Running) -> None:
        """The caller is gone: nobody reads what the step says."""
        self._selector.unregister(running.connection)
        _end_group(running.pid, signal.SIGTERM)
        running.abandoned = True
        running.force_at = time.monotonic() + GRACE_SECONDS


def _become(wanted: _Wanted) -> Callable[[], object]:
    """Make this fork the process that was asked for; return the command line's main function."""
    os.setsid()
    for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(caught, signal.default_int_handler if caught == signal.SIGINT else signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (wanted.pipes[0], 1), (wanted.pipes[1], 2)):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(wanted.environment)
    os.chdir(wanted.cwd)
    sys.argv = [str(Path(__file__).with_name("__main__.py")), *wanted.arguments]
    setproctitle(shlex.join([sys.executable, "-m", "jobs", *wanted.arguments]))  # as `ps` shows it where it is started
    wanted.connection.sendall(b"%s %d\n" % (_STARTED, os.getpid()))  # from now on its session can be ended
    wanted.connection.close()
    logging.root.handlers.clear()
    from jobs.cli import main

    return main


if __name__ == "__main__":
    from jobs.leaving import Leaving

    leaving = Leaving()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    getproctitle()  # it finds where the title is by the environment, as long as that is what it was
    server, itself = Server(Path(sys.argv[1])), os.getpid()
    wanted: _Wanted | None = None
    try:
        wanted = server.serve(LIBRARIES)
    finally:
        if os.getpid() == itself:
            server.close()
    if wanted is not None:
        leaving.after(_become(wanted))
    else:
        leaving.after(lambda: None)
