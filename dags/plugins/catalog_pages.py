"""Airflow plugin: serves the pages that the jobs write (reports, labelled sets, suspects) to people who may see them.

The button *Report* of a task leads to them. Nothing else of the lake is served: no table, no document. The pages hold texts
of the shop's catalog, so a browser runs nothing in them and lets them send nothing, whatever they hold.

A report is for everyone who may see *nightly_tagging*. Labelled sets and suspects show many more of the shop's products:
they are for those who may answer the approval of *train_model*.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath
from typing import Any, Final

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import Response

from jobs.errors import JobError
from jobs.lake import storage
from jobs.lake.storage import AnyPath
from jobs.settings import Settings

OF_A_NIGHT: Final = ("reports",)  # folders of the lake
OF_LABELS: Final = ("labelled", "suspects")
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-popups",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
# What the jobs name folders and files: no dot at the start, no backslash, no escape, nothing that a path gives a meaning.
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}")
LONGEST: Final = 1000  # characters of a path

log = logging.getLogger(__name__)
app = FastAPI(title="Pages of the catalog tagger", openapi_url=None)


@app.middleware("http")
async def add_headers(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Put the headers on every answer, refusals included."""
    response = await answer(request)
    response.headers.update(HEADERS)
    return response


@app.get("/{path:path}")
def page(path: str, user: GetUserDep) -> Response:
    """Return a page, or what a page shows; 403 where this person may not see it, 503 where the lake cannot be read, 404 for
    everything else.
    """
    names = path.split("/")
    media_type = TYPES.get(PurePosixPath(names[-1]).suffix)
    if len(path) > LONGEST or names[0] not in (*OF_A_NIGHT, *OF_LABELS) or not all(map(NAME.fullmatch, names)):
        raise HTTPException(404)
    if media_type is None:
        raise HTTPException(404)
    if not _may_see(names[0], user):
        raise HTTPException(403)
    try:
        data = _read(Settings().root, path)
    except (OSError, JobError) as error:  # an answer of ours, with our headers
        log.error("%s cannot be read: %s", path, error)
        raise HTTPException(503, "The lake cannot be read now.") from None
    if data is None:
        raise HTTPException(404)
    return Response(data, media_type=media_type)


def _may_see(folder: str, user: Any) -> bool:
    manager = get_auth_manager()
    if folder in OF_A_NIGHT:
        return manager.is_authorized_dag(method="GET", details=DagDetails(id="nightly_tagging"), user=user)
    return manager.is_authorized_dag(
        method="PUT", access_entity=DagAccessEntity.HITL_DETAIL, details=DagDetails(id="train_model"), user=user
    )


def _read(root: AnyPath, path: str) -> bytes | None:
    """Return the content of a file of the lake; None where it does not exist, is no file, or a link is on its way."""
    file = root / path
    if storage.on_disk(file) and (
        not file.is_file() or any(step.is_symlink() for step in (file, *file.parents) if step.is_relative_to(root))
    ):
        return None
    return storage.read_bytes(file)


class CatalogPages(AirflowPlugin):
    """What Airflow's API server takes from here."""

    name = "catalog_pages"
    fastapi_apps = [{"app": app, "url_prefix": "/catalog", "name": "Pages of the catalog tagger"}]  # noqa: RUF012
