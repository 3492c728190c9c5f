"""The command line: the sources of settings, and the errors of wrong ones. `make test TESTS=tests/jobs/test_cli.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.settings import Settings

REPOSITORY = Path(__file__).resolve().parents[2]


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder` with only `variables` as settings."""
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
        (["--max-retag-share", "0"], {}, "max_retag_share: Input should be greater than 0"),
        ([], {"TAGGING_MAX_UNPACKED_GB": "inf"}, "max_unpacked_gb: Input should be a finite number"),
        ([], {"TAGGING_DEVICE": "tpu"}, "device: Input should be 'auto', 'cpu' or 'cuda'"),
        (["--spark-options", "spark.a=b"], {}, "spark_options: 'spark.a=b' is not a JSON object such as"),
        (
            [],
            {"TAGGING_SPARK_OPTIONS": '{"executor.cores": "4"}'},
            "spark_options: Spark options begin with 'spark.'",
        ),
        (["--root", "gs://bucket/lake"], {}, "root: 'gs://bucket/lake': give a folder, or s3://bucket/prefix"),
        (
            ["--root", "lake\nof two lines"],
            {},
            r"root: 'lake\nof two lines': '\n' cannot be in the name of this folder",
        ),
        (
            [],
            {"TAGGING_ROOT": "lake[1]"},
            "root: 'lake[1]': '[', ']' cannot be in the name of this folder: Spark and DuckDB",
        ),
        ([], {"TAGGING_ROOT": ""}, "root: '': give the name of a folder"),
        ([], {"TAGGING_ROOT": "lake "}, "root: 'lake ': give the name of a folder, without blanks"),
        ([], {"TAGGING_ROOT": "~nobody-of-this-name/lake"}, "root: '~nobody-of-this-name/lake': Could not"),
        ([], {"TAGGING_ROOT": "file://host/lake"}, "root: 'file://host/lake': give file:///folder"),
        ([], {"TAGGING_ROOT": "/dev/null"}, "root: '/dev/null': /dev/null is not a folder; give a folder"),
        ([], {"TAGGING_ROOT": "/dev/null/lake"}, "root: '/dev/null/lake': /dev/null is not a folder"),
        ([], {"TAGGING_ROOT": "lake*"}, "root: 'lake*': '*' cannot be in the name"),
        ([], {"TAGGING_ROOT": "lake?"}, "root: 'lake?': '?' cannot be in the name"),
        ([], {"TAGGING_ROOT": "{a,b}"}, "root: '{a,b}': ',', '{', '}' cannot be in the name"),
        ([], {"TAGGING_ROOT": "back\\slash"}, r"root: 'back\\slash': '\\' cannot be in the name"),
        ([], {"TAGGING_ROOT": "s3://bucket/lake*"}, "root: 's3://bucket/lake*': '*' cannot be in the name"),
        ([], {"TAGGING_PICTURE_ROOTS": "/pictures,/more[1]"}, "picture_roots"),
    ],
)
def test_an_error_about_a_wrong_setting_names_it(
    tmp_path: Path, flags: list[str], variables: dict[str, str], told: str
) -> None:
    done = command(tmp_path, *flags, "tables", **variables)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == "error: wrong settings:"
    assert second.startswith(f"  {told}")


class _Called(Exception):
    """Carries the arguments of a call of a step."""


MODULES = {
    "plan": "jobs.nightly.plan.plan",
    "night": "jobs.runs.whole_night.night",
    "estimate": "jobs.runs.backfill_estimate.estimate",
}


@pytest.mark.parametrize("step", ["plan", "night", "estimate"])
@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ([], {"retag": False, "model": None, "attributes": (), "allow_removals": False}),
        (
            ["--model", "", "--attributes", "", "--no-retag"],
            {"retag": False, "model": None, "attributes": (), "allow_removals": False},
        ),
        (
            ["--model", "20261120-0123abcd", "--attributes", "colour, neck", "--retag", "--allow-removals"],
            {"retag": True, "model": "20261120-0123abcd", "attributes": ("colour", "neck"), "allow_removals": True},
        ),
    ],
)
def test_options_of_a_night_reach_its_step(
    monkeypatch: pytest.MonkeyPatch, step: str, flags: list[str], options: dict[str, object]
) -> None:
    def called(settings: Settings, *days: str, **named: object) -> None:
        raise _Called(settings.max_retag_share, days, named)

    monkeypatch.setattr(MODULES[step], called)
    days = ["--first", "2026-11-20", "--last", "2026-11-21"] if step == "estimate" else ["--ds", "2026-11-20"]
    done = CliRunner().invoke(app, ["--max-retag-share", "0.25", step, *days, *flags])
    assert isinstance(done.exception, _Called)
    assert done.exception.args == (0.25, tuple(days[1::2]), options)


def test_days_of_an_estimate_are_named_by_their_flags() -> None:
    done = CliRunner().invoke(app, ["estimate", "--first", "2026-11-20", "--last", "2026-11-31"])
    assert str(done.exception) == "--last '2026-11-31' is not a day; write it as 2026-11-20"
