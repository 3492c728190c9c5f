"""Airflow plugin: serves the pages that the jobs write (reports, labelled sets, suspects) to users with permission.

The button *Report* of a task opens them. The plugin serves nothing else from the lake: no tables, no documents. The pages
contain texts of the shop's catalog, so headers keep the browser from running scripts in them or sending anything.

Everyone who may see *nightly_tagging* may see reports. Labelled sets and suspects show many more of the shop's products, so
only users who may answer the approval of *train_model* may see them.
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

REPORT_FOLDERS: Final = ("reports",)  # top folders of the lake
LABEL_FOLDERS: Final = ("labelled", "suspects")
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
# Names of folders and files as the jobs write them: no leading dot, no backslash, no escape, nothing special in a path.
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,199}")
MAX_PATH_LENGTH: Final = 1000  # characters

log = logging.getLogger(__name__)
app = FastAPI(title="Pages of the catalog tagger", openapi_url=None)


@app.middleware("http")
async def add_headers(request: Request, respond: Callable[[Request], Awaitable[Response]]) -> Response:
    """Add the headers to every response, including refusals."""
    response = await respond(request)
    response.headers.update(HEADERS)
    return response


@app.get("/{path:path}")
def page(path: str, user: GetUserDep) -> Response:
    """Return a page or a file that a page shows.

    Responds with 403 if this user may not see it, with 503 if the lake cannot be read, and with 404 for everything else.
    """
    names = path.split("/")
    media_type = TYPES.get(PurePosixPath(names[-1]).suffix)
    if (
        len(path) > MAX_PATH_LENGTH
        or names[0] not in (*REPORT_FOLDERS, *LABEL_FOLDERS)
        or not all(map(NAME.fullmatch, names))
    ):
        raise HTTPException(404)
    if media_type is None:
        raise HTTPException(404)
    if not _may_see(names[0], user):
        raise HTTPException(403)
    try:
        data = _read(Settings().root, path)
    except (OSError, JobError) as error:  # respond ourselves, so that our headers are added
        log.error("%s cannot be read: %s", path, error)
        raise HTTPException(503, "The lake cannot be read now.") from None
    if data is None:
        raise HTTPException(404)
    return Response(data, media_type=media_type)


def _may_see(folder: str, user: Any) -> bool:
    manager = get_auth_manager()
    if folder in REPORT_FOLDERS:
        return manager.is_authorized_dag(method="GET", details=DagDetails(id="nightly_tagging"), user=user)
    return manager.is_authorized_dag(
        method="PUT", access_entity=DagAccessEntity.HITL_DETAIL, details=DagDetails(id="train_model"), user=user
    )


def _read(root: AnyPath, path: str) -> bytes | None:
    """Return the content of a file in the lake, or None if it is no file or its path contains a link."""
    file = root / path
    if storage.on_disk(file) and (
        not file.is_file() or any(step.is_symlink() for step in (file, *file.parents) if step.is_relative_to(root))
    ):
        return None
    return storage.read_bytes(file)


class CatalogPages(AirflowPlugin):
    """The plugin that Airflow's API server loads."""

    name = "catalog_pages"
    fastapi_apps = [{"app": app, "url_prefix": "/catalog", "name": "Pages of the catalog tagger"}]  # noqa: RUF012
