"""The Spark session: a JVM that dies ends in an error that says what to do, not in a traceback of sockets.

Run with ``make test TESTS=tests/jobs/test_spark.py``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import class_archive

PROGRAM = """
import os, sys
from jobs import spark
from jobs.errors import JobError
from jobs.settings import Settings
try:
    with spark.session(Settings(root=sys.argv[1], spark_master="local[1]")) as session:
        gateway = session.sparkContext._gateway.proc
        gateway.kill()
        gateway.wait()
        session.range(10).count()
except JobError as error:
    print(error)
"""


@pytest.mark.spark
def test_dead_jvm_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    assert "TAGGING_SPARK_MEMORY" in done.stdout


@pytest.mark.spark
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_class_archive_of_the_installation_is_mapped(spark_session: Any) -> None:
    assert class_archive.path().is_file(), "`make install` records it"
    maps = Path(f"/proc/{spark_session.sparkContext._gateway.proc.pid}/maps").read_text()
    assert str(class_archive.path()) in maps
