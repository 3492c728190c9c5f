"""The server that forks steps from a process with their libraries loaded (`jobs.startup.step_client` says why)."""

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
from jobs.startup.fast_exit import Leaving
from jobs.startup.step_client import ENDED, GRACE_SECONDS, LIBRARIES, STARTED, end_group

log = logging.getLogger(__name__)

_LONGEST: Final = 8 * 2**20  # bytes of a request: Linux lets a process have a quarter of its stack's
_SHOWN: Final = 300  # characters of an error
_ASKING: Final = 5.0  # seconds that a caller may take to say what it wants


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
            end_group(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while self._running and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        for running in self._running:
            end_group(running.pid, signal.SIGKILL)

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
                end_group(running.pid, signal.SIGKILL)
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
                running.connection.sendall(b"%s %d\n" % (ENDED, status))
        running.connection.close()

    def _abandon(self, running: _Running) -> None:
        """The caller is gone: nobody reads what the step says."""
        self._selector.unregister(running.connection)
        end_group(running.pid, signal.SIGTERM)
        running.abandoned = True
        running.force_at = time.monotonic() + GRACE_SECONDS


def _become(wanted: _Wanted) -> None:
    """Make this fork the process that was asked for."""
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
    sys.argv = [str(Path(jobs.__file__).with_name("__main__.py")), *wanted.arguments]
    setproctitle(shlex.join([sys.executable, "-m", "jobs", *wanted.arguments]))  # as `ps` shows it where it is started
    wanted.connection.sendall(b"%s %d\n" % (STARTED, os.getpid()))  # from now on its session can be ended
    wanted.connection.close()
    logging.root.handlers.clear()


def serve(address: Path, leaving: Leaving, main: Callable[[], Callable[[], object]]) -> None:
    """Answer at `address` until standard input ends; run, in each fork, the function that `main` imports and returns."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    getproctitle()  # it finds where the title is by the environment, as long as that is what it was
    server, server_pid = Server(address), os.getpid()
    wanted: _Wanted | None = None
    try:
        wanted = server.serve(LIBRARIES)
    finally:
        if os.getpid() == server_pid:
            server.close()
    if wanted is None:
        leaving.after(lambda: None)
    else:
        _become(wanted)
        leaving.after(main())
