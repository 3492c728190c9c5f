"""The DAGs: they load, keep the shared rules, and run their steps. `make test TESTS=tests/dags`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import TriggerRule
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from jobs.startup import step_client
from schemas.step_results import ValidateResult

REPOSITORY = Path(__file__).resolve().parents[2]
DAGS = REPOSITORY / "dags"

sys.path.insert(0, str(DAGS))
import common  # noqa: E402
import job_operator as module  # noqa: E402


@pytest.fixture(scope="module")
def dagbag() -> DagBag:
    return DagBag(DAGS)


@pytest.fixture
def nightly(dagbag: DagBag) -> Any:
    return dagbag.dags["nightly_tagging"]


# --- rules for every DAG ---------------------------------------------------------------------------------------------


def test_all_dags_load(dagbag: DagBag) -> None:
    assert dagbag.import_errors == {}
    assert set(dagbag.dags) == {"nightly_tagging", "backfill_tagging", "train_model", "maintenance"}


def test_dags_keep_the_rules(dagbag: DagBag) -> None:
    for dag in dagbag.dags.values():
        assert dag.tags, f"{dag.dag_id} has no tags"
        assert dag.doc_md, f"{dag.dag_id} has no doc_md"
        assert dag.description, f"{dag.dag_id} has no description"
        assert dag.catchup is False, f"{dag.dag_id} would catch up"
        for task in dag.tasks:
            name = f"{dag.dag_id}.{task.task_id}"
            assert task.owner != "airflow", f"{name} has no owner"
            assert task.doc_md, f"{name} has no doc_md"
            assert task.retries >= 1, f"{name} has no retries"
            assert task.retry_exponential_backoff > 1, f"{name} retries without backing off"
            assert task.execution_timeout or task.task_id == "approve", f"{name} has no execution_timeout"
            assert task.on_failure_callback == [common.alert] or task.on_failure_callback is common.alert, (
                f"{name}: no alert"
            )


@pytest.mark.parametrize("name", ["nightly_tagging", "backfill_tagging", "train_model", "maintenance"])
def test_parsing_loads_nothing_heavy(name: str) -> None:
    code = f"""
import sys, airflow.sdk
sys.path.insert(0, {str(DAGS)!r})
import {name}
heavy = {{"torch", "pyspark", "great_expectations", "pandas", "pyarrow"}} & sys.modules.keys()
import json; print(json.dumps(sorted(heavy)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


# --- the shape of the nightly DAG --------------------------------------------------------------------------------------


def test_order(nightly: Any) -> None:
    upstream = {task.task_id: task.upstream_task_ids for task in nightly.tasks}
    assert upstream == {
        "resolve_day": set(),
        "wait_for_export": {"resolve_day"},
        "validate": {"resolve_day", "wait_for_export"},
        "plan": {"resolve_day", "validate"},
        "list_shards": {"plan"},
        "branch": {"plan", "list_shards"},
        "preprocess": {"plan", "branch"},
        "tag": {"plan", "list_shards", "branch", "preprocess"},
        "publish": {"plan", "branch", "tag"},
        "report": {"publish"},
    }


def test_several_runs_at_once_on_a_daily_interval(nightly: Any) -> None:
    assert nightly.max_active_runs > 1  # a night that waits for its export must not block others
    assert type(nightly.timetable).__name__ == "CronDataIntervalTimetable"


def test_tag_is_mapped_on_the_gpu(nightly: Any) -> None:
    tag = nightly.get_task("tag")
    assert isinstance(tag, MappedOperator)
    assert (tag.pool, tag.queue) == ("gpu", "gpu")
    assert all(t.pool == "default_pool" for t in nightly.tasks if t.task_id != "tag")


@pytest.mark.parametrize("setting", [{}, {"AIRFLOW__CORE__MAX_MAP_LENGTH": "7"}])
def test_plan_gets_airflows_limit_of_mapped_tasks(setting: dict[str, str]) -> None:
    code = f"""
import sys, airflow.sdk
sys.path.insert(0, {str(DAGS)!r})
import nightly_tagging
print(nightly_tagging.nightly_tagging().get_task("plan").arguments[3])
"""
    environment = {
        name: value for name, value in os.environ.items() if name != "AIRFLOW__CORE__MAX_MAP_LENGTH"
    } | setting
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == f"--most-tasks={setting.get('AIRFLOW__CORE__MAX_MAP_LENGTH', 1024)}"


def test_publish_runs_even_if_nothing_was_tagged(nightly: Any) -> None:
    assert nightly.get_task("publish").trigger_rule == TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
    assert [asset.name for asset in nightly.get_task("publish").outlets] == ["attribute_tables"]


@pytest.mark.parametrize(
    ("to_preprocess", "shards", "expected"),
    [(3, ["0", "1-2"], "preprocess"), (0, ["0"], "tag"), (0, [], "publish")],
)
def test_branch(nightly: Any, to_preprocess: int, shards: list[str], expected: str) -> None:
    assert nightly.get_task("branch").python_callable(to_preprocess, shards) == expected


@pytest.mark.parametrize(
    ("form", "flags"),
    [
        ({}, ["--no-retag"]),
        ({"allow_removals": True}, ["--no-retag", "--allow-removals"]),
        ({"retag": True, "allow_removals": False}, ["--retag"]),
    ],
)
def test_the_form_of_a_night_reaches_the_plan(dagbag: DagBag, form: dict[str, bool], flags: list[str]) -> None:
    for name, task_id in (("nightly_tagging", "plan"), ("backfill_tagging", "estimate")):
        dag = dagbag.dags[name]
        task = dag.get_task(task_id)
        params = dag.params.dump() | {"first_day": "2026-11-20", "last_day": "2026-11-21"} | form
        rendered = [
            task.render_template(argument, {"params": params}, dag.get_template_env())
            for argument in task.arguments
            if isinstance(argument, str)
        ]
        assert [text for text in rendered if text in ("--retag", "--no-retag", "--allow-removals")] == flags


# --- the form of a training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "flags"), [({}, []), ({"pretrain": False}, []), ({"pretrain": True}, ["--pretrain"])])
def test_a_training_pretrains_its_towers_on_request(dagbag: DagBag, form: dict[str, bool], flags: list[str]) -> None:
    dag = dagbag.dags["train_model"]
    task = dag.get_task("train")
    params = dag.params.dump() | form
    rendered = [
        task.render_template(argument, {"params": params}, dag.get_template_env())
        for argument in task.arguments
        if isinstance(argument, str)
    ]
    assert [text for text in rendered if text] == ["train", "--ds", "--no-promote", *flags]


# --- the day of a run --------------------------------------------------------------------------------------------------

INTERVAL_START = datetime(2026, 11, 20, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ds", "start", "expected"),
    [
        ("2026-11-02", INTERVAL_START, "2026-11-02"),
        ("2026-11-02", None, "2026-11-02"),
        (None, INTERVAL_START, "2026-11-20"),
        ("", INTERVAL_START, "2026-11-20"),
        (None, INTERVAL_START.astimezone(tz=None), "2026-11-20"),
    ],
)
def test_partition_day(ds: str | None, start: datetime | None, expected: str) -> None:
    assert common.partition_day(ds, start) == expected


@pytest.mark.parametrize("ds", ["2026-02-30", "20261120", "2026-W47-5", "2026-11-20T02:00:00", "; rm -rf /", " "])
def test_partition_day_refuses_other_texts(ds: str) -> None:
    with pytest.raises(AirflowFailException, match="is not a day"):
        common.partition_day(ds, INTERVAL_START)


def test_partition_day_is_never_guessed() -> None:
    with pytest.raises(AirflowFailException, match="trigger it with ds=YYYY-MM-DD"):
        common.partition_day(None, None)


# --- running a step ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["started", "forked"])
def with_and_without_step_server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that start as new processes, and steps that a step server forks."""
    monkeypatch.delenv(step_client.VARIABLE, raising=False)
    if request.param == "forked":
        monkeypatch.setenv(step_client.VARIABLE, str(request.getfixturevalue("step_server_address")))


@pytest.mark.usefixtures("with_and_without_step_server")
def test_wrong_input_is_not_retried() -> None:
    operator = module.JobOperator(
        task_id="validate", prints=ValidateResult, arguments=["validate", "--ds", "no-day; touch /tmp/x"]
    )
    with pytest.raises(AirflowFailException, match="error: --ds 'no-day; touch /tmp/x' is not a day"):
        operator.execute({})


@pytest.mark.usefixtures("with_and_without_step_server")
def test_any_other_failure_is_retried() -> None:
    operator = module.JobOperator(
        task_id="sample", prints=ValidateResult, arguments=["sample-catalog", "/dev/null/folder"]
    )
    with pytest.raises(AirflowException, match="sample-catalog ended with exit code 1: NotADirectoryError") as caught:
        operator.execute({})
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.usefixtures("with_and_without_step_server")
def test_killing_the_task_ends_the_whole_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stopped: bool
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 2)
    operator = module.JobOperator(
        task_id="sample",
        prints=ValidateResult,
        arguments=["sample-catalog", tmp_path / "catalog", "--products", 1_000_000],
    )
    failures: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute({})
        except AirflowException as error:
            failures.append(error)

    thread = threading.Thread(target=execute, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "catalog").exists() and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    process = psutil.Process(operator._process.pid)
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
    if stopped:  # a process that does not react to SIGTERM
        os.kill(process.pid, signal.SIGSTOP)
        # Wait until it has stopped: otherwise it would still handle the SIGTERM.
        while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
            time.sleep(0.01)
    operator.on_kill()
    thread.join(10)
    assert not thread.is_alive()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert f"ended with exit code -{signal.SIGKILL if stopped else signal.SIGTERM:d}" in str(failures[0])


def test_a_field_missing_from_the_result_is_an_error_of_the_dag() -> None:
    operator = module.JobOperator(
        task_id="validate", prints=ValidateResult, arguments=["validate", "--ds", "2026-11-20"]
    )
    assert operator.field("valid").key == "valid"
    with pytest.raises(KeyError, match="ValidateResult has no field 'shards'; it has ds, valid"):
        operator.field("shards")


def test_a_step_starts_even_if_the_step_server_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(step_client.VARIABLE, str(tmp_path / "gone"))
    operator = module.JobOperator(task_id="validate", prints=ValidateResult, arguments=["validate", "--ds", "no-day"])
    with pytest.raises(AirflowFailException, match="error: --ds 'no-day' is not a day"):
        operator.execute({})


@pytest.mark.parametrize(("setting", "seconds"), [({}, "60.0"), ({"TAGGING_RETRY_DELAY": "7"}, "7.0")])
def test_retry_delay_is_a_setting(setting: dict[str, str], seconds: str) -> None:
    code = f"""
import sys, airflow.sdk
sys.path.insert(0, {str(DAGS)!r})
import nightly_tagging
print(nightly_tagging.nightly_tagging().get_task("validate").retry_delay.total_seconds())
"""
    environment = {name: value for name, value in os.environ.items() if name != "TAGGING_RETRY_DELAY"} | setting
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == seconds
