"""Roles of FAB's auth manager, tested on Airflow's real API server with our plugin. `make test TESTS=tests/dags/test_roles.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.orchestration import airflow_roles

REPOSITORY = Path(__file__).resolve().parents[2]
REPORT, SET = "/catalog/reports/index.html", "/catalog/labelled/ds=2026-11-20/set=s/index.html"
# Runs in a process of its own, because Airflow reads its configuration once. Prints the status that each person gets.
CODE = """
import json, logging, sys
import airflow.utils.db as db
db.initdb()
import jobs.orchestration.airflow_roles as roles
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
roles.main()
with get_application_builder() as builder:
    roles.make_roles(builder.sm)  # again: nothing is doubled
    for role in ("Viewer", "Operator", "Reviewer"):
        builder.sm.add_user(role.lower(), role, "", f"{role}@localhost", builder.sm.find_role(role), "password-of-" + role)
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dagbundle import DagBundleModel
from airflow.utils.session import create_session
with create_session() as session:
    session.merge(DagBundleModel(name="dags-folder"))
sync_bag_to_db(DagBag(sys.argv[1], bundle_path=sys.argv[1], bundle_name="dags-folder"), "dags-folder", None)
from airflow.api_fastapi.app import create_app
from fastapi.testclient import TestClient
requests = {
    "report": ("GET", sys.argv[2], None),
    "labels": ("GET", sys.argv[3], None),
    "table": ("GET", sys.argv[3].replace("index.html", "products.parquet"), None),
    "dags": ("GET", "/api/v2/dags/nightly_tagging", None),
    "connections": ("GET", "/api/v2/connections", None),
    "start": ("POST", "/api/v2/dags/nightly_tagging/dagRuns", {"logical_date": None, "conf": {"ds": "2026-11-20"}}),
    "approve": (
        "PATCH",
        "/api/v2/dags/train_model/dagRuns/r/taskInstances/approve/-1/hitlDetails",
        {"chosen_options": ["Approve"]},
    ),
}
people = {"": "", "admin": "secret-of-admin"} | {x.lower(): "password-of-" + x for x in ("Viewer", "Operator", "Reviewer")}
statuses = {}
with TestClient(create_app(), raise_server_exceptions=False) as client:
    for person, password in people.items():
        headers = {}
        if person:
            answer = client.post("/auth/token", json={"username": person, "password": password})
            headers = {"Authorization": "Bearer " + answer.json()["access_token"]}
        client.cookies.clear()
        statuses[person] = {
            name: client.request(method, path, json=body, headers=headers).status_code
            for name, (method, path, body) in requests.items()
        }
    statuses["wrong"] = client.post("/auth/token", json={"username": "admin", "password": "admin"}).status_code
    statuses["headers"] = dict(client.get(sys.argv[2]).headers)
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("roles")
    for page in (REPORT, SET, SET.replace("index.html", "products.parquet")):
        file = folder / "lake" / page.removeprefix("/catalog/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("page")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "TAGGING_"))
    } | {
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(REPOSITORY / "dags" / "plugins"),
        "AIRFLOW__CORE__AUTH_MANAGER": airflow_roles.FAB,
        "AIRFLOW__API_AUTH__JWT_SECRET": "0123456789" * 4,
        "AIRFLOW__API__SECRET_KEY": "0123456789" * 4,
        airflow_roles.PASSWORD: "secret-of-admin",
        "TAGGING_ROOT": str(folder / "lake"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "dags")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE, REPOSITORY / "dags", REPORT, SET],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    statuses: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return statuses


def test_nobody_sees_anything_without_a_login(answers: dict[str, Any]) -> None:
    assert set(answers[""].values()) == {401}
    assert answers["wrong"] == 401
    assert answers["headers"]["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("person", "may"),
    [
        ("viewer", {"report", "dags"}),
        ("operator", {"report", "dags", "start"}),
        ("reviewer", {"report", "dags", "labels", "approve"}),
        ("admin", {"report", "dags", "labels", "approve", "start", "connections"}),
    ],
)
def test_each_role_may_do_its_part(answers: dict[str, Any], person: str, may: set[str]) -> None:
    statuses = answers[person]
    assert statuses.pop("table") == 404  # tables are served to nobody
    assert {name for name, status in statuses.items() if status != 403} == may
    assert statuses["report"] == statuses["dags"] == 200


def test_roles_need_fab() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.orchestration.airflow_roles"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: only FAB's auth manager has roles")
