"""Steps forked from a process with loaded libraries: they behave like `python -m jobs`, and end when they should."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

from jobs.lake.layout import Lake
from jobs.settings import Settings
from jobs.startup import step_client
from tests.conftest import DAY1, settings_for

REPOSITORY = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not step_client.supported(), reason="needs Linux")


def run(address: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    step = step_client.start(address, arguments, os.environ | variables, REPOSITORY)
    with step.stdout, step.stderr:
        out, err = step.stdout.read(), step.stderr.read()
    return step.wait(60), out, err


def by_itself(*arguments: str, **variables: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], cwd=REPOSITORY, env=os.environ | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("tag", "--help"),
        ("models", "list"),
        ("plan", "--ds", "yesterday"),
        ("no-such-step",),
        ("report", "--run", "none"),
    ],
    ids=" ".join,
)
def test_a_step_prints_and_returns_the_same_as_without_the_server(
    step_server_address: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    variables = {"TAGGING_ROOT": str(tmp_path / "lake"), "COLUMNS": "100"}
    code, out, err = run(step_server_address, *arguments, **variables)
    assert (code, out, err) == by_itself(*arguments, **variables)


@pytest.mark.long
def test_a_night_by_forked_steps(step_server_address: Path, lake: Lake, first_night: tuple[Lake, Settings]) -> None:
    """Spark's JVM, its Python workers and torch work in forks as elsewhere."""
    variables = settings_for(lake.root).variables() | {"TAGGING_ROOT": str(lake.root)}

    def step(*arguments: str) -> dict[str, Any]:
        code, out, err = run(step_server_address, *arguments, **variables)
        assert code == 0, err
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    step("validate", "--ds", DAY1)
    planned = step("plan", "--ds", DAY1)
    step("preprocess", "--run", planned["run_id"])
    for shard in planned["shards"]:
        step("tag", "--run", planned["run_id"], "--shard", str(shard))
    assert step("publish", "--run", planned["run_id"])["run_id"] == planned["run_id"]
    assert decisions(lake) == decisions(first_night[0])


def decisions(lake: Lake) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        rows = connection.read_parquet(lake.current_lines())
        return sorted(rows.project("product_id, attribute, value, source, round(confidence, 3)").fetchall(), key=str)


def test_ended_as_airflow_ends_it(step_server_address: Path, tmp_path: Path) -> None:
    """The step has its own session, and the answer reports the signal."""
    step = started_sample(step_server_address, tmp_path)
    assert os.getsid(step.pid) == step.pid
    assert " -m jobs sample-catalog " in " ".join(psutil.Process(step.pid).cmdline())
    with pytest.raises(subprocess.TimeoutExpired):
        step.wait(0.05)
    os.killpg(step.pid, signal.SIGKILL)
    assert step.wait(10) == -signal.SIGKILL


def test_a_caller_that_is_gone_takes_its_step_along(step_server_address: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from jobs.startup import step_client\n"
        f"step = step_client.start(Path({str(step_server_address)!r}), {(*SLOW, str(tmp_path / 'catalog'))!r}, os.environ, Path('.'))\n"
        "print(step.pid, flush=True); step.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        step = psutil.Process(int(caller.stdout.readline()))
        caller.kill()
    gone(step)


@pytest.mark.parametrize("end", [subprocess.Popen.terminate, subprocess.Popen.kill], ids=["terminated", "killed"])
def test_a_server_that_ends_takes_its_steps_along(end: Any, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="steps-") as folder:
        address = Path(folder) / "socket"
        process = step_client.launch(address, Path(folder) / "log", os.environ)
        while not address.exists():
            time.sleep(0.05)
        step = started_sample(address, tmp_path)
        end(process)
        process.wait(30)
        assert step.wait(10) < 0
        gone(psutil.Process(step.pid) if psutil.pid_exists(step.pid) else None)
    with pytest.raises(OSError, match="No such file"):
        step_client.start(address, ["--help"], os.environ, REPOSITORY)


@pytest.mark.parametrize(
    "request_line",
    [
        b"[]", b"null", b"7", b'"tag"', b"{}", b"no json", b"\xff\xfe", b"[" * 100_000,
        b'{"arguments": "tag", "environment": {}, "cwd": "/"}',
        b'{"arguments": [1], "environment": {}, "cwd": "/"}',
        b'{"arguments": [], "environment": [], "cwd": "/"}',
        b'{"arguments": [], "environment": {"A=": "b"}, "cwd": "/"}',
        b'{"arguments": [], "environment": {"A": null}, "cwd": "/"}',
        b'{"arguments": [], "environment": {}, "cwd": null}',
        b'{"arguments": ["a\\u0000b"], "environment": {}, "cwd": "/"}',
    ],
    ids=lambda line: repr(line[:50]),
)  # fmt: skip
def test_a_malformed_request_is_answered_with_an_error_and_the_server_lives_on(
    step_server_address: Path, request_line: bytes
) -> None:
    out, out_end = os.pipe()
    with socket.socket(socket.AF_UNIX) as connection, os.fdopen(out), os.fdopen(out_end, "w"):
        connection.settimeout(30)
        connection.connect(str(step_server_address))
        socket.send_fds(connection, [b"\n"], [out_end, out_end])
        connection.sendall(request_line + b"\n")
        answer = b""
        while data := connection.recv(1000):
            answer += data
    assert answer.startswith(b"error: ")
    assert answer.count(b"\n") == 1
    assert run(step_server_address, "tag", "--help")[0] == 0


def test_a_caller_gets_the_reason_why_its_step_was_not_started(step_server_address: Path) -> None:
    with pytest.raises(OSError, match="did not start the step: arguments must be a list of texts"):
        step_client.start(step_server_address, ["a\0b"], os.environ, REPOSITORY)


def test_a_caller_without_pipes_or_one_that_hangs_up_does_no_harm(step_server_address: Path) -> None:
    for sent in (b"", b"\n", b'\n{"arguments": '):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(step_server_address))
            connection.sendall(sent)
    assert run(step_server_address, "tag", "--help")[0] == 0


@pytest.mark.parametrize(
    ("environment", "cwd"), [({}, "/nowhere"), ({"NAME": "\ud800"}, "/")], ids=["no such folder", "no such character"]
)
def test_a_step_that_could_not_begin_is_not_ended_as_a_process(
    step_server_address: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], cwd: str
) -> None:
    """The exit status 1 must not be read as a process id: the caller would end process group 1 of the machine."""
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("a process was ended"))
    with pytest.raises(OSError, match="did not start the step"):
        step_client.start(step_server_address, ["--help"], environment, Path(cwd))


SLOW = ("sample-catalog", "--products", "1000000")


def started_sample(address: Path, tmp_path: Path) -> step_client.Step:
    return step_client.start(address, [*SLOW, str(tmp_path / "catalog")], os.environ, REPOSITORY)


def gone(process: psutil.Process | None) -> None:
    if process is not None:
        process.wait(step_client.GRACE_SECONDS + 10)
