"""The plugin that serves reports in Airflow's UI. `make test TESTS=tests/dags/test_catalog_pages.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "dags" / "plugins"))
import catalog_pages as module


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "lake"
    for name in (
        "reports/ds=2026-11-20/run=r/report.html",
        "labelled/page.html",
        "models/card.md",
        "reports/.tmp/x.html",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"page {name}")
    (tmp_path / "secret").write_text("secret")
    (root / "reports" / "out").symlink_to(tmp_path / "secret")
    monkeypatch.setenv("TAGGING_ROOT", str(root))
    return root


@pytest.fixture
def logged_in(lake: Path) -> Iterator[TestClient]:  # noqa: ARG001 - it is what is served
    module.app.dependency_overrides[get_user] = lambda: object()
    with TestClient(module.app) as client:
        yield client
    module.app.dependency_overrides.clear()


def test_pages_are_served_in_a_sandbox(logged_in: TestClient) -> None:
    found = logged_in.get("/reports/ds%3D2026-11-20/run%3Dr/report.html")
    assert (found.status_code, found.text) == (200, "page reports/ds=2026-11-20/run=r/report.html")
    assert found.headers["content-security-policy"].startswith("sandbox")
    assert logged_in.get("/labelled/page.html").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "models/card.md", "reports", "reports/none.html", "reports/out", "reports/../models/card.md", "", "reports/.tmp/x.html",
        "reports/%2e%2e/%2e%2e/secret", "%2e%2e/secret", "/etc/passwd", "reports/%00",
    ],
)  # fmt: skip
def test_nothing_else_is(logged_in: TestClient, path: str) -> None:
    assert logged_in.get(f"/{path}").status_code in (404, 422)


def test_nobody_sees_them_who_is_not_logged_in(lake: Path) -> None:  # noqa: ARG001 - it is there to be seen
    with TestClient(module.app) as client:
        assert client.get("/labelled/page.html").status_code == 401
