"""The command line: where settings come from, and how a wrong one is told. `make test TESTS=tests/jobs/test_cli.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` with no settings but `variables`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAGGING_")}
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(REPOSITORY)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("flags", "variables", "root"),
    [
        ([], {}, "lake"),
        ([], {"TAGGING_ROOT": "by-variable"}, "by-variable"),
        (["--root", "by-flag"], {"TAGGING_ROOT": "by-variable"}, "by-flag"),
    ],
)
def test_a_flag_before_a_variable_before_the_default(
    tmp_path: Path, flags: list[str], variables: dict[str, str], root: str
) -> None:
    done = command(tmp_path, *flags, "tables", **variables)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / root}: nothing is published yet")


@pytest.mark.parametrize(
    ("flags", "variables", "told"),
    [
        ([], {"TAGGING_BATCH_SIZE": "0"}, "batch_size: Input should be greater than or equal to 1"),
        ([], {"TAGGING_DEVICE": "tpu"}, "device: Input should be 'auto', 'cpu' or 'cuda'"),
        (["--spark-options", "spark.a=b"], {}, "spark_options: 'spark.a=b' is no JSON object such as"),
        (
            [],
            {"TAGGING_SPARK_OPTIONS": '{"executor.cores": "4"}'},
            "spark_options: Spark's options begin with 'spark.'",
        ),
        (["--root", "s3://bucket/lake"], {}, "root: 's3://bucket/lake': the lake must be a local folder"),
    ],
)
def test_a_wrong_setting_is_told_by_name(
    tmp_path: Path, flags: list[str], variables: dict[str, str], told: str
) -> None:
    done = command(tmp_path, *flags, "tables", **variables)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == "error: wrong settings:"
    assert second.startswith(f"  {told}")
