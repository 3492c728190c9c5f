"""Server that forks steps from a process with their libraries loaded; `jobs.startup.step_client` says why."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import select
import shlex
import signal
import socket
import socketserver
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from setproctitle import getproctitle, setproctitle

import jobs
from jobs.startup.fast_exit import FastExit
from jobs.startup.step_client import ENDED, GRACE_SECONDS, LIBRARIES, STARTED, end_group

log = logging.getLogger(__name__)

# Maximum size of a request. Linux limits the arguments and environment of a process to a quarter of its stack size.
_MOST_BYTES: Final = 8 * 2**20
_SHOWN: Final = 300  # characters of an error
_IDLE_SECONDS: Final = 60.0  # between two checks for supervisors that have ended
_REQUEST_SECONDS: Final = 5.0  # the time that a caller has to send its request


class _StepRequest(BaseException):
    """A request to start a step, raised in the process that becomes the step, so that it leaves the server's code."""

    def __init__(self, connection: socket.socket, pipes: Sequence[int], line: bytes) -> None:
        super().__init__("a step")
        self.connection = connection
        self.stdout, self.stderr = pipes
        self.arguments, self.environment, self.cwd = _parse_request(line)


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


class StepServer(socketserver.UnixStreamServer):
    """A server that forks a supervisor for each caller. The supervisor forks the requested step and waits for it.

    A supervisor ends its step when the caller hangs up, or when the server ends or dies, which closes a pipe.
    """

    request_queue_size = 64

    def __init__(self, address: Path) -> None:
        super().__init__(str(address), socketserver.BaseRequestHandler)
        self._supervisors: set[int] = set()
        self._server_is_gone, self._lifeline = os.pipe()  # the first becomes readable when the second is closed

    def serve(self, libraries: Sequence[str]) -> None:
        """Load the libraries and answer requests until standard input ends.

        A request that arrives while a library loads is answered after it.

        Raises:
            _StepRequest: in the process that is to become the requested step.
        """
        for library in libraries:
            start = time.perf_counter()
            try:
                importlib.import_module(library)
            except Exception as error:  # the step that needs the library reports this
                log.warning("%s is not loaded: %r", library, error)
            log.info("%s: %.1f s", library, time.perf_counter() - start)
            if not self._answer(0.0):
                return
        gc.collect()
        gc.freeze()  # the garbage collectors of the forks then do not write to shared memory pages
        while self._answer(_IDLE_SECONDS):
            pass

    def _answer(self, timeout: float) -> bool:
        """Answer a request, if one arrives in time; return whether standard input is still open."""
        ready, _, _ = select.select([self.fileno(), 0], [], [], timeout)
        if self.fileno() in ready:
            self.handle_request()
        self._supervisors = {pid for pid in self._supervisors if os.waitpid(pid, os.WNOHANG)[0] == 0}
        return 0 not in ready or os.read(0, 1024) != b""

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Fork a supervisor for the caller."""
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            self._supervisors.add(pid)
            self.close_request(request)
            return
        supervisor = os.getpid()
        try:
            self._supervise(request)
        finally:
            if os.getpid() == supervisor:
                os._exit(0)

    def shutdown_request(self, request: Any) -> None:
        """Close only the descriptor of this process; other processes still use the connection."""
        self.close_request(request)

    def _supervise(self, connection: socket.socket) -> None:
        """Start the requested step, end it if necessary, and send its exit status. Raises _StepRequest in the step."""
        # The server's group may get this signal. The pipe tells the supervisor when the server ends.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.socket.close()
        os.close(self._lifeline)
        pipes: list[int] = []
        try:
            connection.settimeout(_REQUEST_SECONDS)
            _, pipes, _, _ = socket.recv_fds(connection, 1, 2)
            with connection.makefile("rb") as lines:
                request = _StepRequest(connection, pipes, lines.readline(_MOST_BYTES + 1))
            connection.settimeout(None)
            pid = os.fork()
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            log.warning("a step was not started: %r", error)
            with contextlib.suppress(OSError):
                connection.settimeout(_REQUEST_SECONDS)
                connection.sendall(f"error: {' '.join(str(error).split())[:_SHOWN]}\n".encode(errors="replace"))
            return  # the caller starts the step itself
        if pid == 0:
            os.setsid()
            os.close(self._server_is_gone)
            request.connection = connection.dup()  # the server's code closes the original when the exception leaves it
            raise request
        for pipe in pipes:
            os.close(pipe)
        ended = os.pidfd_open(pid)
        if ended not in select.select([ended, connection.fileno(), self._server_is_gone], [], [])[0]:
            end_group(pid, signal.SIGTERM)
            if not select.select([ended], [], [], GRACE_SECONDS)[0]:
                end_group(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):
            connection.sendall(b"%s %d\n" % (ENDED, status))

    def close(self) -> None:
        """Let the supervisors end all steps, by SIGTERM and after `GRACE_SECONDS` by SIGKILL, and wait for them."""
        self.server_close()
        os.close(self._lifeline)
        for pid in self._supervisors:
            os.waitpid(pid, 0)


def _turn_into_step(request: _StepRequest) -> None:
    """Turn this fork into the requested process: its signals, files, environment, folder and title."""
    for caught in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(caught, signal.default_int_handler if caught == signal.SIGINT else signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (request.stdout, 1), (request.stderr, 2)):
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

    Each step runs the function that `main` imports and returns.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    getproctitle()  # locates the title in memory by the environment, so it must be called before that changes
    server, server_pid = StepServer(address), os.getpid()
    request: _StepRequest | None = None
    try:
        server.serve(LIBRARIES)
    except _StepRequest as raised:
        request = raised
    finally:
        if os.getpid() == server_pid:
            server.close()
    if request is None:
        fast_exit.run(lambda: None)
    else:
        _turn_into_step(request)
        fast_exit.run(main())
