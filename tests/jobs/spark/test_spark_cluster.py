"""A standalone Spark cluster of two workers on this machine: a night gives the same tables as in one process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pyspark
import pytest

from cma_clip_core.content.paths import parquet_files
from jobs.lake.layout import Lake
from tests.conftest import DAY1, settings_for
from tests.s3 import free_port

pytestmark = pytest.mark.long
SPARK_CLASS = Path(pyspark.__file__).parent / "bin" / "spark-class"


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of two workers with one core each."""
    folder, port, web = tmp_path_factory.mktemp("cluster"), free_port(), free_port()
    environment = os.environ | {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_NO_DAEMONIZE": "1"}
    environment.pop("PYTHONPATH", None)  # executors only have the modules that are sent to them
    address = f"spark://127.0.0.1:{port}"
    with ExitStack() as stack:

        def start(*arguments: str) -> None:
            log = stack.enter_context((folder / f"{arguments[0].split('.')[-1]}-{len(arguments)}.log").open("ab"))
            process = subprocess.Popen(
                [str(SPARK_CLASS), *arguments],
                env=environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            stack.callback(end, process)

        start(
            "org.apache.spark.deploy.master.Master",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--webui-port",
            str(web),
        )
        for n in range(2):
            start(
                "org.apache.spark.deploy.worker.Worker", address, "--cores", "1", "--memory", "2g", "--host", "127.0.0.1",
                "--work-dir", str(folder / f"worker-{n}"), "--webui-port", str(free_port()),
            )  # fmt: skip
        deadline = time.monotonic() + 120
        while workers(web) < 2:
            assert time.monotonic() < deadline, "the workers do not come up"
            time.sleep(0.5)
        yield address


def end(process: subprocess.Popen[bytes]) -> None:
    for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        child.kill()
    process.wait()


def workers(web: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{web}/json/", timeout=5) as answer:
            return answer.read().decode().count('"state" : "ALIVE"')
    except OSError:
        return 0


def step(lake: Lake, *arguments: str, master: str = "local[2]") -> subprocess.CompletedProcess[str]:
    variables = settings_for(lake.root).variables() | {
        "TAGGING_ROOT": str(lake.root), "TAGGING_SPARK_MASTER": master,
        "TAGGING_SPARK_OPTIONS": '{"spark.executor.memory": "1g"}',
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def examples(lake: Lake, run_id: str) -> list[dict[str, Any]]:
    """Return the examples of a run by file."""
    files = parquet_files(lake.examples(run_id))
    return [{"file": lake.relative(file)} | row for file in files for row in pq.read_table(str(file)).to_pylist()]


def test_an_executor_that_is_killed_in_preprocess_changes_nothing(lake: Lake, master: str) -> None:
    """The other worker repeats the tasks of the one that died."""
    import json
    import shutil

    step(lake, "validate", "--ds", DAY1, master=master)
    shutil.rmtree(lake.all_examples)  # the examples of the training, so that the plan makes all again
    run_id = json.loads(step(lake, "plan", "--ds", DAY1, master=master).stdout.splitlines()[-1])["run_id"]
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in psutil.process_iter(["cmdline"]):
                if "CoarseGrainedExecutorBackend" in " ".join(process.info["cmdline"] or []) and process.children():
                    process.kill()
                    killed.append(process.pid)
                    return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    step(lake, "preprocess", "--run", run_id, master=master)
    killer.join()
    assert killed, "no executor was at work"
    there = examples(lake, run_id)
    assert there
    shutil.rmtree(lake.examples(run_id))
    step(lake, "preprocess", "--run", run_id)
    assert examples(lake, run_id) == there
