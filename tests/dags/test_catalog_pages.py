"""The plugin that serves reports in Airflow's UI. `make test TESTS=tests/dags/test_catalog_pages.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from airflow.api_fastapi.app import create_auth_manager
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "dags" / "plugins"))
import catalog_pages as module

from jobs.errors import JobError

REPORT = "reports/ds=2026-11-20/run=r/report.html"
SET = "labelled/ds=2026-11-20/set=s/index.html"
NIGHT_PAGES = (
    REPORT,
    "reports/index.html",
    "reports/ds=2026-11-20/validation-v/index.html",
    "reports/ds=2026-11-20/run=r/plot.svg",
)
LABEL_PAGES = (SET, "suspects/ds=2026-11-20/set=s/index.html")
OTHERS = (
    "labelled/ds=2026-11-20/set=s/products.parquet", "labelled/ds=2026-11-20/set=s/manifest.json",
    "suspects/ds=2026-11-20/set=s/suspects.parquet", "reports/ds=2026-11-20/run=r/ledger.json",
    "reports/ds=2026-11-20/run=r/steps/tag-00000.json", "reports/models/a-against-b.json",
    "reports/ds=2026-11-20/model=v/events.out.tfevents.1", "reports/ds=2026-11-20/run=r/page.html.gz",
    "reports/ds=2026-11-20/run=r/script.js", "reports/ds=2026-11-20/run=r/page.xhtml", "reports/ds=2026-11-20/run=r/html",
    "models/card.html", "catalog/raw/ds=2026-11-20/page.html", "attribute_tables/current", "reports/.tmp/x.html",
    "page.html", "reports.html", "scratch/x.html",
)  # fmt: skip
TRICKS = (
    "", "reports", "reports/", "reports/none.html", "reports/ds=2026-11-20", "reports/../models/card.html",
    "reports/%2e%2e/models/card.html", "reports/%2e%2e/%2e%2e/secret.html", "%2e%2e/secret.html", "reports/..%2fmodels/card.html",
    "reports/%252e%252e/models/card.html", "reports\\..\\models\\card.html", "reports/..%5cmodels%5ccard.html",
    "/etc/passwd", "reports//index.html", "reports/%00.html", "reports/index.html%00.png",
    "reports/index.html/", "reports/index.html/x.html", "reports/out.html", "reports/away/card.html", "reports/loop.html",
    "reports/" + "a" * 5000 + ".html", "reports/" + "a/" * 2500 + "a.html", "reports/pipe.html",
    "reports/%ff.html", "Reports/index.html", "reports;/index.html",
)  # fmt: skip


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "lake"
    for name in (*NIGHT_PAGES, *LABEL_PAGES, *OTHERS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"page {name}")
    (tmp_path / "secret.html").write_text("secret")
    (root / "reports" / "out.html").symlink_to(tmp_path / "secret.html")
    (root / "reports" / "away").symlink_to(root / "models")
    (root / "reports" / "loop.html").symlink_to("loop.html")
    os.mkfifo(root / "reports" / "pipe.html")
    monkeypatch.setenv("TAGGING_ROOT", str(root))
    return root


As = Callable[[str], TestClient]


@pytest.fixture
def logged_in(lake: Path) -> Iterator[As]:  # noqa: ARG001 - the app serves it
    """A client for a user with a role of Airflow's simple auth manager."""
    assert isinstance(create_auth_manager(), SimpleAuthManager)
    with TestClient(module.app) as client:

        def as_one_of(role: str) -> TestClient:
            module.app.dependency_overrides[get_user] = lambda: SimpleAuthManagerUser(username="x", role=role)
            return client

        yield as_one_of
    module.app.dependency_overrides.clear()


@pytest.mark.parametrize("path", [*NIGHT_PAGES, *LABEL_PAGES])
def test_pages_are_served_and_run_no_scripts(logged_in: As, path: str) -> None:
    response = logged_in("admin").get("/" + path.replace("=", "%3D"))
    assert (response.status_code, response.text) == (200, f"page {path}")
    policy = response.headers["content-security-policy"].split("; ")
    for rule in ("default-src 'none'", "style-src 'unsafe-inline'", "img-src 'self' data:", "form-action 'none'"):
        assert rule in policy
    assert not any(word in rule for rule in policy for word in ("script", "allow-scripts", "allow-forms"))
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"] == module.TYPES[Path(path).suffix]


@pytest.mark.parametrize("role", ["viewer", "user"])
def test_only_users_who_may_approve_a_model_see_labels_and_suspects(logged_in: As, role: str) -> None:
    assert {logged_in(role).get(f"/{path}").status_code for path in NIGHT_PAGES} == {200}
    assert {logged_in(role).get(f"/{path}").status_code for path in LABEL_PAGES} == {200 if role == "user" else 403}


def test_a_person_without_a_role_sees_nothing(logged_in: As) -> None:
    assert {logged_in("").get(f"/{path}").status_code for path in (*NIGHT_PAGES, *LABEL_PAGES)} == {403}


@pytest.mark.parametrize("path", [*OTHERS, *TRICKS])
def test_nothing_else_is_served(logged_in: As, path: str) -> None:
    response = logged_in("admin").get(f"/{path}")
    assert response.status_code in (404, 422)
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(5, "Input/output error"), JobError("no server")])
def test_an_unreadable_lake_gives_a_response_with_our_headers(
    logged_in: As, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: object) -> bytes:
        raise error

    monkeypatch.setattr(module.storage, "read_bytes", fail)
    response = logged_in("admin").get(f"/{REPORT}")
    assert response.status_code == 503
    assert str(error) not in response.text
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize("path", [REPORT, SET, "models/card.html"])
def test_users_without_a_login_see_nothing(lake: Path, path: str) -> None:  # noqa: ARG001 - the app would serve it
    with TestClient(module.app) as client:
        assert client.get(f"/{path}").status_code == 401
