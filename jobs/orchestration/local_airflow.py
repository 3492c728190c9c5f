"""Airflow with the DAGs on one machine: sets up pool and connection, starts all parts, prints address and login."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from jobs.errors import JobError
from jobs.lake import storage
from jobs.orchestration import airflow_roles
from jobs.runtime import process_pool
from jobs.runtime.machine import cores
from jobs.settings import Settings
from jobs.startup import step_client

REPOSITORY: Final = Path(__file__).resolve().parents[2]
CPU_SLOTS: Final = 2  # shards tagged in parallel without a GPU; they share the cores
CONNECTION: Final = "catalog_lake"  # Airflow connection in which the sensor looks for a day's export
START_SECONDS: Final = 300
PASSWORDS: Final = "simple_auth_manager_passwords.json.generated"


def gpus() -> int:
    """Return the number of NVIDIA GPUs of this machine, without loading torch, which takes seconds."""
    return len([node for node in Path("/dev").glob("nvidia[0-9]*") if node.name[6:].isdigit()])


def slots(settings: Settings) -> int:
    """Return the number of shards to tag at once: one per GPU; on a CPU a few, so that one runs while another starts."""
    if settings.device == "cuda" or (settings.device == "auto" and gpus()):
        return max(1, gpus())
    return process_pool.default_processes(CPU_SLOTS)


def environment(settings: Settings, folder: Path, port: int, gpu_slots: int) -> dict[str, str]:
    """Return the environment variables of an Airflow for this lake, to be added to those of the caller.

    Variables AIRFLOW*, TAGGING_* and OMP_* of the caller, and its flags, take precedence.

    Args:
        settings: name the lake.
        folder: home of the Airflow.
        port: port of its pages and API.
        gpu_slots: tasks that tag or train at once; they share the cores.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith(("AIRFLOW", "TAGGING_", "OMP_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {
        "PATH": path,  # `airflow standalone` starts its parts by name
        **home(folder),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "dags" / "plugins"),
        "AIRFLOW__CORE__PARALLELISM": str(max(4, 2 * cores())),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": f"http://127.0.0.1:{port}",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__API__WORKERS": "1",
        "OMP_NUM_THREADS": str(process_pool.threads_of_each(gpu_slots)),
        "TAGGING_LATE_AFTER_MINUTES": "240",
    } | given | settings.variables() | {"TAGGING_ROOT": str(settings.root)}  # fmt: skip


def home(folder: Path) -> dict[str, str]:
    """Return the variables of an Airflow that has its home in `folder` and only the DAGs of this project."""
    return {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }


def connection(settings: Settings) -> dict[str, str]:
    """Return the variable that defines the connection to the lake, for an Airflow without this connection in its database."""
    return {f"AIRFLOW_CONN_{CONNECTION.upper()}": json.dumps(_connection(settings))}


def _connection(settings: Settings) -> dict[str, object]:
    return {"conn_type": "fs", "description": "The lake's folder", "extra": {"path": str(settings.root)}}


def set_up(settings: Settings, variables: Mapping[str, str], gpu_slots: int | None = None) -> None:
    """Create or update Airflow's database, the pool `gpu`, the connection to the lake and, with FAB, the roles.

    Args:
        settings: name the lake.
        variables: environment of the Airflow to set up.
        gpu_slots: tasks that tag or train at once, over all workers; None: as many as `slots` gives for this machine.

    Raises:
        JobError: a command of Airflow failed; its output is in the message.
    """
    _airflow(variables, "db", "migrate")
    count = str(slots(settings) if gpu_slots is None else gpu_slots)
    _airflow(variables, "pools", "set", "gpu", count, "Tasks that tag or train: one slot per GPU")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "connections.json"
        file.write_text(json.dumps({CONNECTION: _connection(settings)}))
        _airflow(variables, "connections", "import", str(file), "--overwrite")
    if airflow_roles.uses_fab(variables):
        _python(variables, "jobs.orchestration.airflow_roles")


def _airflow(variables: Mapping[str, str], *arguments: str) -> None:
    _python(variables, "airflow", *arguments)


def _python(variables: Mapping[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=REPOSITORY,
        env=dict(variables), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise JobError(f"`{' '.join(arguments[:4])}` failed:\n{done.stdout[-3000:]}")


def start(
    settings: Settings, folder: Path, port: int, gpu_slots: int | None = None, *, keep_loaded: bool = True
) -> None:
    """Start Airflow and wait until it is stopped (Ctrl-C, SIGTERM). All its processes end with this one.

    Args:
        settings: settings of the lake and the steps.
        folder: home of the Airflow.
        port: port of its pages and API, open to this machine only.
        gpu_slots: as in `set_up`.
        keep_loaded: also start a step server, if the system supports it.

    Raises:
        JobError: the port is taken, or Airflow ends or does not answer in time; the message names its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _keep_passwords(folder / PASSWORDS)
    gpu_slots = gpu_slots or slots(settings)
    variables = os.environ | environment(settings, folder, port, gpu_slots)
    if _is_answering(port):
        raise JobError(f"port {port} is taken; name another by --port")
    if storage.on_disk(settings.root):
        settings.root.mkdir(parents=True, exist_ok=True)
    print(f"Setting up Airflow in {folder} ...", flush=True)
    set_up(settings, variables, gpu_slots)
    log = folder / "standalone.log"
    with contextlib.ExitStack() as stack:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        if keep_loaded and step_client.supported():
            # The path of a socket must be short, and its folder must be private to this user.
            address = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steps-"))) / "socket"
            variables[step_client.VARIABLE] = str(address)
            stack.callback(end, step_client.launch(address, folder / "steps.log", variables))
        _run(variables, folder, port, log)


def _run(variables: Mapping[str, str], folder: Path, port: int, log: Path) -> None:
    with log.open("a") as output:
        # A session of its own: Airflow leaves its parts running when it ends, so `end` stops the whole group.
        process = subprocess.Popen(
            [sys.executable, "-m", "airflow", "standalone"],
            env=variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, port, log)
        print(_welcome(variables, folder, port, log), flush=True)
        code = process.wait()
        raise JobError(f"Airflow ended with exit code {code}; its log is {log}")
    except KeyboardInterrupt:
        print("\nStopping Airflow ...", flush=True)
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], grace: float = 20.0) -> None:
    """End all processes of a session: with SIGTERM, then after `grace` seconds with SIGKILL."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and _is_alive(process.pid):
            process.poll()  # reaps it
            time.sleep(0.2)
    process.wait()


def _is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _is_answering(port):
        if process.poll() is not None:
            raise JobError(f"Airflow ended with exit code {process.returncode} while it started; its log is {log}")
        if time.monotonic() > deadline:
            raise JobError(f"Airflow does not answer on port {port} after {START_SECONDS} s; its log is {log}")
        time.sleep(0.5)


def _is_answering(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/version", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def _welcome(variables: Mapping[str, str], folder: Path, port: int, log: Path) -> str:
    passwords = folder / PASSWORDS
    login = [f"  {user}: {password}" for user, password in _passwords(passwords).items()]
    return "\n".join(
        [
            "",
            f"Airflow: http://127.0.0.1:{port}",
            "Login:",
            *(login or ["  not needed"]),
            f"Lake: {variables['TAGGING_ROOT']}",
            f"Log: {log}; the tasks' logs are in the UI",
            "The DAGs are paused: switch on the ones you want to run. Ctrl-C stops Airflow.",
        ]
    )


def _keep_passwords(file: Path) -> None:
    """Let only this user read the file into which Airflow writes passwords."""
    file.touch(mode=0o600)
    file.chmod(0o600)  # in case an earlier start created it


def _passwords(file: Path) -> dict[str, str]:
    """Return the passwords that Airflow generated, by user; empty if it needs no login."""
    try:
        passwords: dict[str, str] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return passwords
