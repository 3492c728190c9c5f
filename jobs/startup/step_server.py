"""Server that forks steps from a process with their libraries loaded; `jobs.startup.step_client` says why."""

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
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from setproctitle import getproctitle, setproctitle

import jobs
from jobs.startup.fast_exit import FastExit
from jobs.startup.step_client import ENDED, GRACE_SECONDS, LIBRARIES, STARTED, end_group

log = logging.getLogger(__name__)

# Maximum size of a request. Linux limits the arguments and environment of a process to a quarter of its stack size.
_MOST_BYTES: Final = 8 * 2**20
_SHOWN: Final = 300  # characters of an error
_REQUEST_SECONDS: Final = 5.0  # the time that a caller has to send its request


@dataclass(frozen=True, slots=True)
class _Request:
    """A request of a caller to start a step."""

    connection: socket.socket
    pipes: tuple[int, int]
    arguments: list[str]
    environment: dict[str, str]
    cwd: str


def _parse_request(line: bytes) -> tuple[list[str], dict[str, str], str]:
    """Return the arguments, the environment and the folder of a request. Raises ValueError if it is malformed."""
    if not line.endswith(b"\n"):
        raise ValueError(f"a request is one line of at most {_MOST_BYTES:,} bytes")
    fields = json.loads(line)
    if not isinstance(fields, dict) or fields.keys() != {"arguments", "environment", "cwd"}:
        raise ValueError("a request is a JSON object with arguments, environment and cwd")
    arguments, environment, cwd = fields["arguments"], fields["environment"], fields["cwd"]
    if not isinstance(arguments, list) or not all(_is_text(each) for each in arguments):
        raise ValueError("arguments must be a list of texts")
    if not isinstance(environment, dict) or not all(
        name and "=" not in name and _is_text(name) and _is_text(value) for name, value in environment.items()
    ):
        raise ValueError("environment must be an object of texts, without empty names and without = in names")
    if not _is_text(cwd):
        raise ValueError("cwd must be a text")
    return arguments, environment, cwd


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


@dataclass(slots=True, eq=False)
class _Running:
    """A running step, and the connection to its caller."""

    pid: int
    ended: int  # a file descriptor that becomes readable when the step ends
    connection: socket.socket
    abandoned: bool = False  # True if its caller is gone
    force_at: float | None = None  # the time when it is killed


class Server:
    """A server that forks steps until its standard input ends."""

    def __init__(self, address: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(address))
        self._listener.listen(64)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        self._running: list[_Running] = []
        self._end_requested = False

    def serve(self, libraries: Sequence[str]) -> _Request | None:
        """Load the libraries, then answer requests. Return None at the end, and in each fork its request.

        A request that arrives during the import of a library is answered after that import.
        """
        for library in libraries:
            start = time.perf_counter()
            try:
                importlib.import_module(library)
            except Exception as error:  # a step that needs the library will report the error
                log.warning("%s is not loaded: %r", library, error)
            log.info("%s: %.1f s", library, time.perf_counter() - start)
            if (request := self._handle_events(0.0)) is not None:
                return request
        gc.collect()
        gc.freeze()  # the garbage collectors of the forks then do not write to shared memory pages
        while not self._end_requested:
            if (request := self._handle_events(None)) is not None:
                return request
        return None

    def close(self) -> None:
        """End all steps: first by SIGTERM, then by SIGKILL."""
        self._selector.unregister(self._listener)
        self._selector.unregister(0)
        self._listener.close()
        for running in self._running:
            end_group(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._running and (left := deadline - time.monotonic()) > 0:
            self._handle_events(left)
        for running in self._running:
            end_group(running.pid, signal.SIGKILL)

    def _handle_events(self, timeout: float | None) -> _Request | None:
        """Wait for events and handle them. Return None, and in a fork its request."""
        due = [running.force_at for running in self._running if running.force_at is not None]
        if due and timeout is None:
            timeout = max(0.0, min(due) - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                if (request := self._fork_step()) is not None:
                    return request
            elif key.fileobj == 0:
                self._end_requested |= not os.read(0, 1024)
            elif key.data in self._running:  # its other descriptor may have reported its end just before
                if key.fileobj == key.data.ended:
                    self._finish(key.data)
                else:
                    self._abandon(key.data)
        for running in self._running:
            if running.force_at is not None and running.force_at <= time.monotonic():
                end_group(running.pid, signal.SIGKILL)
                running.force_at = None
        return None

    def _fork_step(self) -> _Request | None:
        connection, _ = self._listener.accept()
        pipes: list[int] = []
        try:
            connection.settimeout(_REQUEST_SECONDS)
            _, pipes, _, _ = socket.recv_fds(connection, 1, 2)
            with connection.makefile("rb") as lines:
                fields = _parse_request(lines.readline(_MOST_BYTES + 1))
            request = _Request(connection, (pipes[0], pipes[1]), *fields)
            connection.settimeout(None)
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
        except (OSError, ValueError, IndexError, RecursionError, MemoryError) as error:
            log.warning("a step was not started: %r", error)
            with contextlib.suppress(OSError):
                connection.settimeout(_REQUEST_SECONDS)
                connection.sendall(f"error: {' '.join(str(error).split())[:_SHOWN]}\n".encode(errors="replace"))
            connection.close()  # the caller then starts the step itself
        else:
            if pid == 0:
                self._close_server_descriptors()
                return request
            ended = os.pidfd_open(pid)
            running = _Running(pid, ended, connection)
            self._running.append(running)
            self._selector.register(ended, selectors.EVENT_READ, running)
            self._selector.register(connection, selectors.EVENT_READ, running)
        for pipe in pipes:
            os.close(pipe)
        return None

    def _close_server_descriptors(self) -> None:
        """Close the server's descriptors in a fork."""
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
                running.connection.sendall(b"%s %d\n" % (ENDED, status))
        running.connection.close()

    def _abandon(self, running: _Running) -> None:
        """Begin to end a step whose caller is gone, so that nobody reads its output."""
        self._selector.unregister(running.connection)
        end_group(running.pid, signal.SIGTERM)
        running.abandoned = True
        running.force_at = time.monotonic() + GRACE_SECONDS


def _turn_into_step(request: _Request) -> None:
    """Turn this fork into the requested process: its session, signals, files, environment, folder and title."""
    os.setsid()
    for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(caught, signal.default_int_handler if caught == signal.SIGINT else signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (request.pipes[0], 1), (request.pipes[1], 2)):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.cwd)
    sys.argv = [str(Path(jobs.__file__).with_name("__main__.py")), *request.arguments]
    # The title that `ps` shows for a step that was started directly.
    setproctitle(shlex.join([sys.executable, "-m", "jobs", *request.arguments]))
    request.connection.sendall(b"%s %d\n" % (STARTED, os.getpid()))  # from now on, its session can be ended
    request.connection.close()
    logging.root.handlers.clear()


def serve(address: Path, fast_exit: FastExit, main: Callable[[], Callable[[], object]]) -> None:
    """Answer requests at `address` until standard input ends.

    Each fork runs the function that `main` imports and returns.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    getproctitle()  # locates the title in memory by the environment, so it must be called before that changes
    server, server_pid = Server(address), os.getpid()
    request: _Request | None = None
    try:
        request = server.serve(LIBRARIES)
    finally:
        if os.getpid() == server_pid:
            server.close()
    if request is None:
        fast_exit.run(lambda: None)
    else:
        _turn_into_step(request)
        fast_exit.run(main())
