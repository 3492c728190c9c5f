"""The Spark session: the death of its JVM gives an error with a remedy, not a traceback of sockets.

Run with ``make test TESTS=tests/jobs/spark/test_sessions.py``.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.lake.layout import Lake
from jobs.startup import class_archive
from tests.conftest import DAY1, FOR_FEW_ROWS, write_raw

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.long
@pytest.mark.spark
def test_dead_jvm_is_reported_and_the_step_is_tried_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    write_raw(lake, DAY1, [{"product_id": f"p{i}", "title": "Shirt"} for i in range(2000)])
    command = ["-m", "jobs", "--root", str(lake.root), "--spark-master", "local[1]", "validate", "--ds", DAY1]
    with subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as step:
        kill_jvm_at_work(psutil.Process(step.pid))
        _, log = step.communicate(timeout=300)
    assert re.match(r"error: Spark's JVM ended .*TAGGING_SPARK_MEMORY", log.splitlines()[-1])
    assert step.returncode == 1  # Airflow retries; 2 would be final


def kill_jvm_at_work(step: psutil.Process) -> None:
    """Kill the JVM of a step once it has Python workers."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for process in step.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # the tests that start the JVM
                if "jobs.nightly.spark_worker_daemon" in process.cmdline():
                    process.parent().kill()
                    return
        time.sleep(0.02)
    raise AssertionError("the step's JVM never had a Python worker")


@pytest.mark.spark
def test_given_options_override_the_defaults(spark_session: Any) -> None:
    for name, value in FOR_FEW_ROWS.items():
        assert spark_session.conf.get(name) == value


@pytest.mark.spark
def test_a_small_catalogs_queries_are_interpreted(spark_session: Any) -> None:
    assert spark_session.conf.get("spark.sql.codegen.wholeStage") == "false"


@pytest.mark.spark
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_class_archive_of_the_installation_is_mapped(spark_session: Any) -> None:
    assert class_archive.path().is_file(), "`make install` records it"
    maps = Path(f"/proc/{spark_session.sparkContext._gateway.proc.pid}/maps").read_text()
    assert str(class_archive.path()) in maps
